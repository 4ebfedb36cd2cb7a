//! `coracle`: the node agent, its helper and its command line, in one binary.
//!
//! The first thing decided is whether this process is a helper (`coracle rt …`): those must stay single-threaded
//! and small, so they come before any runtime, parser or logger.

mod agent;
mod cli;
mod cluster;
mod config;
mod doctor;
mod engine;
mod events;
mod exit;
mod logging;
mod node_api;
mod notify;
mod pressure;
mod record;
mod request;
mod sources;
mod storage;

use clap::Parser;
use cli::{Cli, Command};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "rt") {
        return exit_code(coracle_runtime::rt::main(&arguments[1..]));
    }
    let cli = Cli::parse();
    let is_client =
        !matches!(cli.command, Command::Agent { .. } | Command::Doctor { .. } | Command::Teardown { .. });
    let outcome = match &cli.command {
        Command::Agent { config } => agent::main(&cli.place, config.as_deref()).map(|()| 0),
        Command::StoreCheck { dir } => Ok(coracle_store::check(dir)),
        Command::Doctor { config } => doctor::main(&cli.place, config.as_deref()).map(|()| 0),
        Command::Teardown { config } => agent::teardown(&cli.place, config.as_deref()).map(|()| 0),
        _ => runtime().and_then(|runtime| {
            let outcome = runtime.block_on(cli::run(cli));
            // Not waited for: a thread may still be reading a terminal that nobody types at.
            runtime.shutdown_background();
            outcome
        }),
    };
    match outcome {
        Ok(code) => exit_code(code),
        // `coracle logs | head` is no failure worth a word.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone there is nobody to tell.
            drop(writeln!(std::io::stderr(), "{}", told(&error, is_client)));
            ExitCode::from(exit::code(&error))
        }
    }
}

/// An error with its causes in one line: each but once, since a message may hold its cause's already, and without
/// control characters, since an archive or a registry may have had a hand in it. The command line speaks as kubectl.
fn told(error: &anyhow::Error, is_client: bool) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match is_client {
        true if error.downcast_ref::<cli::ServerError>().is_some() => text,
        true => format!("error: {text}"),
        false => format!("coracle: {text}"),
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// One thread for everything that waits, a few for what blocks: memory is short on a board.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    /// Threads for disk, mounts and netlink. Ten pods starting at once keep two cores busy with four.
    const BLOCKING_THREADS_MAX: usize = 4;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(512 * 1024)
        .build()?)
}
