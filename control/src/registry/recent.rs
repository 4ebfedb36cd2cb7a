//! Objects that were read from storage a moment ago: a thousand watches of one kind read each change once.
//!
//! A fixed number of places, each holding the last object whose key and version fell on it; what is not found is read
//! again. Nothing is ever wrong here: an object of a key, a version and a kind does not change.

use super::{Resource, load};
use crate::storage::{Entry, Revision};
use coracle_api::status::StatusError;
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// Objects that are kept, and the size beyond which one is not: a megabyte or two in all.
const PLACES: usize = 64;
const VALUE_BYTES_MAX: usize = 16 << 10;

#[derive(Debug)]
struct Place {
    resource: &'static Resource,
    key: Arc<str>,
    modified: Revision,
    object: Arc<Value>,
}

/// The places.
#[derive(Debug)]
pub(super) struct Recent(Mutex<Vec<Option<Place>>>);

impl Recent {
    pub fn new() -> Recent {
        Recent(Mutex::new((0..PLACES).map(|_| None).collect()))
    }

    /// The object of an entry.
    pub fn object(&self, resource: &'static Resource, entry: &Entry) -> Result<Arc<Value>, StatusError> {
        let mut hasher = DefaultHasher::new();
        (&entry.key, entry.modified, resource.version).hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % PLACES as u64).unwrap_or_default();
        let same = |place: &&Place| {
            std::ptr::eq(place.resource, resource)
                && place.modified == entry.modified
                && place.key == entry.key
        };
        // The lock is held for a look and a copy of a pointer; reading happens outside.
        let found = self.lock()[index].as_ref().filter(same).map(|place| place.object.clone());
        if let Some(object) = found {
            return Ok(object);
        }
        let object = Arc::new(load(resource, entry)?);
        if entry.value.len() <= VALUE_BYTES_MAX {
            let place =
                Place { resource, key: entry.key.clone(), modified: entry.modified, object: object.clone() };
            self.lock()[index] = Some(place);
        }
        Ok(object)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Place>>> {
        // A place is replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
