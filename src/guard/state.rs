//! What the guard decides, without doing it: instants and facts in, the signal to send out.

use std::time::Duration;

use super::protocol::{FenceStatus, Lease, StopMode};
use crate::types::{BootTime, Generation};

/// The signal that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// SIGINT to the postmaster.
    StopFast,
    /// SIGQUIT to the postmaster.
    Quit,
    /// SIGKILL to every process, again and again until none is left.
    KillAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stopping {
    quit_at: BootTime,
    kill_at: BootTime,
    int_due: bool,
    quit_done: bool,
}

/// Deadline, fence and stop of one PostgreSQL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardState {
    lease: Option<Lease>,
    fenced: Option<Generation>,
    fence: Option<FenceStatus>,
    stopping: Option<Stopping>,
}

/// What PostgreSQL has between SIGQUIT and SIGKILL once an orderly stop has run out of time. Its own limit is 5 s, far too
/// long here; backends leave within a few ms.
const QUIT_TO_KILL: Duration = Duration::from_millis(200);

impl GuardState {
    /// Returns the armed lease.
    pub fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// Returns the highest generation that was fenced.
    pub fn fenced(&self) -> Option<Generation> {
        self.fenced
    }

    /// Returns the newest fence.
    pub fn fence(&self) -> Option<FenceStatus> {
        self.fence
    }

    /// Tells whether a fence or stop is under way.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    fn is_fencing(&self) -> bool {
        self.fence.is_some_and(|fence| fence.complete.is_none())
    }

    /// Arms a lease. The same generation again only ever extends; a generation that was fenced or is older than the armed
    /// one is refused, as is a lease that is over.
    pub fn arm(&mut self, lease: Lease, now: BootTime) -> Result<(), String> {
        if self.is_fencing() {
            return Err("a fence is under way; it is finished first".to_owned());
        }
        if self.fenced.is_some_and(|fenced| lease.generation <= fenced) {
            return Err(format!("generation {} has been fenced and never acts again", lease.generation));
        }
        if now >= lease.deadline.before(lease.fence_lead) {
            return Err(format!("the lease of generation {} is over already", lease.generation));
        }
        let mut lease = lease;
        if let Some(armed) = self.lease {
            if lease.generation < armed.generation {
                return Err(format!("generation {} is armed, {} is older", armed.generation, lease.generation));
            }
            if lease.generation == armed.generation {
                lease.deadline = lease.deadline.max(armed.deadline);
            }
        }
        self.lease = Some(lease);
        Ok(())
    }

    /// Tells whether PostgreSQL may be promoted under `generation` now: it is armed, and its fence is not due (L15).
    pub fn may_promote(&self, generation: Generation, now: BootTime) -> Result<(), String> {
        let Some(lease) = self.lease.filter(|lease| lease.generation == generation) else {
            return Err(format!("generation {generation} is not armed here: nothing is promoted under it"));
        };
        if self.is_stopping() || now >= lease.deadline.before(lease.fence_lead) {
            return Err(format!("generation {generation} is being fenced, or its PostgreSQL stopped"));
        }
        Ok(())
    }

    /// Extends the deadline: of the armed generation alone, never backwards, never once its fence has begun.
    pub fn extend(&mut self, generation: Generation, deadline: BootTime) {
        if self.is_fencing() {
            return;
        }
        if let Some(lease) = self.lease.as_mut().filter(|lease| lease.generation == generation) {
            lease.deadline = lease.deadline.max(deadline);
        }
    }

    /// Forgets the deadline of a generation that has ended. Refused while processes are left, which the deadline is for.
    pub fn disarm(&mut self, generation: Generation, alive: bool) -> Result<(), String> {
        match self.lease {
            Some(lease) if lease.generation == generation && alive => {
                Err("PostgreSQL runs under this lease: stop it first".to_owned())
            }
            Some(lease) if lease.generation == generation => {
                self.lease = None;
                Ok(())
            }
            Some(lease) if lease.generation > generation => {
                Err(format!("generation {} is armed, {generation} is older", lease.generation))
            }
            _ => Ok(()),
        }
    }

    /// Begins the fence now, for good. One that has begun goes on as it was.
    pub fn begin_fence(&mut self, now: BootTime, kill_after: Duration) {
        if self.is_fencing() {
            return;
        }
        let generation = self.lease.map(|lease| lease.generation);
        let deadline = self.lease.map_or(now + kill_after, |lease| lease.deadline.min(now + kill_after));
        let kill_at = self.stopping.map_or(deadline, |stop| stop.kill_at.min(deadline));
        self.fenced = self.fenced.max(generation);
        self.fence = Some(FenceStatus { generation, begun: now, complete: None });
        let quit_done = self.stopping.is_some_and(|stop| stop.quit_done);
        self.stopping = Some(Stopping { quit_at: now, kill_at, int_due: false, quit_done });
    }

    /// Begins a stop, or sharpens one that is under way: never does a stop get more time than it had.
    pub fn begin_stop(&mut self, mode: StopMode, now: BootTime) {
        let (quit_at, kill_at, int_due) = match mode {
            StopMode::Fast { limit } => (now + limit, now + limit + QUIT_TO_KILL, true),
            StopMode::Immediate { kill_after } => (now, now + kill_after, false),
        };
        self.stopping = Some(match self.stopping {
            None => Stopping { quit_at, kill_at, int_due, quit_done: false },
            Some(old) => Stopping {
                quit_at: old.quit_at.min(quit_at),
                kill_at: old.kill_at.min(kill_at),
                int_due: old.int_due,
                quit_done: old.quit_done,
            },
        });
    }

    /// Returns what is due at `now`; `alive` tells whether any process of PostgreSQL is left.
    pub fn tick(&mut self, now: BootTime, alive: bool) -> Option<Due> {
        if let Some(lease) = self.lease
            && now >= lease.deadline.before(lease.fence_lead)
        {
            self.begin_fence(now, lease.deadline.since(now));
        }
        let stop = self.stopping.as_mut()?;
        if !alive {
            self.stopping = None;
            if let Some(fence) = self.fence.as_mut().filter(|fence| fence.complete.is_none()) {
                fence.complete = Some(now);
                self.lease = None;
            }
            return None;
        }
        if now >= stop.kill_at {
            return Some(Due::KillAll);
        }
        if now >= stop.quit_at && !stop.quit_done {
            stop.quit_done = true;
            return Some(Due::Quit);
        }
        if stop.int_due {
            stop.int_due = false;
            return Some(Due::StopFast);
        }
        None
    }

    /// Returns the instant at which [`tick`](Self::tick) has something to do next, without a process ending before.
    pub fn next_wake(&self, now: BootTime) -> Option<BootTime> {
        let lease = self.lease.filter(|_| !self.is_fencing()).map(|lease| lease.deadline.before(lease.fence_lead));
        // While a stop goes on, orphans are looked for every few ms: only their absence ends it.
        let stop = self.stopping.map(|_| now + Duration::from_millis(2));
        match (lease, stop) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(generation: u64, deadline_ms: u64) -> Lease {
        Lease {
            generation: Generation(generation),
            deadline: BootTime::from_millis(deadline_ms),
            fence_lead: Duration::from_millis(100),
        }
    }

    const fn at(millis: u64) -> BootTime {
        BootTime::from_millis(millis)
    }

    #[test]
    fn fence_begins_before_the_deadline_and_kills_at_it() {
        let mut state = GuardState::default();
        state.arm(lease(3, 2000), at(0)).unwrap();
        assert_eq!(state.next_wake(at(0)), Some(at(1900)));
        assert_eq!(state.tick(at(1899), true), None);
        assert_eq!(state.tick(at(1900), true), Some(Due::Quit));
        assert_eq!(state.tick(at(1999), true), None);
        assert_eq!(state.tick(at(2000), true), Some(Due::KillAll));
        assert_eq!(state.tick(at(2001), true), Some(Due::KillAll));
        assert_eq!(state.tick(at(2002), false), None);
        assert_eq!(state.fence().and_then(|f| f.complete), Some(at(2002)));
        assert_eq!((state.fenced(), state.lease()), (Some(Generation(3)), None));
    }

    #[test]
    fn only_the_armed_generation_is_extended_and_never_shortened() {
        let mut state = GuardState::default();
        state.arm(lease(3, 2000), at(0)).unwrap();
        state.extend(Generation(2), at(9000));
        state.extend(Generation(4), at(9000));
        state.extend(Generation(3), at(1000));
        assert_eq!(state.lease(), Some(lease(3, 2000)));
        state.extend(Generation(3), at(2500));
        assert_eq!(state.tick(at(2399), true), None);
        assert_eq!(state.tick(at(2400), true), Some(Due::Quit));
        state.extend(Generation(3), at(9000));
        assert_eq!(state.tick(at(2500), true), Some(Due::KillAll));
    }

    #[test]
    fn a_fenced_generation_is_never_armed_again() {
        let mut state = GuardState::default();
        state.arm(lease(3, 2000), at(0)).unwrap();
        state.begin_fence(at(10), Duration::from_millis(50));
        assert!(state.arm(lease(4, 4000), at(20)).is_err(), "not while the fence goes on");
        assert_eq!(state.tick(at(20), false), None);
        assert!(state.arm(lease(3, 4000), at(30)).is_err());
        assert!(state.arm(lease(4, 4000), at(30)).is_ok());
        assert!(state.arm(lease(5, 4000), at(3950)).is_err(), "over already");
    }

    #[test]
    fn only_the_armed_generation_is_promoted_and_not_once_its_fence_is_due() {
        let mut state = GuardState::default();
        assert!(state.may_promote(Generation(3), at(0)).is_err(), "a guard that is new knows of no lease");
        state.arm(lease(3, 2000), at(0)).unwrap();
        assert!(state.may_promote(Generation(2), at(1)).is_err() && state.may_promote(Generation(4), at(1)).is_err());
        assert!(state.may_promote(Generation(3), at(1899)).is_ok());
        assert!(state.may_promote(Generation(3), at(1900)).is_err());
        state.begin_stop(StopMode::Immediate { kill_after: Duration::ZERO }, at(10));
        assert!(state.may_promote(Generation(3), at(11)).is_err());
    }

    #[test]
    fn fence_overtakes_an_orderly_stop_and_a_stop_never_slows_a_fence() {
        let mut state = GuardState::default();
        state.begin_stop(StopMode::Fast { limit: Duration::from_secs(50) }, at(0));
        assert_eq!(state.tick(at(0), true), Some(Due::StopFast));
        assert_eq!(state.tick(at(1), true), None);
        state.begin_fence(at(10), Duration::from_millis(100));
        assert_eq!(state.tick(at(10), true), Some(Due::Quit));
        state.begin_stop(StopMode::Fast { limit: Duration::from_secs(50) }, at(20));
        assert_eq!(state.tick(at(110), true), Some(Due::KillAll));
    }

    #[test]
    fn lease_is_kept_until_postgresql_has_stopped() {
        let mut state = GuardState::default();
        state.arm(lease(3, 2000), at(0)).unwrap();
        assert!(state.disarm(Generation(3), true).is_err());
        assert!(state.disarm(Generation(2), false).is_err());
        assert!(state.disarm(Generation(3), false).is_ok());
        assert_eq!(state.tick(at(5000), true), None);
    }
}
