//! Counters, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Verb and code pairs that are counted; verbs and codes are few, this is a backstop.
const SERIES_MAX: usize = 256;

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    watches: AtomicU64,
}

impl Metrics {
    /// A request was answered.
    pub fn answered(&self, verb: &'static str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() < SERIES_MAX || requests.contains_key(&(verb, code)) {
            *requests.entry((verb, code)).or_default() += 1;
        }
    }

    /// A watch began.
    pub fn watch_began(&self) {
        self.watches.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch ended.
    pub fn watch_ended(&self) {
        self.watches.fetch_sub(1, Ordering::Relaxed);
    }

    /// The Prometheus text format.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "# HELP apiserver_request_total Requests answered, by verb and code.\n# TYPE apiserver_request_total counter\n",
        );
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((verb, code), count) in requests {
            writeln!(text, "apiserver_request_total{{verb=\"{verb}\",code=\"{code}\"}} {count}")
                .expect("a String takes all");
        }
        let watches = self.watches.load(Ordering::Relaxed);
        write!(
            text,
            "# HELP apiserver_longrunning_requests Watches under way.\n# TYPE apiserver_longrunning_requests gauge\napiserver_longrunning_requests{{verb=\"WATCH\"}} {watches}\n"
        )
        .expect("a String takes all");
        text
    }
}
