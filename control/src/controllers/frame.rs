//! How a controller runs: keys from its queue, several at once, each until it is as it should be.
//!
//! ```text
//! follower ── concerns(change) ──► Queue ──► reconcile(key) ──► Done | After(time) | failed: later, with back-off
//! ```

use super::cache::{Cache, Change, Listener};
use super::key::Key;
use super::queue::Queue;
use coracle_api::status::{Reason, StatusError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Keys of one controller that are worked on at once.
const WORKERS: usize = 5;

/// What is to be done after a look at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until something changes.
    Done,
    /// Look again then, whatever happens.
    After(Duration),
}

impl Next {
    /// The earlier of two.
    pub fn earlier(self, other: Next) -> Next {
        match (self, other) {
            (Next::After(a), Next::After(b)) => Next::After(a.min(b)),
            (Next::Done, next) | (next, Next::Done) => next,
        }
    }

    /// At a time that may be none.
    pub fn at(wait: Option<Duration>) -> Next {
        wait.map_or(Next::Done, Next::After)
    }
}

/// A controller. Level-triggered: it is told where to look, never what happened.
pub trait Controller: Send + Sync + 'static {
    /// In logs and metrics.
    const NAME: &'static str;

    /// The keys that a change concerns. Called for every change; quick, and never waits.
    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key>;

    /// Brings what the key names closer to what is asked. Idempotent.
    fn reconcile(&self, key: &Key) -> impl Future<Output = Result<Next, StatusError>> + Send;
}

/// A controller that is to run: its ear, and its work.
pub struct Prepared {
    /// Its name.
    pub name: &'static str,
    /// To be told of changes.
    pub listener: Listener,
    /// Runs for ever.
    pub work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    /// For metrics.
    pub queue: Arc<Queue>,
}

/// Makes the queue of a controller, and joins both.
pub fn prepare<C: Controller>(controller: C, cache: Arc<Cache>) -> Prepared {
    let controller = Arc::new(controller);
    let queue = Arc::new(Queue::default());
    let (ear, inbox) = (controller.clone(), queue.clone());
    let listener: Listener = Box::new(move |change| {
        for key in ear.concerns(change, &cache) {
            inbox.add(key);
        }
    });
    let work = Box::pin(work(controller, queue.clone()));
    Prepared { name: C::NAME, listener, work, queue }
}

async fn work<C: Controller>(controller: Arc<C>, queue: Arc<Queue>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            key = queue.next(), if running.len() < WORKERS => {
                let controller = controller.clone();
                running.push(async move {
                    let outcome = controller.reconcile(&key).await;
                    (key, outcome)
                });
            }
            Some((key, outcome)) = running.next(), if !running.is_empty() => {
                match outcome {
                    Ok(next) => {
                        queue.done(&key, false);
                        if let Next::After(wait) = next {
                            queue.add_after(key, wait);
                        }
                    }
                    Err(error) => {
                        // Somebody else wrote: that is how optimistic concurrency works.
                        if matches!(error.reason, Reason::Conflict | Reason::AlreadyExists | Reason::NotFound) {
                            tracing::debug!(controller = C::NAME, %key, %error, "to be tried again");
                        } else {
                            tracing::warn!(controller = C::NAME, %key, %error, "to be tried again");
                        }
                        queue.done(&key, true);
                    }
                }
            }
        }
    }
}
