//! The messages between agent and shim, and their bytes.
//!
//! A message is its kind (`u16`), the request's id (`u64`), then fields: a tag (`u8`), a length (`u16`) and that
//! many bytes. All numbers are little-endian. A reader skips fields that it does not know and refuses kinds that
//! it does not know, so either end may be the older one: an agent speaks to shims that an earlier one started, for
//! as long as their pods live. Kinds and tags are never reused.
//!
//! The first message of a connection is [`Request::Hello`]; whatever version it names, the answer names the
//! shim's own, and both ends then keep to the lower one.

use crate::clock::Stamp;
use crate::record::ExitReport;
use std::path::PathBuf;

mod codec;
#[cfg(test)]
mod tests;

/// The version that this code speaks.
pub const VERSION: u32 = 1;
/// The largest message.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The largest instance name: a DNS label, a dot, and a `u32`.
pub const INSTANCE_NAME_MAX: usize = 63 + 1 + 10;

/// A message that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Ends in the middle of its header or of a field.
    #[error("the message is cut short")]
    Short,
    /// From a newer peer, or from no peer at all.
    #[error("unknown message kind {0}: this end speaks version {VERSION}")]
    UnknownKind(u16),
    /// A field that the kind must have is missing or not of its type.
    #[error("message kind {kind}: field {tag} is missing or malformed")]
    Field {
        /// The message's kind.
        kind: u16,
        /// The field's tag.
        tag: u8,
    },
}

/// What the agent asks. Each is answered by one [`Reply`] with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First on each connection; answered by [`Reply::Hello`].
    Hello {
        /// The highest version that the agent speaks.
        version: u32,
    },
    /// Starts a container; answered by [`Reply::Started`] once it runs.
    Run(Run),
    /// Starts a process in a running container; answered by [`Reply::ExecStarted`]. The packet carries the OCI
    /// process as a readable descriptor, then standard input, output and error unless `tty`.
    Exec {
        /// `web.0`.
        instance: String,
        /// Give it a terminal, whose master comes with the answer.
        tty: bool,
    },
    /// Signals a container's first process.
    Signal {
        /// `web.0`.
        instance: String,
        /// `15`.
        signal: i32,
    },
    /// Signals a process that [`Request::Exec`] started.
    SignalExec {
        /// From [`Reply::ExecStarted`].
        exec: u64,
        /// `15`.
        signal: i32,
    },
    /// A copy of a running container's output from now on; answered by [`Reply::Attached`].
    Attach {
        /// `web.0`.
        instance: String,
    },
    /// Closes the shim's end of a container's standard input (`stdinOnce`). Idempotent.
    CloseStdin {
        /// `web.0`.
        instance: String,
    },
    /// Sets the size of a container's terminal.
    Resize {
        /// `web.0`.
        instance: String,
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// The instances in order of name; answered by [`Reply::State`].
    State {
        /// Only those after this name: the next page.
        after: String,
    },
    /// Drops an exited instance from memory; its record on disk stays.
    Forget {
        /// `web.0`.
        instance: String,
    },
    /// Ends the shim; refused while anything runs.
    Shutdown,
}

/// A container to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// `web.0`: container and attempt.
    pub instance: String,
    /// The OCI bundle.
    pub bundle: PathBuf,
    /// Give it a terminal.
    pub tty: bool,
    /// Keep its standard input open, for [`Request::Attach`].
    pub stdin: bool,
    /// `memory.events` (v2) or `memory.oom_control` (v1) of its cgroup: its `oom_kill` tells of an OOM kill.
    pub oom_events: Option<PathBuf>,
    /// The file whose last 4096 bytes are its termination message.
    pub termination_log: Option<PathBuf>,
}

/// What the shim answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, nothing to tell.
    Done,
    /// Not done.
    Refused(Refusal),
    /// To [`Request::Hello`].
    Hello {
        /// The highest version that the shim speaks.
        version: u32,
    },
    /// To [`Request::Run`].
    Started(Started),
    /// To [`Request::Exec`]; with the terminal's master in the packet if it has one.
    ExecStarted {
        /// Unique in this shim.
        exec: u64,
        /// On the host.
        pid: i32,
    },
    /// To [`Request::Attach`]. The packet carries those of these that are true, in this order.
    Attached {
        /// What it writes to standard output, or to its terminal, from now on.
        stdout: bool,
        /// What it writes to standard error from now on.
        stderr: bool,
        /// Where to write its standard input: a pipe, or the terminal's master.
        stdin: bool,
    },
    /// To [`Request::State`].
    State {
        /// As many as fit one message.
        instances: Vec<InstanceStatus>,
        /// There are others after the last of these.
        more: bool,
    },
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For the program.
    pub cause: Cause,
    /// For people.
    pub message: String,
}

/// The kinds of [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// The message cannot be read, or says something impossible.
    Malformed = 1,
    /// The shim is too old for this request.
    Unknown = 2,
    /// No such instance or exec, or it is not running.
    NotFound = 3,
    /// The instance exists already.
    Exists = 4,
    /// A bound is reached, or something still runs.
    Busy = 5,
    /// The helper failed, said nothing, or took too long.
    Helper = 6,
    /// The kernel refused.
    Kernel = 7,
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its first process, on the host.
    pub pid: i32,
    /// When that process began, in clock ticks since boot (field 22 of `/proc/PID/stat`): with the pid, its identity.
    pub start_ticks: u64,
    /// When the helper reported it.
    pub started: Stamp,
}

/// One line of [`Reply::State`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceStatus {
    /// `web.0`.
    pub instance: String,
    /// What it does.
    pub phase: Phase,
}

/// What an instance does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its helper is at work.
    Starting,
    /// It runs.
    Running(Started),
    /// It ended.
    Exited {
        /// How.
        report: ExitReport,
        /// The record is on disk. Otherwise the disk refuses it, and the shim goes on trying.
        recorded: bool,
    },
}

/// What the shim tells unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container ended; told to every connection.
    Exited {
        /// How.
        report: ExitReport,
        /// As in [`Phase::Exited`].
        recorded: bool,
    },
    /// A process of [`Request::Exec`] ended; told to the connection that started it.
    ExecExited {
        /// From [`Reply::ExecStarted`].
        exec: u64,
        /// 0–255; 128 + signal when killed.
        code: i32,
    },
}

/// What the agent receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The answer to the request of that id.
    Reply(u64, Reply),
    /// Unasked.
    Event(Event),
}

/// The id of a message, if there is as much of it as that.
pub fn id_of(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(2..10)?.try_into().ok()?))
}
