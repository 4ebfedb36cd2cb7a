//! One process that the shim is the parent of: a container's init, or one that was executed in a container.
//!
//! ```text
//!            helper says "ok PID"          waitpid
//!  Starting ──────────────────────► Running ───────► Exited (kept until it is forgotten)
//!     └── helper says "err …", dies, or takes too long ──► refused, and nothing is kept
//! ```

use crate::clock::Stamp;
use crate::cri::{Log, Stream};
use crate::record::{ExitReport, MESSAGE_BYTES_MAX};
use crate::sys::{self, Status};
use crate::wire::{Run, Started};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes read at once from a container.
const CHUNK_BYTES: usize = 16 * 1024;
/// Bytes drained when a container has ended: more than a pipe holds, less than a runaway grandchild writes.
const DRAIN_BYTES_MAX: usize = 1 << 20;
/// How long a helper may take.
pub(crate) const HELPER_DEADLINE: Duration = Duration::from_secs(60);

/// Which connection asked, and under which id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) connection: u64,
    pub(crate) id: u64,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Starting { helper: i32, result: File, asker: Asker, deadline: Duration },
    Running(Started),
    Exited { report: Box<ExitReport>, recorded: bool },
}

#[derive(Debug)]
pub(crate) enum Role {
    Container,
    /// Told to the connection that asked for it.
    Exec {
        exec: u64,
        connection: u64,
    },
}

/// Copies of a container's output for somebody who watches.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
}

#[derive(Debug)]
pub(crate) struct Child {
    /// `web.0`; for an exec the instance that it runs in.
    pub(crate) instance: String,
    pub(crate) role: Role,
    pub(crate) phase: Phase,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
    /// The shim's end of standard input, if it is kept open.
    pub(crate) stdin: Option<File>,
    /// Where the helper sends the terminal's master to; removed once it came.
    pub(crate) console: Option<(UnixListener, PathBuf)>,
    pub(crate) terminal: Option<File>,
    pub(crate) log: Option<Log>,
    pub(crate) attached: Vec<Attached>,
    oom_events: Option<PathBuf>,
    termination_log: Option<PathBuf>,
}

impl Child {
    pub(crate) fn new(instance: String, role: Role, phase: Phase) -> Child {
        Child {
            instance,
            role,
            phase,
            stdout: None,
            stderr: None,
            stdin: None,
            console: None,
            terminal: None,
            log: None,
            attached: Vec::new(),
            oom_events: None,
            termination_log: None,
        }
    }

    /// Where to look once it has ended.
    pub(crate) fn watch(&mut self, run: Run) {
        self.oom_events = run.oom_events;
        self.termination_log = run.termination_log;
    }

    pub(crate) fn is_container(&self) -> bool {
        matches!(self.role, Role::Container)
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        match &self.phase {
            Phase::Running(started) => Some(started.pid),
            Phase::Starting { .. } | Phase::Exited { .. } => None,
        }
    }

    /// Reads what one stream holds now, up to one chunk. `false` at its end.
    pub(crate) fn pump(&mut self, stream: Stream, now: &Stamp) -> bool {
        self.pump_some(stream, now).is_some_and(|bytes| bytes > 0 || self.source(stream).is_some())
    }

    /// Bytes read; `None` at the end of the stream, `Some(0)` when nothing is there now.
    fn pump_some(&mut self, stream: Stream, now: &Stamp) -> Option<usize> {
        let mut chunk = [0; CHUNK_BYTES];
        let source = self.source(stream)?;
        match (&*source).read(&mut chunk) {
            Ok(bytes) if bytes > 0 => {
                if let Some(log) = &mut self.log {
                    log.append(stream, &chunk[..bytes], now);
                }
                self.copy(stream, &chunk[..bytes]);
                Some(bytes)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Some(0)
            }
            // A terminal whose last holder is gone answers EIO: its end.
            Ok(_) | Err(_) => {
                match stream {
                    Stream::Stdout if self.terminal.is_some() => self.terminal = None,
                    Stream::Stdout => self.stdout = None,
                    Stream::Stderr => self.stderr = None,
                }
                None
            }
        }
    }

    fn source(&self, stream: Stream) -> Option<&File> {
        match stream {
            Stream::Stdout if self.is_container() => self.terminal.as_ref().or(self.stdout.as_ref()),
            Stream::Stdout => None,
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// To everybody attached; who does not keep up is let go rather than waited for.
    fn copy(&mut self, stream: Stream, chunk: &[u8]) {
        self.attached.retain_mut(|copy| {
            let end = match stream {
                Stream::Stdout => &mut copy.stdout,
                Stream::Stderr => &mut copy.stderr,
            };
            let Some(file) = end else { return true };
            matches!(file.write(chunk), Ok(bytes) if bytes == chunk.len())
        });
    }

    /// Everything that its pipes hold now, then the log's last words. Grandchildren may keep the pipes open: what
    /// they write later still goes to the log.
    pub(crate) fn drain(&mut self, now: &Stamp) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut total = 0;
            while total < DRAIN_BYTES_MAX {
                match self.pump_some(stream, now) {
                    Some(bytes) if bytes > 0 => total += bytes,
                    _ => break,
                }
            }
        }
        if let Some(log) = &mut self.log {
            log.finish(now);
            log.close();
        }
    }

    /// How it ended, from its wait status and what its cgroup and its termination log say.
    pub(crate) fn report(&self, status: Status, started: &Started, now: Stamp, boot_id: &str) -> ExitReport {
        let (code, signal) = match status {
            Status::Code(code) => (code, None),
            Status::Signal(signal) => (128 + signal, Some(signal)),
        };
        let oom = || self.oom_events.as_deref().is_some_and(saw_oom_kill);
        ExitReport {
            instance: self.instance.clone(),
            pid: started.pid,
            code,
            signal,
            oom_killed: code != 0 && oom(),
            started: started.started,
            finished: now,
            boot_id: boot_id.into(),
            message: self.termination_log.as_deref().map(last_words).unwrap_or_default(),
        }
    }

    /// Lets go of everything but the report.
    pub(crate) fn close(&mut self) {
        self.stdin = None;
        self.attached.clear();
        self.console = None;
    }
}

/// `oom_kill N` with N above 0, in `memory.events` and `memory.oom_control` alike.
fn saw_oom_kill(path: &Path) -> bool {
    // A cgroup that is gone cannot be asked; its container then just failed.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
}

/// The last bytes of the termination log. The container owns that file, so it may hold anything, or be anything.
fn last_words(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let mut file = File::options().read(true).custom_flags(flags).open(path)?;
        let length = file.metadata().map(|m| if m.is_file() { m.len() } else { 0 })?;
        file.seek(SeekFrom::Start(length.saturating_sub(MESSAGE_BYTES_MAX as u64)))?;
        let mut bytes = Vec::new();
        file.take(MESSAGE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // No message is the usual case.
    let bytes = read().unwrap_or_default();
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    // Replacement characters may have made it longer.
    while text.len() > MESSAGE_BYTES_MAX {
        text.pop();
    }
    text
}

/// Clock ticks since boot at which `pid` began: field 22 of `/proc/PID/stat`.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A pipe whose reading end does not block.
pub(crate) fn output_pipe() -> io::Result<(File, File)> {
    let (read, write) = io::pipe()?;
    sys::set_nonblocking(read.as_fd())?;
    Ok((std::os::fd::OwnedFd::from(read).into(), std::os::fd::OwnedFd::from(write).into()))
}
