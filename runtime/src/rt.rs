//! `coracle rt …`: the short-lived, single-threaded helper, the only process that calls libcontainer.
//!
//! ```text
//! rt run  STATE ID BUNDLE [--console SOCK]      create and start a container; its init is the shim's child
//! rt exec STATE ID PROCESS [--console SOCK]     one more process in a running container
//! rt seccomp PROFILE|default:CAPS OUT           compile a profile to BPF
//! ```
//! Descriptors 0–2 are the container's stdio; descriptor 3 takes one write: `ok PID` or `err MESSAGE`.
//! It has no logging, no threads and no async runtime: libcontainer changes its caller's cwd, oom score and
//! dumpable flag, and clones it.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};

pub mod exec;
mod run;

pub(crate) use run::{DROP_CAPABILITIES, FILTER};

/// What [`main`] understands.
enum Call {
    Run { state: PathBuf, id: String, bundle: PathBuf, console: Option<PathBuf> },
    Exec { process: PathBuf, console: Option<PathBuf> },
    Seccomp { profile: OsString, out: PathBuf },
}

/// Runs one helper call; the exit code is 0 when it did what it was asked. `args` follow `rt`.
pub fn main(args: &[OsString]) -> i32 {
    let pipe = crate::sys::take_result_pipe();
    let answer = match parse(args) {
        Some(Call::Run { state, id, bundle, console }) => run::run(&state, &id, &bundle, console),
        Some(Call::Exec { process, console }) => exec::exec(&process, console.as_deref()),
        Some(Call::Seccomp { profile, out }) => compile(&profile, &out).map(|()| 0),
        None => {
            Err("usage: coracle rt run STATE ID BUNDLE | exec STATE ID PROCESS | seccomp PROFILE OUT".into())
        }
    };
    let failed = answer.is_err();
    let line = match answer {
        Ok(pid) => format!("ok {pid}"),
        Err(message) => format!("err {}", message.replace('\n', " ")),
    };
    // One write: the shim takes the first read as the whole answer. Without a pipe, a person is asking.
    let told = match pipe {
        Some(mut pipe) => pipe.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(format!("{line}\n").as_bytes()),
    };
    i32::from(failed || told.is_err())
}

fn parse(args: &[OsString]) -> Option<Call> {
    let (plain, console) = match args {
        [plain @ .., flag, socket] if flag == "--console" => (plain, Some(PathBuf::from(socket))),
        plain => (plain, None),
    };
    let word = plain.first()?.to_str()?;
    match (word, plain.get(1..)?) {
        ("run", [state, id, bundle]) => {
            Some(Call::Run { state: state.into(), id: id.to_str()?.into(), bundle: bundle.into(), console })
        }
        ("exec", [_state, _id, process]) => Some(Call::Exec { process: process.into(), console }),
        ("seccomp", [profile, out]) => Some(Call::Seccomp { profile: profile.clone(), out: out.into() }),
        _ => None,
    }
}

/// Writes the program for `default:HEXCAPS`, or for the profile in a file, to `out` by way of a temporary name.
fn compile(profile: &OsStr, out: &Path) -> Result<(), String> {
    let parsed = match profile.to_str().and_then(|p| p.strip_prefix("default:")) {
        Some(capabilities) => {
            let capabilities = u64::from_str_radix(capabilities, 16).map_err(text)?;
            crate::seccomp::runtime_default(capabilities)
        }
        None => {
            let path = Path::new(profile);
            let bytes =
                std::fs::read(path).map_err(|e| format!("seccomp profile {}: {e}", path.display()))?;
            crate::seccomp::parse(path, &bytes).map_err(text)?
        }
    };
    let program = crate::seccomp::compile(&parsed).map_err(text)?;
    // Several containers may start at once, each with a helper that compiles the same profile.
    let temporary = out.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, program).map_err(|e| format!("{}: {e}", temporary.display()))?;
    std::fs::rename(&temporary, out).map_err(|e| format!("{}: {e}", out.display()))
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// An error with its sources, outermost first, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent wrappers repeat themselves.
        if !line.ends_with(&cause_text) {
            line = format!("{line}: {cause_text}");
        }
        source = cause.source();
    }
    line
}
