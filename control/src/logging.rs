//! Logs: one line each on stderr, or structured to journald when systemd started us.

use std::io::IsTerminal;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// Starts logging; `CORACLE_LOG` takes a tracing filter such as `debug` or `coracle_control=debug`.
///
/// Falls back to stderr when journald cannot be reached: a log that goes somewhere beats none.
pub fn start() {
    let asked: Option<Targets> = std::env::var("CORACLE_LOG").ok().and_then(|text| text.parse().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let registry = tracing_subscriber::registry().with(filter);
    // systemd.exec(5): set when stdout or stderr is connected to the journal.
    let journald = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journald {
        Some(layer) => registry.with(layer.with_syslog_identifier("coracle-control".into())).init(),
        None => {
            let colours = std::io::stderr().is_terminal();
            registry
                .with(tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr))
                .init();
        }
    }
}
