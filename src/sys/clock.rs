//! The only place that reads a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::types::{BootId, BootTime};

/// Returns the present instant of the boot-time clock, which goes on during suspension and ignores wall-clock steps.
pub fn boot_now() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    BootTime(seconds * 1_000_000_000 + nanos)
}

/// Returns which boot of the machine this is.
pub fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // hashed, as only equality counts
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(text.trim().as_bytes()).as_bytes()[..16]);
    BootId(id)
}

/// Returns the wall clock as the time since 1970: for people and certificates only, never for a lease.
pub fn wall_now() -> Duration {
    #[allow(clippy::disallowed_methods, reason = "the one place that the rule leads to")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}
