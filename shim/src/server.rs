//! The shim's loop: one `poll(2)` over the socket, its connections, helpers' answers and containers' output.
//!
//! Every queue has its bound here; a peer that breaks one is refused or let go, and nothing else is touched.

use crate::child::{self, Asker, Attached, Child, HELPER_DEADLINE, Phase, Role};
use crate::clock::Stamp;
use crate::cri::{Bounds, Log, Stream};
use crate::packet::{self, Packet};
use crate::start::{Options, Seat, StartError};
use crate::sys::{self, Status};
use crate::wire::{
    Cause, Event, INSTANCE_NAME_MAX, InstanceStatus, MESSAGE_BYTES_MAX, Message, Phase as WirePhase, Refusal,
    Reply, Request, Run, Started, VERSION, id_of,
};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Connections at once.
const CONNECTIONS_MAX: usize = 16;
/// Containers and execs at once, ended ones that are not forgotten included.
const CHILDREN_MAX: usize = 128;
/// Processes that ended before their helper named them.
const EARLY_MAX: usize = 64;
/// How long until a refused exit record is tried again.
const RECORD_RETRY: Duration = Duration::from_secs(5);
/// Bytes of a helper's answer.
const ANSWER_BYTES_MAX: usize = 4096;
/// Watchers of one container.
const ATTACHED_MAX: usize = 8;

struct Connection {
    number: u64,
    socket: OwnedFd,
}

struct Server {
    options: Options,
    seat: Seat,
    helper: CString,
    connections: Vec<Connection>,
    children: Vec<Child>,
    early: Vec<(i32, Status, Stamp)>,
    numbers: u64,
    retry_at: Option<Duration>,
}

/// What a descriptor of the poll set is.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Connection(u64),
    Output(usize, Stream),
    Result(usize),
    Console(usize),
}

/// Serves until [`Request::Shutdown`].
///
/// # Errors
/// Only what makes going on impossible: `poll` itself fails, or the paths cannot be used.
pub fn serve(options: Options, seat: Seat) -> Result<(), StartError> {
    let helper = CString::new(options.helper.as_os_str().as_bytes())
        .map_err(|_| StartError::Usage("--helper: contains a NUL byte".into()))?;
    let mut server = Server {
        options,
        seat,
        helper,
        connections: Vec::new(),
        children: Vec::new(),
        early: Vec::new(),
        numbers: 0,
        retry_at: None,
    };
    while !server.turn().map_err(StartError::io("poll"))? {}
    Ok(())
}

impl Server {
    /// One round; `true` when the shim is to end.
    fn turn(&mut self) -> io::Result<bool> {
        let sources = self.sources();
        let entry = |(fd, _): &(RawFd, Source)| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
        let mut fds: Vec<libc::pollfd> = sources.iter().map(entry).collect();
        let now = Stamp::now();
        sys::poll(&mut fds, self.deadline().map(|at| at.saturating_sub(now.boottime)))?;
        let now = Stamp::now();
        let ready = |index: usize| fds[index].revents != 0;
        let mut leave = false;
        // Output first: the tail of a log comes before the exit of its container. Signals last, for the same reason.
        for (index, (_, source)) in sources.iter().enumerate().rev().filter(|(index, _)| ready(*index)) {
            match *source {
                Source::Output(child, stream) => {
                    self.children[child].pump(stream, &now);
                }
                Source::Result(child) => self.helper_answered(child, &now),
                Source::Console(child) => self.console(child),
                Source::Connection(number) => leave |= self.hear(number),
                Source::Listener => self.accept(),
                Source::Signals => {
                    let mut drop_all = [0; 512];
                    while matches!((&self.seat.signals).read(&mut drop_all), Ok(bytes) if bytes > 0) {}
                    self.reap();
                }
            }
            debug_assert!(index < sources.len(), "an index of the poll set");
        }
        self.expire(&now);
        self.children.retain(|child| child.is_container() || !matches!(child.phase, Phase::Exited { .. }));
        Ok(leave)
    }

    fn sources(&self) -> Vec<(RawFd, Source)> {
        let mut list = vec![
            (self.seat.signals.as_raw_fd(), Source::Signals),
            (self.seat.listener.as_raw_fd(), Source::Listener),
        ];
        list.extend(self.connections.iter().map(|c| (c.socket.as_raw_fd(), Source::Connection(c.number))));
        for (index, child) in self.children.iter().enumerate() {
            if let Phase::Starting { result, .. } = &child.phase {
                list.push((result.as_raw_fd(), Source::Result(index)));
            }
            if let Some((console, _)) = &child.console {
                list.push((console.as_raw_fd(), Source::Console(index)));
            }
            if !child.is_container() {
                continue;
            }
            let outputs = [
                (child.terminal.as_ref().or(child.stdout.as_ref()), Stream::Stdout),
                (child.stderr.as_ref(), Stream::Stderr),
            ];
            list.extend(outputs.into_iter().filter_map(|(file, stream)| {
                file.map(|file| (file.as_raw_fd(), Source::Output(index, stream)))
            }));
        }
        list
    }

    fn deadline(&self) -> Option<Duration> {
        let starting = self.children.iter().filter_map(|child| match &child.phase {
            Phase::Starting { deadline, .. } => Some(*deadline),
            Phase::Running(_) | Phase::Exited { .. } => None,
        });
        starting.chain(self.retry_at).min()
    }

    // ---- connections ----

    fn accept(&mut self) {
        // A connection that failed before it was accepted, or is not ours, leaves nothing to do.
        let Ok(socket) = packet::accept(self.seat.listener.as_fd()) else { return };
        if self.connections.len() < CONNECTIONS_MAX {
            self.numbers += 1;
            self.connections.push(Connection { number: self.numbers, socket });
        }
    }

    /// Reads and answers one message; `true` when the shim is to end.
    fn hear(&mut self, number: u64) -> bool {
        let Some(connection) = self.connections.iter().find(|c| c.number == number) else { return false };
        let packet = match packet::receive(connection.socket.as_fd()) {
            Ok(Some(packet)) => packet,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Ok(None) | Err(_) => {
                self.connections.retain(|c| c.number != number);
                return false;
            }
        };
        let id = id_of(&packet.bytes).unwrap_or(0);
        let asker = Asker { connection: number, id };
        let malformed = |message: String| Refusal { cause: Cause::Malformed, message };
        let request = if packet.truncated {
            Err(malformed(format!(
                "a message has at most {MESSAGE_BYTES_MAX} bytes and {} descriptors",
                packet::FDS_MAX
            )))
        } else {
            Request::decode(&packet.bytes).map_err(|error| match error {
                crate::wire::WireError::UnknownKind(_) => {
                    Refusal { cause: Cause::Unknown, message: error.to_string() }
                }
                other => malformed(other.to_string()),
            })
        };
        match request {
            Err(refusal) => self.refuse(asker, refusal),
            Ok((_, Request::Shutdown)) => {
                let busy = self.children.iter().any(|c| !matches!(c.phase, Phase::Exited { .. }));
                if busy {
                    self.refuse(asker, Refusal { cause: Cause::Busy, message: "containers run".into() });
                } else {
                    self.reply(asker, Reply::Done, &[]);
                }
                return !busy;
            }
            Ok((_, request)) => self.answer(asker, request, packet),
        }
        false
    }

    fn answer(&mut self, asker: Asker, request: Request, packet: Packet) {
        let answered = match request {
            Request::Hello { version: _ } => Ok(Reply::Hello { version: VERSION }),
            // These two are answered when the helper is.
            Request::Run(run) => match self.run(asker, run) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Request::Exec { instance, tty } => match self.exec(asker, &instance, tty, packet.fds) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Request::Signal { instance, signal } => {
                self.container(&instance).and_then(|index| self.signal(index, signal))
            }
            Request::SignalExec { exec, signal } => {
                let mut found = self.children.iter();
                let index =
                    found.position(|c| matches!(c.role, Role::Exec { exec: known, .. } if known == exec));
                index.ok_or_else(|| not_found("exec")).and_then(|index| self.signal(index, signal))
            }
            Request::Attach { instance } => return self.attach(asker, &instance),
            Request::CloseStdin { instance } => self.container(&instance).map(|index| {
                self.children[index].stdin = None;
                Reply::Done
            }),
            Request::Resize { instance, rows, columns } => self.container(&instance).and_then(|index| {
                let terminal = self.children[index].terminal.as_ref();
                let terminal = terminal.ok_or_else(|| not_found("terminal"))?;
                sys::set_window_size(terminal.as_fd(), rows, columns).map_err(kernel)?;
                Ok(Reply::Done)
            }),
            Request::State { after } => Ok(self.state(&after)),
            Request::Forget { instance } => self.forget(&instance),
            Request::Shutdown => unreachable!("answered by the caller"),
        };
        match answered {
            Ok(reply) => self.reply(asker, reply, &[]),
            Err(refusal) => self.refuse(asker, refusal),
        }
    }

    fn reply(&mut self, asker: Asker, reply: Reply, fds: &[BorrowedFd<'_>]) {
        let bytes = Message::Reply(asker.id, reply).encode();
        self.send(asker.connection, &bytes, fds);
    }

    fn refuse(&mut self, asker: Asker, refusal: Refusal) {
        self.reply(asker, Reply::Refused(refusal), &[]);
    }

    /// A peer that does not read is let go; it finds everything again by asking for the state.
    fn send(&mut self, number: u64, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        self.connections.retain(|c| c.number != number || packet::send(c.socket.as_fd(), bytes, fds).is_ok());
    }

    // ---- requests ----

    fn container(&self, instance: &str) -> Result<usize, Refusal> {
        let found = self.children.iter().position(|c| c.is_container() && c.instance == instance);
        found.ok_or_else(|| not_found(instance))
    }

    fn signal(&mut self, index: usize, signal: i32) -> Result<Reply, Refusal> {
        let child = &self.children[index];
        let pid = child.pid().ok_or_else(|| not_found(&child.instance))?;
        sys::kill(pid, signal).map_err(kernel)?;
        Ok(Reply::Done)
    }

    fn run(&mut self, asker: Asker, run: Run) -> Result<(), Refusal> {
        let name_ok = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let (container, attempt) = run.instance.split_once('.').unwrap_or(("", ""));
        if container.is_empty()
            || attempt.is_empty()
            || run.instance.len() > INSTANCE_NAME_MAX
            || !run.instance.chars().all(name_ok)
        {
            return Err(Refusal {
                cause: Cause::Malformed,
                message: format!("{:?} is no instance name", run.instance),
            });
        }
        if self.container(&run.instance).is_ok() {
            return Err(Refusal {
                cause: Cause::Exists,
                message: format!("{} exists already", run.instance),
            });
        }
        let log = self.options.logs.join(container).join(format!("{attempt}.log"));
        let bounds = Bounds { bytes_max: self.options.log_bytes_max, files_max: self.options.log_files_max };
        let arguments = [
            self.options.run.join("state").into_os_string(),
            run.instance.clone().into(),
            run.bundle.clone().into(),
        ];
        let null = || self.seat.null.try_clone().map_err(kernel);
        let (mut stdin, mut out, mut err) = (None, None, None);
        let stdio: [File; 3] = if run.tty {
            [null()?, null()?, null()?]
        } else {
            let input = if run.stdin {
                let (read, write) = io::pipe().map_err(kernel)?;
                stdin = Some(File::from(OwnedFd::from(write)));
                File::from(OwnedFd::from(read))
            } else {
                null()?
            };
            let ((out_read, out_write), (err_read, err_write)) =
                (child::output_pipe().map_err(kernel)?, child::output_pipe().map_err(kernel)?);
            (out, err) = (Some(out_read), Some(err_read));
            [input, out_write, err_write]
        };
        let mut child =
            self.start("run", &arguments, &stdio, run.tty, asker, Role::Container, run.instance.clone())?;
        (child.stdin, child.stdout, child.stderr) = (stdin, out, err);
        child.log = Some(Log::new(log, bounds));
        child.watch(run);
        self.children.push(child);
        Ok(())
    }

    fn exec(&mut self, asker: Asker, instance: &str, tty: bool, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let index = self.container(instance)?;
        self.children[index].pid().ok_or_else(|| not_found(instance))?;
        let wanted = if tty { 1 } else { 4 };
        if fds.len() != wanted {
            let message = format!("exec takes {wanted} descriptors and not {}", fds.len());
            return Err(Refusal { cause: Cause::Malformed, message });
        }
        let mut files = fds.into_iter().map(File::from);
        let process = files.next().expect("counted above");
        // The helper reads it from here: both belong to root, and the file stays open until the helper answered.
        let path = format!("/proc/{}/fd/{}", std::process::id(), process.as_raw_fd());
        let arguments = [self.options.run.join("state").into_os_string(), instance.into(), path.into()];
        let null = || self.seat.null.try_clone().map_err(kernel);
        let stdio = match [files.next(), files.next(), files.next()] {
            [Some(input), Some(output), Some(error)] => [input, output, error],
            _ => [null()?, null()?, null()?],
        };
        self.numbers += 1;
        let role = Role::Exec { exec: self.numbers, connection: asker.connection };
        let mut child = self.start("exec", &arguments, &stdio, tty, asker, role, instance.into())?;
        child.stdin = Some(process);
        self.children.push(child);
        Ok(())
    }

    /// Starts a helper, with a socket for the terminal if there is to be one.
    #[expect(clippy::too_many_arguments, reason = "two callers, and every argument differs between them")]
    fn start(
        &mut self,
        verb: &str,
        arguments: &[std::ffi::OsString],
        stdio: &[File; 3],
        tty: bool,
        asker: Asker,
        role: Role,
        instance: String,
    ) -> Result<Child, Refusal> {
        if self.children.len() >= CHILDREN_MAX {
            let message = format!("a pod has at most {CHILDREN_MAX} containers and execs");
            return Err(Refusal { cause: Cause::Busy, message });
        }
        let mut words: Vec<std::ffi::OsString> = vec!["coracle".into(), "rt".into(), verb.into()];
        words.extend_from_slice(arguments);
        let console = if tty {
            self.numbers += 1;
            let path = self.options.run.join(format!("console-{}", self.numbers));
            let listener = UnixListener::bind(&path).map_err(kernel)?;
            listener.set_nonblocking(true).map_err(kernel)?;
            words.extend(["--console".into(), path.clone().into_os_string()]);
            Some((listener, path))
        } else {
            None
        };
        let words: Result<Vec<CString>, _> = words.iter().map(|word| CString::new(word.as_bytes())).collect();
        let words = words.map_err(|e| Refusal { cause: Cause::Malformed, message: e.to_string() })?;
        let (result, write) = child::output_pipe().map_err(kernel)?;
        let [input, output, error] = stdio;
        let helper = sys::spawn(
            &self.helper,
            &words,
            [input.as_fd(), output.as_fd(), error.as_fd()],
            write.as_fd(),
            &self.seat.oom_score_adj,
        );
        let deadline = Stamp::now().boottime + HELPER_DEADLINE;
        let phase = Phase::Starting { helper: helper.map_err(kernel)?, result, asker, deadline };
        let mut child = Child::new(instance, role, phase);
        child.console = console;
        Ok(child)
    }

    fn attach(&mut self, asker: Asker, instance: &str) {
        let prepared = self.container(instance).and_then(|index| {
            let child = &mut self.children[index];
            child.pid().ok_or_else(|| not_found(instance))?;
            if child.attached.len() >= ATTACHED_MAX {
                let message = format!("at most {ATTACHED_MAX} may attach to a container");
                return Err(Refusal { cause: Cause::Busy, message });
            }
            let (out_read, out_write) = attach_pipe()?;
            let error = if child.terminal.is_some() { None } else { Some(attach_pipe()?) };
            let stdin = child.terminal.as_ref().or(child.stdin.as_ref()).map(File::try_clone);
            let stdin = stdin.transpose().map_err(kernel)?;
            let (error_read, error_write) = error.unzip();
            child.attached.push(Attached { stdout: Some(out_write), stderr: error_write });
            Ok((out_read, error_read, stdin))
        });
        match prepared {
            Err(refusal) => self.refuse(asker, refusal),
            Ok((stdout, stderr, stdin)) => {
                let reply =
                    Reply::Attached { stdout: true, stderr: stderr.is_some(), stdin: stdin.is_some() };
                let files = [Some(&stdout), stderr.as_ref(), stdin.as_ref()];
                let fds: Vec<BorrowedFd<'_>> = files.into_iter().flatten().map(AsFd::as_fd).collect();
                self.reply(asker, reply, &fds);
            }
        }
    }

    fn state(&self, after: &str) -> Reply {
        let mut list: Vec<InstanceStatus> = Vec::new();
        let mut names: Vec<&Child> =
            self.children.iter().filter(|c| c.is_container() && c.instance.as_str() > after).collect();
        names.sort_by(|a, b| a.instance.cmp(&b.instance));
        let (mut length, mut more) = (64, false);
        for child in names {
            let phase = match &child.phase {
                Phase::Starting { .. } => WirePhase::Starting,
                Phase::Running(started) => WirePhase::Running(started.clone()),
                Phase::Exited { report, recorded } => {
                    WirePhase::Exited { report: (**report).clone(), recorded: *recorded }
                }
            };
            let status = InstanceStatus { instance: child.instance.clone(), phase };
            length += status.encoded_length();
            if length > MESSAGE_BYTES_MAX {
                more = true;
                break;
            }
            list.push(status);
        }
        Reply::State { instances: list, more }
    }

    fn forget(&mut self, instance: &str) -> Result<Reply, Refusal> {
        let index = self.container(instance)?;
        if !matches!(self.children[index].phase, Phase::Exited { .. }) {
            return Err(Refusal { cause: Cause::Busy, message: format!("{instance} runs") });
        }
        self.children.remove(index);
        Ok(Reply::Done)
    }

    // ---- processes ----

    fn helper_answered(&mut self, index: usize, now: &Stamp) {
        let child = &mut self.children[index];
        let Phase::Starting { result, asker, .. } = &mut child.phase else { return };
        let asker = *asker;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let text = match result.read(&mut answer) {
            Ok(bytes) => String::from_utf8_lossy(&answer[..bytes]).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => format!("err read the helper's answer: {error}"),
        };
        let pid =
            text.strip_prefix("ok ").and_then(|pid| pid.trim().parse::<i32>().ok()).filter(|pid| *pid > 1);
        let Some(pid) = pid else {
            let message = match text.strip_prefix("err ") {
                Some(message) => message.to_string(),
                None if text.is_empty() => {
                    "the helper ended without an answer; is memory short? See dmesg".into()
                }
                None => format!("the helper answered {text:?}"),
            };
            return self.abandon(index, Refusal { cause: Cause::Helper, message });
        };
        let started = Started { pid, start_ticks: child::start_ticks(pid).unwrap_or(0), started: *now };
        let reply = match child.role {
            Role::Container => Reply::Started(started.clone()),
            Role::Exec { exec, .. } => {
                // The process description has been read.
                child.stdin = None;
                Reply::ExecStarted { exec, pid }
            }
        };
        child.phase = Phase::Running(started);
        if child.console.is_some() {
            // The helper sent the terminal before it answered.
            self.console(index);
        }
        let child = &self.children[index];
        let terminal = match child.role {
            Role::Exec { .. } => child.terminal.as_ref().and_then(|t| t.try_clone().ok()),
            Role::Container => None,
        };
        let fds: Vec<BorrowedFd<'_>> = terminal.iter().map(AsFd::as_fd).collect();
        self.reply(asker, reply, &fds);
        if !self.children[index].is_container() {
            self.children[index].terminal = None;
        }
        if let Some(early) = self.early.iter().position(|(ended, ..)| *ended == pid) {
            let (_, status, at) = self.early.remove(early);
            self.ended(index, status, at);
        }
    }

    /// A start that came to nothing.
    fn abandon(&mut self, index: usize, refusal: Refusal) {
        let child = self.children.remove(index);
        if let Some((_, path)) = &child.console {
            remove_socket(path);
        }
        if let Phase::Starting { helper, asker, .. } = child.phase {
            // It may have ended, and may have been reaped: then there is nobody to kill.
            if matches!(sys::has_ended(helper), Ok(false)) {
                drop(sys::kill(helper, libc::SIGKILL));
            }
            self.refuse(asker, refusal);
        }
    }

    /// Takes the terminal's master from whoever connects.
    fn console(&mut self, index: usize) {
        let child = &mut self.children[index];
        let Some((listener, path)) = &child.console else { return };
        let Ok((stream, _)) = listener.accept() else { return };
        let mut bytes = [0; 64];
        // Sent before the sender went on, so it is here, or the sender failed and says so itself.
        let waited = sys::poll(
            &mut [libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 }],
            Some(Duration::from_millis(1000)),
        );
        let received = waited.and_then(|()| sys::receive(stream.as_fd(), &mut bytes));
        if let Some(master) = received.ok().and_then(|r| r.fds.into_iter().next()) {
            let master = File::from(master);
            if child.is_container() && sys::set_nonblocking(master.as_fd()).is_err() {
                return;
            }
            child.terminal = Some(master);
        }
        remove_socket(path);
        child.console = None;
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = sys::wait_any() {
            let now = Stamp::now();
            if let Some(index) = self.children.iter().position(|c| c.pid() == Some(pid)) {
                self.ended(index, status, now);
                continue;
            }
            let is_helper = |c: &Child| matches!(&c.phase, Phase::Starting { helper, .. } if *helper == pid);
            if let Some(index) = self.children.iter().position(is_helper) {
                // Its answer, if it gave one, is in the pipe.
                self.helper_answered(index, &now);
            } else if self.children.iter().any(|c| matches!(c.phase, Phase::Starting { .. })) {
                // Perhaps an init whose helper has not named it yet; else an orphan that nobody asks for.
                if self.early.len() >= EARLY_MAX {
                    self.early.remove(0);
                }
                self.early.push((pid, status, now));
            }
        }
        if !self.children.iter().any(|c| matches!(c.phase, Phase::Starting { .. })) {
            self.early.clear();
        }
    }

    fn ended(&mut self, index: usize, status: Status, now: Stamp) {
        let child = &mut self.children[index];
        let Phase::Running(started) = &child.phase else { return };
        let started = started.clone();
        child.drain(&now);
        let report = child.report(status, &started, now, &self.seat.boot_id);
        child.close();
        match child.role {
            Role::Container => {
                let recorded = report.write(&record_path(&self.options.data, &report.instance)).is_ok();
                if !recorded {
                    self.retry_at = Some(now.boottime + RECORD_RETRY);
                }
                let event = Message::Event(Event::Exited { report: report.clone(), recorded }).encode();
                self.children[index].phase = Phase::Exited { report: Box::new(report), recorded };
                let numbers: Vec<u64> = self.connections.iter().map(|c| c.number).collect();
                for number in numbers {
                    self.send(number, &event, &[]);
                }
            }
            Role::Exec { exec, connection } => {
                let event = Message::Event(Event::ExecExited { exec, code: report.code }).encode();
                // Marks it for removal at the end of the round.
                child.phase = Phase::Exited { report: Box::new(report), recorded: true };
                self.send(connection, &event, &[]);
            }
        }
    }

    /// Helpers that took too long, and records that the disk refused.
    fn expire(&mut self, now: &Stamp) {
        let late =
            |c: &Child| matches!(&c.phase, Phase::Starting { deadline, .. } if *deadline <= now.boottime);
        while let Some(index) = self.children.iter().position(late) {
            let message = format!("the helper took more than {} s", HELPER_DEADLINE.as_secs());
            self.abandon(index, Refusal { cause: Cause::Helper, message });
        }
        if self.retry_at.is_none_or(|at| at > now.boottime) {
            return;
        }
        self.retry_at = None;
        for child in &mut self.children {
            if let Phase::Exited { report, recorded } = &mut child.phase
                && !*recorded
            {
                *recorded = report.write(&record_path(&self.options.data, &report.instance)).is_ok();
                if !*recorded {
                    self.retry_at = Some(now.boottime + RECORD_RETRY);
                }
            }
        }
    }
}

fn record_path(data: &Path, instance: &str) -> PathBuf {
    data.join("exits").join(instance)
}

fn not_found(what: &str) -> Refusal {
    Refusal { cause: Cause::NotFound, message: format!("{what} does not run here") }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn kernel(error: io::Error) -> Refusal {
    Refusal { cause: Cause::Kernel, message: error.to_string() }
}

/// The shim's end does not block: who reads too slowly is let go.
fn attach_pipe() -> Result<(File, File), Refusal> {
    let (read, write) = io::pipe().map_err(kernel)?;
    sys::set_nonblocking(write.as_fd()).map_err(kernel)?;
    Ok((OwnedFd::from(read).into(), OwnedFd::from(write).into()))
}

/// The pod's directory goes with the pod, and this with it: a socket file that stays is only untidy.
fn remove_socket(path: &Path) {
    drop(std::fs::remove_file(path));
}
