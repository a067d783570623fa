//! The only place that reads a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::types::BootTime;

/// Returns the present instant of the boot-time clock, which goes on during suspension and ignores wall-clock steps.
pub fn boot_now() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    BootTime(seconds * 1_000_000_000 + nanos)
}

/// Returns the wall clock as the time since 1970: for people and certificates only, never for a lease.
pub fn wall_now() -> Duration {
    #[allow(clippy::disallowed_methods, reason = "the one place that the rule leads to")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}
