//! What a simulation decides in the machine's place, for the calling thread: wall time, random numbers, and writes that fail.
//!
//! Outside of tests there is nothing of it. A simulation runs on one thread under tokio's paused clock; wall time follows that
//! clock, so that all waiting is skipped and every run of a seed is the same.

use jiff::{SignedDuration, Timestamp};
use std::cell::RefCell;
use tokio::time::Instant;

/// A write that is answered as if the storage were not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// After so many writes one is refused, and all that follow.
    Before(u32),
    /// After so many writes one is made, its answer is lost, and all that follow are refused.
    After(u32),
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("less than a usize")
    }

    /// So many times in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

#[derive(Debug)]
struct World {
    random: Random,
    epoch: (Timestamp, Instant),
    fault: Option<Fault>,
    writes: u64,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Begins a simulation on this thread; it ends when the guard is dropped.
pub fn begin(seed: u64) -> Begun {
    let epoch = ("2026-01-01T00:00:00Z".parse().expect("a time"), Instant::now());
    WORLD.set(Some(World { random: Random::new(seed), epoch, fault: None, writes: 0 }));
    Begun
}

/// A simulation under way.
#[derive(Debug)]
pub struct Begun;

impl Drop for Begun {
    fn drop(&mut self) {
        WORLD.set(None);
    }
}

fn with<T>(ask: impl FnOnce(&mut World) -> T) -> Option<T> {
    WORLD.with_borrow_mut(|world| world.as_mut().map(ask))
}

/// Its wall time, where there is one.
pub fn now() -> Option<Timestamp> {
    with(|world| {
        let (epoch, since) = world.epoch;
        epoch + SignedDuration::try_from(since.elapsed()).expect("a simulation is short")
    })
}

/// Its random numbers, where there is one; false elsewhere.
pub fn fill(bytes: &mut [u8]) -> bool {
    let filled = with(|world| bytes.iter_mut().for_each(|byte| *byte = world.random.next().to_le_bytes()[0]));
    filled.is_some()
}

/// From now on; `None` ends it.
pub fn set_fault(fault: Option<Fault>) {
    with(|world| world.fault = fault);
}

/// How many writes were tried.
pub fn writes() -> u64 {
    with(|world| world.writes).unwrap_or_default()
}

/// What becomes of the write that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Done,
    Refused,
    /// It is made, and nobody hears of it.
    Unheard,
}

pub fn fate() -> Fate {
    with(|world| world.writes += 1);
    let decided = with(|world| match world.fault {
        None => Fate::Done,
        Some(Fault::Before(0)) => Fate::Refused,
        Some(Fault::After(0)) => {
            world.fault = Some(Fault::Before(0));
            Fate::Unheard
        }
        Some(Fault::Before(left)) => {
            world.fault = Some(Fault::Before(left - 1));
            Fate::Done
        }
        Some(Fault::After(left)) => {
            world.fault = Some(Fault::After(left - 1));
            Fate::Done
        }
    });
    decided.unwrap_or(Fate::Done)
}
