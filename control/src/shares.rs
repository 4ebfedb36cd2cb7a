//! How much of what all share one of them can have: places, counted by whose they are.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Places that are taken, by whoever has them.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    counts: Mutex<HashMap<K, usize>>,
    each_max: usize,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// Nobody has more than so many.
    pub(crate) fn new(each_max: usize) -> Arc<Shares<K>> {
        Arc::new(Shares { counts: Mutex::default(), each_max })
    }

    /// A place for one more, until it is dropped; `None` for who has as many as there are for each.
    pub(crate) fn place(self: &Arc<Shares<K>>, whose: K) -> Option<Place<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(whose.clone()).or_default();
        (*count < self.each_max).then(|| {
            *count += 1;
            Place { shares: self.clone(), whose }
        })
    }

    /// Whether nobody has any, and nothing is kept of who had.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.counts.lock().expect("no panic").is_empty()
    }
}

/// Held by what takes it.
#[derive(Debug)]
pub(crate) struct Place<K: Clone + Eq + Hash> {
    shares: Arc<Shares<K>>,
    whose: K,
}

impl<K: Clone + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.shares.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.whose);
            }
        }
    }
}
