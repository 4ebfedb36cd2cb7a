//! The bytes of the messages: kinds, tags, and one encoder and decoder for each direction.

use super::{Cause, Event, InstanceStatus, Message, Phase, Refusal, Reply, Request, Run, Started, WireError};
use crate::clock::Stamp;
use crate::record::ExitReport;
use std::path::PathBuf;
use std::time::Duration;

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const RUN: u16 = 2;
    pub(super) const EXEC: u16 = 3;
    pub(super) const SIGNAL: u16 = 4;
    pub(super) const SIGNAL_EXEC: u16 = 5;
    pub(super) const ATTACH: u16 = 6;
    pub(super) const CLOSE_STDIN: u16 = 7;
    pub(super) const RESIZE: u16 = 8;
    pub(super) const STATE: u16 = 9;
    pub(super) const FORGET: u16 = 10;
    pub(super) const SHUTDOWN: u16 = 11;
    /// Replies: a request's kind says what is asked, these what is answered.
    pub(super) const DONE: u16 = 128;
    pub(super) const REFUSED: u16 = 129;
    pub(super) const HELLO_REPLY: u16 = 130;
    pub(super) const STARTED: u16 = 131;
    pub(super) const EXEC_STARTED: u16 = 132;
    pub(super) const ATTACHED: u16 = 133;
    pub(super) const STATE_REPLY: u16 = 134;
    pub(super) const EXITED: u16 = 192;
    pub(super) const EXEC_EXITED: u16 = 193;
}

mod tag {
    pub(super) const VERSION: u8 = 1;
    pub(super) const INSTANCE: u8 = 2;
    pub(super) const BUNDLE: u8 = 3;
    pub(super) const TTY: u8 = 4;
    pub(super) const STDIN: u8 = 5;
    pub(super) const OOM_EVENTS: u8 = 6;
    pub(super) const TERMINATION_LOG: u8 = 7;
    pub(super) const SIGNAL: u8 = 8;
    pub(super) const EXEC: u8 = 9;
    pub(super) const ROWS: u8 = 10;
    pub(super) const COLUMNS: u8 = 11;
    pub(super) const AFTER: u8 = 12;
    pub(super) const CAUSE: u8 = 13;
    pub(super) const MESSAGE: u8 = 14;
    pub(super) const PID: u8 = 15;
    pub(super) const START_TICKS: u8 = 16;
    pub(super) const WALL_SECONDS: u8 = 17;
    pub(super) const WALL_NANOSECONDS: u8 = 18;
    pub(super) const BOOTTIME_NANOSECONDS: u8 = 19;
    pub(super) const STDOUT: u8 = 20;
    pub(super) const STDERR: u8 = 21;
    pub(super) const STATUS: u8 = 22;
    pub(super) const MORE: u8 = 23;
    pub(super) const REPORT: u8 = 24;
    pub(super) const RECORDED: u8 = 25;
    pub(super) const CODE: u8 = 26;
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u16, id: u64) -> Writer {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
        Writer(bytes)
    }

    /// A value beyond what a field holds leaves the field out, and the reader finds it missing.
    fn bytes(mut self, tag: u8, value: &[u8]) -> Writer {
        if let Ok(length) = u16::try_from(value.len()) {
            self.0.push(tag);
            self.0.extend_from_slice(&length.to_le_bytes());
            self.0.extend_from_slice(value);
        }
        self
    }

    fn number(self, tag: u8, value: u64) -> Writer {
        self.bytes(tag, &value.to_le_bytes())
    }

    fn signed(self, tag: u8, value: i64) -> Writer {
        self.bytes(tag, &value.to_le_bytes())
    }

    fn flag(self, tag: u8, value: bool) -> Writer {
        if value { self.bytes(tag, &[1]) } else { self }
    }

    fn path(self, tag: u8, value: Option<&PathBuf>) -> Writer {
        match value {
            Some(path) => self.bytes(tag, path.as_os_str().as_encoded_bytes()),
            None => self,
        }
    }

    fn started(self, started: &Started) -> Writer {
        let nanoseconds = u64::try_from(started.started.boottime.as_nanos()).unwrap_or(u64::MAX);
        self.signed(tag::PID, i64::from(started.pid))
            .number(tag::START_TICKS, started.start_ticks)
            .signed(tag::WALL_SECONDS, started.started.wall_seconds)
            .number(tag::WALL_NANOSECONDS, u64::from(started.started.wall_nanoseconds))
            .number(tag::BOOTTIME_NANOSECONDS, nanoseconds)
    }

    fn report(self, report: &ExitReport, recorded: bool) -> Writer {
        self.bytes(tag::REPORT, report.to_text().as_bytes()).flag(tag::RECORDED, recorded)
    }
}

/// The fields of one message, each of them whole.
struct Fields<'a> {
    kind: u16,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(kind: u16, bytes: &'a [u8]) -> Result<Fields<'a>, WireError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = split_field(rest).ok_or(WireError::Short)?.2;
        }
        Ok(Fields { kind, bytes })
    }

    fn iter(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (tag, value, after) = split_field(rest)?;
            rest = after;
            Some((tag, value))
        })
    }

    fn find(&self, tag: u8) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == tag).map(|(_, value)| value)
    }

    fn bad(&self, tag: u8) -> WireError {
        WireError::Field { kind: self.kind, tag }
    }

    fn number(&self, tag: u8) -> Result<u64, WireError> {
        let value = self.find(tag).and_then(|value| value.try_into().ok());
        value.map(u64::from_le_bytes).ok_or_else(|| self.bad(tag))
    }

    /// A number that its type holds.
    fn small<T: TryFrom<u64>>(&self, tag: u8) -> Result<T, WireError> {
        T::try_from(self.number(tag)?).map_err(|_| self.bad(tag))
    }

    fn signed(&self, tag: u8) -> Result<i64, WireError> {
        self.number(tag).map(u64::cast_signed)
    }

    fn int(&self, tag: u8) -> Result<i32, WireError> {
        i32::try_from(self.signed(tag)?).map_err(|_| self.bad(tag))
    }

    fn flag(&self, tag: u8) -> bool {
        self.find(tag) == Some(&[1])
    }

    fn text(&self, tag: u8) -> Result<String, WireError> {
        let value = self.find(tag).and_then(|value| std::str::from_utf8(value).ok());
        value.map(Into::into).ok_or_else(|| self.bad(tag))
    }

    /// A path that can be given to the kernel: not empty, no NUL.
    fn path(&self, tag: u8) -> Result<Option<PathBuf>, WireError> {
        use std::os::unix::ffi::OsStrExt;
        match self.find(tag) {
            None => Ok(None),
            Some(bytes) if bytes.is_empty() || bytes.contains(&0) => Err(self.bad(tag)),
            Some(bytes) => Ok(Some(std::ffi::OsStr::from_bytes(bytes).into())),
        }
    }

    fn started(&self) -> Result<Started, WireError> {
        Ok(Started {
            pid: self.int(tag::PID)?,
            start_ticks: self.number(tag::START_TICKS)?,
            started: Stamp {
                wall_seconds: self.signed(tag::WALL_SECONDS)?,
                wall_nanoseconds: self.small(tag::WALL_NANOSECONDS)?,
                boottime: Duration::from_nanos(self.number(tag::BOOTTIME_NANOSECONDS)?),
            },
        })
    }

    fn report(&self) -> Result<(ExitReport, bool), WireError> {
        let text = self.text(tag::REPORT)?;
        let report = ExitReport::parse(&text).map_err(|_| self.bad(tag::REPORT))?;
        Ok((report, self.flag(tag::RECORDED)))
    }
}

fn split_field(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    Some((*tag, value, rest))
}

fn split_header(bytes: &[u8]) -> Result<(u64, Fields<'_>), WireError> {
    let (kind, rest) = bytes.split_first_chunk::<2>().ok_or(WireError::Short)?;
    let (id, rest) = rest.split_first_chunk::<8>().ok_or(WireError::Short)?;
    Ok((u64::from_le_bytes(*id), Fields::new(u16::from_le_bytes(*kind), rest)?))
}

impl Request {
    /// The bytes of this request under `id`.
    pub fn encode(&self, id: u64) -> Vec<u8> {
        let on = |kind, instance: &str| Writer::new(kind, id).bytes(tag::INSTANCE, instance.as_bytes());
        match self {
            Request::Hello { version } => {
                Writer::new(kind::HELLO, id).number(tag::VERSION, u64::from(*version))
            }
            Request::Run(run) => on(kind::RUN, &run.instance)
                .path(tag::BUNDLE, Some(&run.bundle))
                .flag(tag::TTY, run.tty)
                .flag(tag::STDIN, run.stdin)
                .path(tag::OOM_EVENTS, run.oom_events.as_ref())
                .path(tag::TERMINATION_LOG, run.termination_log.as_ref()),
            Request::Exec { instance, tty } => on(kind::EXEC, instance).flag(tag::TTY, *tty),
            Request::Signal { instance, signal } => {
                on(kind::SIGNAL, instance).signed(tag::SIGNAL, i64::from(*signal))
            }
            Request::SignalExec { exec, signal } => Writer::new(kind::SIGNAL_EXEC, id)
                .number(tag::EXEC, *exec)
                .signed(tag::SIGNAL, i64::from(*signal)),
            Request::Attach { instance } => on(kind::ATTACH, instance),
            Request::CloseStdin { instance } => on(kind::CLOSE_STDIN, instance),
            Request::Resize { instance, rows, columns } => on(kind::RESIZE, instance)
                .number(tag::ROWS, u64::from(*rows))
                .number(tag::COLUMNS, u64::from(*columns)),
            Request::State { after } => Writer::new(kind::STATE, id).bytes(tag::AFTER, after.as_bytes()),
            Request::Forget { instance } => on(kind::FORGET, instance),
            Request::Shutdown => Writer::new(kind::SHUTDOWN, id),
        }
        .0
    }

    /// Reads a request and its id.
    ///
    /// # Errors
    /// [`WireError`]; [`id_of`] then tells whom to answer.
    pub fn decode(bytes: &[u8]) -> Result<(u64, Request), WireError> {
        let (id, fields) = split_header(bytes)?;
        let instance = || fields.text(tag::INSTANCE);
        let request = match fields.kind {
            kind::HELLO => Request::Hello { version: fields.small(tag::VERSION)? },
            kind::RUN => Request::Run(Run {
                instance: instance()?,
                bundle: fields.path(tag::BUNDLE)?.ok_or_else(|| fields.bad(tag::BUNDLE))?,
                tty: fields.flag(tag::TTY),
                stdin: fields.flag(tag::STDIN),
                oom_events: fields.path(tag::OOM_EVENTS)?,
                termination_log: fields.path(tag::TERMINATION_LOG)?,
            }),
            kind::EXEC => Request::Exec { instance: instance()?, tty: fields.flag(tag::TTY) },
            kind::SIGNAL => Request::Signal { instance: instance()?, signal: fields.int(tag::SIGNAL)? },
            kind::SIGNAL_EXEC => {
                Request::SignalExec { exec: fields.number(tag::EXEC)?, signal: fields.int(tag::SIGNAL)? }
            }
            kind::ATTACH => Request::Attach { instance: instance()? },
            kind::CLOSE_STDIN => Request::CloseStdin { instance: instance()? },
            kind::RESIZE => Request::Resize {
                instance: instance()?,
                rows: fields.small(tag::ROWS)?,
                columns: fields.small(tag::COLUMNS)?,
            },
            kind::STATE => Request::State { after: fields.text(tag::AFTER)? },
            kind::FORGET => Request::Forget { instance: instance()? },
            kind::SHUTDOWN => Request::Shutdown,
            other => return Err(WireError::UnknownKind(other)),
        };
        Ok((id, request))
    }
}

impl InstanceStatus {
    fn encode(&self) -> Vec<u8> {
        let writer = Writer(Vec::new()).bytes(tag::INSTANCE, self.instance.as_bytes());
        match &self.phase {
            Phase::Starting => writer,
            Phase::Running(started) => writer.started(started),
            Phase::Exited { report, recorded } => writer.report(report, *recorded),
        }
        .0
    }

    /// The bytes that this takes in a [`Reply::State`].
    pub fn encoded_length(&self) -> usize {
        self.encode().len() + 3
    }

    fn decode(bytes: &[u8]) -> Result<InstanceStatus, WireError> {
        let fields = Fields::new(kind::STATE_REPLY, bytes)?;
        let phase = if fields.find(tag::REPORT).is_some() {
            let (report, recorded) = fields.report()?;
            Phase::Exited { report, recorded }
        } else if fields.find(tag::PID).is_some() {
            Phase::Running(fields.started()?)
        } else {
            Phase::Starting
        };
        Ok(InstanceStatus { instance: fields.text(tag::INSTANCE)?, phase })
    }
}

impl Cause {
    fn of(number: u64) -> Cause {
        match number {
            1 => Cause::Malformed,
            3 => Cause::NotFound,
            4 => Cause::Exists,
            5 => Cause::Busy,
            6 => Cause::Helper,
            7 => Cause::Kernel,
            // 2, and whatever a newer shim may say.
            _ => Cause::Unknown,
        }
    }
}

impl Message {
    /// The bytes of this message.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Message::Reply(id, reply) => reply.encode(*id),
            Message::Event(Event::Exited { report, recorded }) => {
                Writer::new(kind::EXITED, 0).report(report, *recorded).0
            }
            Message::Event(Event::ExecExited { exec, code }) => {
                Writer::new(kind::EXEC_EXITED, 0)
                    .number(tag::EXEC, *exec)
                    .signed(tag::CODE, i64::from(*code))
                    .0
            }
        }
    }

    /// Reads what the shim sent.
    ///
    /// # Errors
    /// [`WireError::UnknownKind`] may be an event of a newer shim, which the agent can ignore.
    pub fn decode(bytes: &[u8]) -> Result<Message, WireError> {
        let (id, fields) = split_header(bytes)?;
        let reply = match fields.kind {
            kind::DONE => Reply::Done,
            kind::REFUSED => Reply::Refused(Refusal {
                cause: Cause::of(fields.number(tag::CAUSE)?),
                message: fields.text(tag::MESSAGE)?,
            }),
            kind::HELLO_REPLY => Reply::Hello { version: fields.small(tag::VERSION)? },
            kind::STARTED => Reply::Started(fields.started()?),
            kind::EXEC_STARTED => {
                Reply::ExecStarted { exec: fields.number(tag::EXEC)?, pid: fields.int(tag::PID)? }
            }
            kind::ATTACHED => Reply::Attached {
                stdout: fields.flag(tag::STDOUT),
                stderr: fields.flag(tag::STDERR),
                stdin: fields.flag(tag::STDIN),
            },
            kind::STATE_REPLY => Reply::State {
                instances: fields
                    .iter()
                    .filter(|(tag, _)| *tag == tag::STATUS)
                    .map(|(_, value)| InstanceStatus::decode(value))
                    .collect::<Result<_, _>>()?,
                more: fields.flag(tag::MORE),
            },
            kind::EXITED => {
                let (report, recorded) = fields.report()?;
                return Ok(Message::Event(Event::Exited { report, recorded }));
            }
            kind::EXEC_EXITED => {
                let event =
                    Event::ExecExited { exec: fields.number(tag::EXEC)?, code: fields.int(tag::CODE)? };
                return Ok(Message::Event(event));
            }
            other => return Err(WireError::UnknownKind(other)),
        };
        Ok(Message::Reply(id, reply))
    }
}

impl Reply {
    fn encode(&self, id: u64) -> Vec<u8> {
        match self {
            Reply::Done => Writer::new(kind::DONE, id),
            Reply::Refused(refusal) => Writer::new(kind::REFUSED, id)
                .number(tag::CAUSE, refusal.cause as u64)
                .bytes(tag::MESSAGE, refusal.message.as_bytes()),
            Reply::Hello { version } => {
                Writer::new(kind::HELLO_REPLY, id).number(tag::VERSION, u64::from(*version))
            }
            Reply::Started(started) => Writer::new(kind::STARTED, id).started(started),
            Reply::ExecStarted { exec, pid } => {
                Writer::new(kind::EXEC_STARTED, id).number(tag::EXEC, *exec).signed(tag::PID, i64::from(*pid))
            }
            Reply::Attached { stdout, stderr, stdin } => Writer::new(kind::ATTACHED, id)
                .flag(tag::STDOUT, *stdout)
                .flag(tag::STDERR, *stderr)
                .flag(tag::STDIN, *stdin),
            Reply::State { instances, more } => instances
                .iter()
                .fold(Writer::new(kind::STATE_REPLY, id), |writer, instance| {
                    writer.bytes(tag::STATUS, &instance.encode())
                })
                .flag(tag::MORE, *more),
        }
        .0
    }
}
