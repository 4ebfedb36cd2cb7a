//! What one leader knows and does: cache, controllers and scheduler, whose turns the simulation takes.

use super::GRACE;
use crate::controllers::cache::{self, Cache, Change, Listener};
use crate::controllers::client::Client;
use crate::controllers::events;
use crate::controllers::frame::{Controller, Next};
use crate::controllers::key::Key;
use crate::controllers::{Settings, Takes, controllers};
use crate::registry::Registry;
use crate::scheduler::run::Scheduler;
use crate::simulated;
use crate::storage::{Storage, Watch};
use crate::tunnel::Dialer;
use crate::usage::Boards;
use coracle_api::status::StatusError;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

type Work<'a> = Pin<Box<dyn Future<Output = Result<Next, StatusError>> + 'a>>;

/// A [`Controller`] as one of many.
pub(super) trait Driven: Send + Sync {
    fn name(&self) -> &'static str;
    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key>;
    fn reconcile<'a>(&'a self, key: &'a Key) -> Work<'a>;
}

impl<C: Controller> Driven for C {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        Controller::concerns(self, change, cache)
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> Work<'a> {
        Box::pin(Controller::reconcile(self, key))
    }
}

/// Takes in the controllers that a term has.
#[derive(Default)]
struct Collected(Vec<Arc<dyn Driven>>);

impl Takes for Collected {
    fn add<C: Controller>(&mut self, controller: C) {
        self.0.push(Arc::new(controller));
    }
}

/// A key of one of the controllers.
pub(super) type Wanted = (usize, Key);

/// What one leader knows.
pub(super) struct Term {
    cache: Arc<Cache>,
    pub controllers: Vec<Arc<dyn Driven>>,
    listeners: Vec<Listener>,
    heard: Arc<Mutex<Vec<Wanted>>>,
    /// What is to be looked at, when, and how often that failed.
    due: BTreeMap<Wanted, (Instant, u32)>,
    scheduler: Scheduler,
    pub watch: Watch,
    /// Never run: what is said is lost.
    _events: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Term {
    pub async fn begin(registry: &Registry) -> Term {
        let cache = Arc::new(Cache::new(registry.clone()));
        let client = Client::new(registry.clone(), cache.clone());
        let (recorder, events) = events::recorder(registry.clone());
        let mut collected = Collected::default();
        let settings = Settings { node_monitor_grace: GRACE, ..Settings::default() };
        controllers(&client, &recorder, &settings, &nowhere(), &mut collected);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (ear, scheduler) = Scheduler::new(&client, recorder.named("default-scheduler"));
        let mut listeners = vec![ear];
        for (index, controller) in collected.0.iter().enumerate() {
            let (controller, cache, heard) = (controller.clone(), cache.clone(), heard.clone());
            listeners.push(Box::new(move |change: &Change| {
                let keys = controller.concerns(change, &cache);
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.extend(keys.into_iter().map(|key| (index, key)));
            }));
        }
        let watch = cache::list(&cache, &listeners).await.expect("the storage is there");
        let due = BTreeMap::new();
        let mut term = Term {
            cache,
            controllers: collected.0,
            listeners,
            heard,
            due,
            scheduler,
            watch,
            _events: Box::pin(events),
        };
        term.hear();
        term
    }

    fn hear(&mut self) {
        let now = Instant::now();
        for wanted in self.heard.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.due.entry(wanted).and_modify(|(at, _)| *at = now).or_insert((now, 0));
        }
    }

    /// Takes in what was written up to now.
    pub async fn catch_up(&mut self, storage: &Storage) {
        let revision = storage.revision().await.expect("the storage is there");
        while self.watch.position() < revision {
            cache::take(&self.cache, &self.listeners, &mut self.watch).await.expect("the history is long");
        }
        self.hear();
    }

    /// The watch is lost, and begun anew by a list.
    pub async fn drop_watch(&mut self) {
        self.watch = cache::list(&self.cache, &self.listeners).await.expect("the storage is there");
        self.hear();
    }

    pub fn ready(&self) -> Vec<Wanted> {
        let now = Instant::now();
        self.due.iter().filter(|(_, (at, _))| *at <= now).map(|(wanted, _)| wanted.clone()).collect()
    }

    /// One look; whether it failed. Who wrote has seen all that was written: how much of it while it wrote would be the
    /// storage thread's choice.
    pub async fn look(&mut self, wanted: Wanted, storage: &Storage) -> Result<(), StatusError> {
        let before = simulated::writes();
        let outcome = self.reconcile(wanted).await;
        if simulated::writes() != before {
            self.catch_up(storage).await;
        }
        outcome
    }

    async fn reconcile(&mut self, wanted: Wanted) -> Result<(), StatusError> {
        let (_, failures) = self.due.remove(&wanted).unwrap_or((Instant::now(), 0));
        let controller = self.controllers[wanted.0].clone();
        let (cache, listeners, watch) = (&self.cache, &self.listeners, &mut self.watch);
        // What is written comes back while it is being waited for.
        let outcome = tokio::select! {
            biased;
            outcome = controller.reconcile(&wanted.1) => outcome,
            error = follow(cache, listeners, watch) => panic!("the watch ended: {error}"),
        };
        match outcome {
            Ok(Next::Done) => {}
            Ok(Next::After(wait)) => self.delay(wanted, Instant::now() + wait, 0),
            Err(error) => {
                let wait = Duration::from_millis(5) * (1 << failures.min(16));
                self.delay(wanted, Instant::now() + wait, failures + 1);
                self.hear();
                return Err(error);
            }
        }
        self.hear();
        Ok(())
    }

    fn delay(&mut self, wanted: Wanted, at: Instant, failures: u32) {
        let entry = self.due.entry(wanted).or_insert((at, failures));
        *entry = (entry.0.min(at), failures);
    }

    /// The scheduler's turn; whether it did anything.
    pub async fn schedule(&mut self, storage: &Storage) -> bool {
        let before = simulated::writes();
        let (cache, listeners, watch) = (&self.cache, &self.listeners, &mut self.watch);
        let did = tokio::select! {
            biased;
            did = self.scheduler.step() => did,
            error = follow(cache, listeners, watch) => panic!("the watch ended: {error}"),
        };
        self.hear();
        if simulated::writes() != before {
            self.catch_up(storage).await;
        }
        did
    }
}

async fn follow(cache: &Cache, listeners: &[Listener], watch: &mut Watch) -> crate::storage::StorageError {
    loop {
        if let Err(error) = cache::take(cache, listeners, watch).await {
            return error;
        }
    }
}

/// The way to boards, none of which is asked for figures.
fn nowhere() -> Arc<Boards> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Arc::new(Boards::new(Arc::new(Dialer::new(Arc::new(tls)))))
}
