//! Many seeds on all cores.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Hands the seeds to `each`, the lowest first, on all cores. Where it returns that it has seen enough, none above that seed is
/// begun any more, and all below it are.
pub fn on_all_cores(seeds: Range<u64>, each: impl Fn(u64) -> Enough + Sync) {
    let (next, limit) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end));
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= limit.load(Ordering::Relaxed) {
                        return;
                    }
                    if each(seed) == Enough::Seen {
                        limit.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Whether higher seeds are to be played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enough {
    /// They are not.
    Seen,
    /// They are.
    NotYet,
}

/// Returns the lowest seed below `within` for which `find` finds something, with that.
pub fn lowest<T: Send>(within: u64, find: impl Fn(u64) -> Option<T> + Sync) -> Option<(u64, T)> {
    let lowest: Mutex<Option<(u64, T)>> = Mutex::new(None);
    on_all_cores(0..within, |seed| {
        let Some(found) = find(seed) else { return Enough::NotYet };
        let mut lowest = lowest.lock().expect("no thread panics while it holds what was found");
        if lowest.as_ref().is_none_or(|(former, _)| *former > seed) {
            *lowest = Some((seed, found));
        }
        Enough::Seen
    });
    lowest.into_inner().expect("no thread panics while it holds what was found")
}

#[test]
fn the_lowest_is_found_on_however_many_cores() {
    assert_eq!(lowest(1000, |seed| (seed % 70 == 69).then_some(seed * 2)), Some((69, 138)));
    assert_eq!(lowest(69, |seed| (seed % 70 == 69).then_some(())), None);
}
