//! The shim's one loop: what to wait for, and what to do when it happens.
//!
//! ```text
//!              Run                 ok PID                  SIGCHLD                  Forget
//!   (nothing) ─────► Starting ───────────────► Running ───────────────► Exited ─────────────► (nothing)
//!                       │ err, death, deadline             output read,
//!                       └──────────► (nothing)             record on disk,
//!                                                          then told
//! ```
//!
//! # Reaping
//! While a helper is at work, a zombie that nobody knows may be the init that this helper is about to name. So
//! unknown children are left unreaped until no helper is at work, which also keeps the kernel from giving their
//! pids away. Known children are reaped at once.
//!
//! # Slow peers
//! Every socket and pipe is non-blocking. A connection that does not take its messages is closed: it comes back
//! and asks for the state. An attached reader that does not keep up is cut off.

use crate::child::{Instance, READ_BYTES, exit_code};
use crate::clock::Stamp;
use crate::cri::Stream;
use crate::helper::{Asker, Helper, Job, Outcome, Tools, refusal};
use crate::start::{Options, SOCKET, Seat, StartError};
use crate::sys::{self, Status};
use crate::wire::{Cause, Event, Message, Phase, Reply, Request, Started, WireError, id_of};
use crate::{child, packet};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

mod request;

/// Connections at one time.
const CONNECTIONS_MAX: usize = 16;
/// Instances, exited ones included until they are forgotten.
const INSTANCES_MAX: usize = 64;
/// Execs at one time.
const EXECS_MAX: usize = 64;
/// The pause before an exit record is tried again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

struct Connection {
    key: u64,
    socket: OwnedFd,
    /// It said hello.
    greeted: bool,
    /// To be closed at the end of this turn.
    lost: bool,
}

struct Exec {
    id: u64,
    connection: u64,
    /// `None` while its helper is at work.
    pid: Option<i32>,
}

/// A pause before the next attempt to write what the disk refused.
struct Retry {
    due: Instant,
    pause: Duration,
}

struct Shim {
    options: Options,
    tools: Tools,
    listener: OwnedFd,
    signals: File,
    boot_id: String,
    _lock: File,
    connections: Vec<Connection>,
    instances: Vec<Instance>,
    execs: Vec<Exec>,
    helpers: Vec<Helper>,
    retry: Option<Retry>,
    /// The last key or id given.
    keys: u64,
    buffer: Vec<u8>,
    ending: Ending,
    /// Nothing is left to do.
    done: bool,
}

/// Whether the shim was told to end by SIGTERM, as every process is when the machine goes down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// The containers were told; what still runs then is killed.
    Until(Instant),
    /// They were killed; their ends are waited for.
    Killed,
}

/// What a polled descriptor belongs to.
#[derive(Clone, Copy)]
enum Source {
    Output(u64, Stream),
    Attached(u64),
    Helpers,
    Signals,
    Connection(u64),
    Listener,
}

pub(crate) fn polled(fd: BorrowedFd<'_>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

/// Serves until the agent asks for the end.
///
/// # Errors
/// Only what leaves nothing to be done: `poll` itself failed.
pub fn serve(options: Options, seat: Seat) -> Result<(), StartError> {
    let program = CString::new(options.helper.clone().into_os_string().into_vec());
    let program = program.map_err(|error| StartError::io("--helper")(error.into()))?;
    let tools =
        Tools { program, run: options.run.clone(), null: seat.null, oom_score_adj: seat.oom_score_adj };
    let mut shim = Shim {
        options,
        tools,
        listener: seat.listener,
        signals: seat.signals,
        boot_id: seat.boot_id,
        _lock: seat._lock,
        connections: Vec::new(),
        instances: Vec::new(),
        execs: Vec::new(),
        helpers: Vec::new(),
        retry: None,
        keys: 0,
        buffer: vec![0; READ_BYTES],
        ending: Ending::No,
        done: false,
    };
    while !shim.done {
        shim.turn().map_err(StartError::io("poll"))?;
    }
    let socket = shim.options.run.join(SOCKET);
    fs::remove_file(&socket).map_err(StartError::io(socket.display().to_string()))
}

impl Shim {
    /// One wait, and all that it brought.
    fn turn(&mut self) -> io::Result<()> {
        let (mut fds, sources) = self.sources();
        sys::poll(&mut fds, self.timeout())?;
        // Output comes first in the list, so that a container's last words precede the news of its end.
        for (source, fd) in sources.into_iter().zip(&fds) {
            if fd.revents != 0 {
                self.handle(source);
            }
        }
        let now = Instant::now();
        if self.helpers.iter().any(|helper| helper.deadline <= now) {
            self.advance_helpers();
        }
        if self.retry.as_ref().is_some_and(|retry| retry.due <= now) {
            self.retry_records();
        }
        if let Ending::Until(deadline) = self.ending
            && deadline <= now
        {
            self.ending = Ending::Killed;
            self.signal_all(libc::SIGKILL);
        }
        self.done |= self.ending != Ending::No && self.is_idle();
        self.connections.retain(|connection| !connection.lost);
        Ok(())
    }

    /// SIGTERM: the containers get it too, and the shim ends after the last of them. Their exits are not recorded: they
    /// did not finish, they were interrupted, as by a power cut. So a pod goes on after the boot also where its policy
    /// restarts only what failed, and its container ended well when it was told to.
    fn end(&mut self) {
        if self.ending == Ending::No {
            self.ending = Ending::Until(Instant::now() + self.options.grace);
            self.signal_all(libc::SIGTERM);
        }
    }

    fn signal_all(&self, signal: i32) {
        for pid in self.instances.iter().filter_map(Instance::pid) {
            // One that has ended meanwhile is reaped in the next turn.
            drop(sys::kill(pid, signal));
        }
    }

    /// Nothing runs, and nothing is being started.
    fn is_idle(&self) -> bool {
        self.helpers.is_empty()
            && self.instances.iter().all(|instance| matches!(instance.phase, Phase::Exited { .. }))
    }

    fn sources(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let (mut fds, mut sources) = (Vec::new(), Vec::new());
        let mut add = |source, fd: BorrowedFd<'_>, events| {
            fds.push(polled(fd, events));
            sources.push(source);
        };
        for instance in &self.instances {
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let Some(fd) = instance.output(stream) {
                    add(Source::Output(instance.key, stream), fd, libc::POLLIN);
                }
            }
        }
        for instance in &self.instances {
            // No event asked for: POLLERR comes anyway when the reader has closed its end.
            instance.attached().for_each(|fd| add(Source::Attached(instance.key), fd, 0));
        }
        for helper in &self.helpers {
            helper.sources().for_each(|fd| add(Source::Helpers, fd, libc::POLLIN));
        }
        add(Source::Signals, self.signals.as_fd(), libc::POLLIN);
        for connection in &self.connections {
            add(Source::Connection(connection.key), connection.socket.as_fd(), libc::POLLIN);
        }
        add(Source::Listener, self.listener.as_fd(), libc::POLLIN);
        (fds, sources)
    }

    fn timeout(&self) -> Option<Duration> {
        let deadlines = self.helpers.iter().map(|helper| helper.deadline);
        let ending = match self.ending {
            Ending::Until(deadline) => Some(deadline),
            Ending::No | Ending::Killed => None,
        };
        let next = deadlines.chain(self.retry.as_ref().map(|retry| retry.due)).chain(ending).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Output(key, stream) => {
                let mut buffer = std::mem::take(&mut self.buffer);
                if let Some(instance) = self.instance_mut(key) {
                    instance.pump(stream, &mut buffer);
                }
                self.buffer = buffer;
            }
            Source::Attached(key) => {
                if let Some(instance) = self.instance_mut(key) {
                    instance.prune();
                }
            }
            Source::Helpers => self.advance_helpers(),
            Source::Signals => {
                // Signals of one kind merge, so what is read says no more than that something ended.
                let terminated = sys::drain_signals(&self.signals);
                self.advance_helpers();
                self.reap();
                if terminated {
                    self.end();
                }
            }
            Source::Connection(key) => self.receive(key),
            Source::Listener => self.accept(),
        }
    }

    fn instance_mut(&mut self, key: u64) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|instance| instance.key == key)
    }

    fn next_key(&mut self) -> u64 {
        self.keys += 1;
        self.keys
    }

    /// Lets every helper take in what there is, and finishes those that have an answer.
    fn advance_helpers(&mut self) {
        let now = Instant::now();
        self.helpers.iter_mut().for_each(|helper| helper.advance(now));
        let mut finished = false;
        while let Some(index) = self.helpers.iter().position(Helper::is_settled) {
            finished = true;
            let (asker, job, outcome) = self.helpers.remove(index).finish();
            match job {
                Job::Run(key) => self.finish_run(asker, key, outcome),
                Job::Exec { id, .. } => self.finish_exec(asker, id, outcome),
            }
        }
        if finished {
            // What was just named may have ended already, and what was left for it can be reaped now.
            self.reap();
        }
    }

    fn finish_run(&mut self, asker: Asker, key: u64, outcome: Outcome) {
        let Some(index) = self.instances.iter().position(|instance| instance.key == key) else { return };
        let instance = &mut self.instances[index];
        let outcome = outcome.and_then(|(pid, terminal)| {
            let opened = terminal.map_or(Ok(()), |terminal| instance.open_terminal(terminal));
            match opened.and_then(|()| child::start_ticks(pid)) {
                Ok(start_ticks) => Ok(Started { pid, start_ticks, started: Stamp::now() }),
                Err(error) => {
                    sys::end(pid);
                    Err(refusal(Cause::Kernel, format!("{}: {error}", instance.name)))
                }
            }
        });
        match outcome {
            Ok(started) => {
                instance.phase = Phase::Running(started.clone());
                if self.ending != Ending::No {
                    sys::end(started.pid);
                }
                self.reply(asker, &Reply::Started(started), &[]);
            }
            Err(refusal) => {
                // What the helper or a half-made container said is worth keeping.
                let mut instance = self.instances.remove(index);
                instance.drain(&mut self.buffer);
                self.reply(asker, &Reply::Refused(refusal), &[]);
            }
        }
    }

    fn finish_exec(&mut self, asker: Asker, id: u64, outcome: Outcome) {
        let Some(index) = self.execs.iter().position(|exec| exec.id == id) else { return };
        match outcome {
            Ok((pid, terminal)) => {
                self.execs[index].pid = Some(pid);
                let fds: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
                self.reply(asker, &Reply::ExecStarted { exec: id, pid }, &fds);
            }
            Err(refusal) => {
                self.execs.remove(index);
                self.reply(asker, &Reply::Refused(refusal), &[]);
            }
        }
    }

    fn reap(&mut self) {
        if self.helpers.is_empty() {
            while let Ok(Some((pid, status))) = sys::wait_any() {
                self.ended(pid, status);
            }
            return;
        }
        let instances = self.instances.iter().filter_map(Instance::pid);
        let known: Vec<i32> = instances.chain(self.execs.iter().filter_map(|exec| exec.pid)).collect();
        for pid in known {
            if let Ok(Some(status)) = sys::wait(pid) {
                self.ended(pid, status);
            }
        }
    }

    /// A child was reaped. Orphans of somebody's pod are nobody's concern.
    fn ended(&mut self, pid: i32, status: Status) {
        if let Some(index) = self.instances.iter().position(|instance| instance.pid() == Some(pid)) {
            self.instance_ended(index, status);
        } else if let Some(index) = self.execs.iter().position(|exec| exec.pid == Some(pid)) {
            let exec = self.execs.remove(index);
            let event = Event::ExecExited { exec: exec.id, code: exit_code(status).0 };
            self.send(exec.connection, &Message::Event(event), &[]);
        }
    }

    fn instance_ended(&mut self, index: usize, status: Status) {
        let finished = Stamp::now();
        let instance = &mut self.instances[index];
        let Phase::Running(started) = instance.phase.clone() else { return };
        instance.drain(&mut self.buffer);
        let report = instance.report(&started, status, finished, &self.boot_id);
        if self.ending != Ending::No {
            instance.phase = Phase::Exited { report, recorded: false };
            instance.end();
            return;
        }
        let recorded = report.write(&self.options.data.join("exits").join(&report.instance)).is_ok();
        instance.phase = Phase::Exited { report: report.clone(), recorded };
        instance.end();
        if !recorded {
            let first = || Retry { due: Instant::now() + RETRY_MIN, pause: RETRY_MIN };
            self.retry.get_or_insert_with(first);
        }
        self.tell(&Event::Exited { report, recorded });
    }

    /// Writes the exit records that the disk refused before.
    fn retry_records(&mut self) {
        let exits = self.options.data.join("exits");
        let mut refused = false;
        for instance in &mut self.instances {
            if let Phase::Exited { report, recorded: recorded @ false } = &mut instance.phase {
                *recorded = report.write(&exits.join(&report.instance)).is_ok();
                refused |= !*recorded;
            }
        }
        self.retry = self.retry.take().filter(|_| refused).map(|retry| {
            let pause = (retry.pause * 2).min(RETRY_MAX);
            Retry { due: Instant::now() + pause, pause }
        });
    }

    fn accept(&mut self) {
        // What fails here is the other end's doing; it sees its connection closed.
        let Ok(socket) = packet::accept(self.listener.as_fd()) else { return };
        let key = self.next_key();
        self.connections.push(Connection { key, socket, greeted: false, lost: false });
        if self.connections.len() > CONNECTIONS_MAX {
            let busy = refusal(Cause::Busy, format!("{CONNECTIONS_MAX} connections are open already"));
            self.reply(Asker { connection: key, request: 0 }, &Reply::Refused(busy), &[]);
            self.lose(key);
        }
    }

    fn receive(&mut self, key: u64) {
        let Some(connection) = self.connections.iter().find(|connection| connection.key == key) else {
            return;
        };
        let (packet, greeted) = match packet::receive(connection.socket.as_fd()) {
            Ok(Some(packet)) => (packet, connection.greeted),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => return self.lose(key),
        };
        if packet.truncated {
            let asker = Asker { connection: key, request: id_of(&packet.bytes).unwrap_or(0) };
            let text = "the message is too long or carries too many descriptors";
            return self.reply(asker, &Reply::Refused(refusal(Cause::Malformed, text)), &[]);
        }
        match Request::decode(&packet.bytes) {
            Err(error) => {
                let asker = Asker { connection: key, request: id_of(&packet.bytes).unwrap_or(0) };
                let unknown = matches!(error, WireError::UnknownKind(_));
                let cause = if unknown { Cause::Unknown } else { Cause::Malformed };
                self.reply(asker, &Reply::Refused(refusal(cause, error.to_string())), &[]);
            }
            Ok((request, Request::Hello { version: _ })) => {
                if let Some(connection) = self.connections.iter_mut().find(|c| c.key == key) {
                    connection.greeted = true;
                }
                let version = crate::wire::VERSION;
                self.reply(Asker { connection: key, request }, &Reply::Hello { version }, &[]);
            }
            Ok((request, _)) if !greeted => {
                let refusal = refusal(Cause::Malformed, "the first message must be Hello");
                self.reply(Asker { connection: key, request }, &Reply::Refused(refusal), &[]);
            }
            Ok((id, request)) => {
                let asker = Asker { connection: key, request: id };
                if let Err(refusal) = self.answer(asker, request, packet.fds) {
                    self.reply(asker, &Reply::Refused(refusal), &[]);
                }
            }
        }
    }

    fn reply(&mut self, to: Asker, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        self.send(to.connection, &Message::Reply(to.request, reply.clone()), fds);
    }

    fn tell(&mut self, event: &Event) {
        let greeted = self.connections.iter().filter(|connection| connection.greeted);
        for key in greeted.map(|connection| connection.key).collect::<Vec<_>>() {
            self.send(key, &Message::Event(event.clone()), &[]);
        }
    }

    /// Sends, or closes a connection that does not take it. To one that has gone: nothing.
    fn send(&mut self, key: u64, message: &Message, fds: &[BorrowedFd<'_>]) {
        let found = self.connections.iter_mut().find(|connection| connection.key == key && !connection.lost);
        if let Some(connection) = found {
            connection.lost = packet::send(connection.socket.as_fd(), &message.encode(), fds).is_err();
        }
    }

    fn lose(&mut self, key: u64) {
        if let Some(connection) = self.connections.iter_mut().find(|connection| connection.key == key) {
            connection.lost = true;
        }
    }
}
