//! Schedules that once showed a hole, each named by the promise that it broke.
