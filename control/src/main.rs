//! `coracle-control`: the control plane, and the commands that need one running.
//!
//! `serve` opens the storage before any other thread runs; every other command is a client of the API that `serve`
//! serves, with the kubeconfig that it wrote, and needs no rights on the store.

mod cli;
mod config;
mod logging;
mod serve;

use clap::Parser;
use cli::{Cli, Command};
use config::ConfigError;
use std::io::Write;
use std::process::ExitCode;

/// As the agent's: see `coracle --help`.
const CONFIGURATION: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Serve(serve) => serve::main(&serve).map(|()| ExitCode::SUCCESS),
        command => cli::run(command),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone there is nobody to tell.
            drop(writeln!(std::io::stderr(), "error: {}", told(&error)));
            let misconfigured = error.chain().any(|cause| cause.is::<ConfigError>());
            ExitCode::from(if misconfigured { CONFIGURATION } else { 1 })
        }
    }
}

/// An error with its causes in one line, each but once: a message may hold its cause's already.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
