//! One run of the program that makes containers, from fork to answer.
//!
//! `HELPER rt run STATE_DIR ID BUNDLE [--console SOCKET]` makes and starts a container, `HELPER rt exec STATE_DIR
//! ID PROCESS_JSON [--console SOCKET]` starts a process in one. Descriptors 0 to 2 are the new process's, unless it
//! has a terminal, whose master then comes through the console socket. Descriptor 3 takes the answer in one write:
//! `ok PID` or `err MESSAGE`. PID must be a child of the shim (`CLONE_PARENT`).

use crate::sys::{self, Status};
use crate::wire::{Cause, Refusal};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A helper that has not answered by then is killed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// The longest answer: what one write to a pipe delivers whole.
const ANSWER_BYTES_MAX: usize = libc::PIPE_BUF;

/// Who waits for the answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) connection: u64,
    pub(crate) request: u64,
}

/// What the helper is to start.
#[derive(Debug)]
pub(crate) enum Job {
    /// The instance of this key.
    Run(u64),
    /// The exec of this id; its OCI process is read by the helper through the shim's descriptor.
    Exec { id: u64, _process: OwnedFd },
}

/// Where the new process's terminal is.
#[derive(Debug)]
enum Console {
    Unwanted,
    Listening(UnixListener, PathBuf),
    Connected(UnixStream),
    Open(OwnedFd),
    Failed(String),
}

/// What every helper is started with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) program: CString,
    pub(crate) run: PathBuf,
    pub(crate) null: File,
    pub(crate) oom_score_adj: String,
}

/// The new process and its terminal, or why there is none.
pub(crate) type Outcome = Result<(i32, Option<OwnedFd>), Refusal>;

/// A helper at work.
#[derive(Debug)]
pub(crate) struct Helper {
    pub(crate) asker: Asker,
    pub(crate) job: Job,
    pub(crate) deadline: Instant,
    pid: i32,
    /// It was reaped, and `pid` means nothing any more.
    reaped: bool,
    /// `None` once read to its end.
    result: Option<File>,
    answer: Option<Result<i32, Refusal>>,
    console: Console,
}

pub(crate) fn refusal(cause: Cause, message: impl Into<String>) -> Refusal {
    Refusal { cause, message: message.into() }
}

impl Helper {
    /// Starts `rt VERB STATE ID ARGUMENT`. `stdio` is the new process's, or `None` if it is to have a terminal.
    pub(crate) fn start(
        tools: &Tools,
        asker: Asker,
        job: Job,
        [verb, id, argument]: [&OsStr; 3],
        stdio: Option<[BorrowedFd<'_>; 3]>,
    ) -> io::Result<Helper> {
        let state = tools.run.join("state");
        let mut words: Vec<&OsStr> =
            vec!["coracle".as_ref(), "rt".as_ref(), verb, state.as_ref(), id, argument];
        let console = match stdio {
            Some(_) => Console::Unwanted,
            None => listen(&tools.run, asker)?,
        };
        if let Console::Listening(_, path) = &console {
            words.extend(["--console".as_ref(), path.as_os_str()]);
        }
        let arguments: Vec<CString> =
            words.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
        let (reader, writer) = io::pipe()?;
        sys::set_nonblocking(reader.as_fd())?;
        let stdio = stdio.unwrap_or([tools.null.as_fd(); 3]);
        let pid = sys::spawn(&tools.program, &arguments, stdio, writer.as_fd(), &tools.oom_score_adj)?;
        Ok(Helper {
            asker,
            job,
            deadline: Instant::now() + DEADLINE,
            pid,
            reaped: false,
            result: Some(File::from(OwnedFd::from(reader))),
            answer: None,
            console,
        })
    }

    /// What to poll for reading, and then to call [`Helper::advance`].
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let console = match &self.console {
            Console::Listening(listener, _) => Some(listener.as_fd()),
            Console::Connected(stream) => Some(stream.as_fd()),
            Console::Unwanted | Console::Open(_) | Console::Failed(_) => None,
        };
        self.result.as_ref().map(|result| result.as_fd()).into_iter().chain(console)
    }

    /// Takes in what has arrived: the answer, the terminal, the helper's end, the deadline.
    pub(crate) fn advance(&mut self, now: Instant) {
        // Its end is looked at first, so that what it gave before is still found.
        let ended = if self.reaped { None } else { sys::wait(self.pid).unwrap_or(Some(Status::Code(255))) };
        self.reaped |= ended.is_some();
        self.read_answer();
        // Once to accept, once to receive.
        self.advance_console();
        self.advance_console();
        if self.answer.is_none() {
            self.answer = match ended {
                Some(Status::Code(code)) => Some(Err(format!("exited with code {code}"))),
                Some(Status::Signal(signal)) => Some(Err(format!("was killed by signal {signal}"))),
                None if now >= self.deadline => Some(Err(format!("took over {} s", DEADLINE.as_secs()))),
                None => None,
            }
            .map(|answer| {
                answer.map_err(|how| refusal(Cause::Helper, format!("the helper {how} and gave no answer")))
            });
        }
        // The terminal is sent before the process runs, and so before the answer: with the helper gone, none comes.
        if matches!(self.answer, Some(Ok(_))) && self.lacks_console() && (self.reaped || now >= self.deadline)
        {
            self.fail_console("the helper sent no terminal".into());
        }
    }

    fn lacks_console(&self) -> bool {
        matches!(self.console, Console::Listening(..) | Console::Connected(_))
    }

    fn fail_console(&mut self, why: String) {
        if let Console::Listening(_, path) = &self.console {
            remove(path);
        }
        self.console = Console::Failed(why);
    }

    fn read_answer(&mut self) {
        let Some(result) = &mut self.result else { return };
        let mut bytes = [0; ANSWER_BYTES_MAX];
        match result.read(&mut bytes) {
            Ok(0) => self.result = None,
            Ok(length) => {
                self.result = None;
                let text = String::from_utf8_lossy(&bytes[..length]);
                self.answer = Some(parse_answer(text.trim_end()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.answer = Some(Err(refusal(Cause::Kernel, format!("result pipe: {error}")))),
        }
    }

    fn advance_console(&mut self) {
        self.console = match std::mem::replace(&mut self.console, Console::Unwanted) {
            Console::Listening(listener, path) => match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Console::Listening(listener, path),
                accepted => {
                    remove(&path);
                    match accepted.and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream)) {
                        Ok(stream) => Console::Connected(stream),
                        Err(error) => Console::Failed(format!("console socket: {error}")),
                    }
                }
            },
            Console::Connected(stream) => match sys::receive(stream.as_fd(), &mut [0; 256]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Console::Connected(stream),
                Err(error) => Console::Failed(format!("console socket: {error}")),
                Ok(received) => match received.fds.into_iter().next().filter(IsTerminal::is_terminal) {
                    Some(terminal) => Console::Open(terminal),
                    None => Console::Failed("the helper sent something that is no terminal".into()),
                },
            },
            settled => settled,
        };
    }

    /// Whether [`Helper::finish`] has an answer.
    pub(crate) fn is_settled(&self) -> bool {
        match &self.answer {
            None => false,
            Some(Ok(_)) => !self.lacks_console(),
            Some(Err(_)) => true,
        }
    }

    /// The new process and its terminal, or why there is none. Kills a helper that is still there after an error.
    pub(crate) fn finish(self) -> (Asker, Job, Outcome) {
        if let Console::Listening(_, path) = &self.console {
            remove(path);
        }
        let answer = self.answer.unwrap_or_else(|| Err(refusal(Cause::Helper, "the helper was given up")));
        let outcome = match (answer, self.console) {
            (Err(refusal), _) => {
                if !self.reaped {
                    sys::end(self.pid);
                }
                Err(refusal)
            }
            (Ok(pid), Console::Failed(why)) => {
                sys::end(pid);
                Err(refusal(Cause::Helper, why))
            }
            (Ok(pid), Console::Open(terminal)) => Ok((pid, Some(terminal))),
            (Ok(pid), _) => Ok((pid, None)),
        };
        (self.asker, self.job, outcome)
    }
}

fn parse_answer(text: &str) -> Result<i32, Refusal> {
    if let Some(message) = text.strip_prefix("err ") {
        return Err(refusal(Cause::Helper, message));
    }
    let pid = text.strip_prefix("ok ").and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 1);
    let pid: i32 =
        pid.ok_or_else(|| refusal(Cause::Helper, format!("the helper answered nonsense: {text:?}")))?;
    match sys::has_ended(pid) {
        Ok(_) => Ok(pid),
        Err(_) => {
            Err(refusal(Cause::Helper, format!("the helper named pid {pid}, which is no child of the shim")))
        }
    }
}

fn listen(run: &Path, asker: Asker) -> io::Result<Console> {
    use std::os::unix::fs::PermissionsExt;
    // A socket address holds 107 bytes and `run` may be longer, so everybody goes through its descriptor.
    let directory = File::open(run)?;
    let name = format!("console-{}-{}", asker.connection, asker.request);
    let path = run.join(&name);
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(Console::Listening(listener, path))
}

/// A name that stays is met again by the next bind to it, which then fails with a clear error.
fn remove(path: &Path) {
    drop(fs::remove_file(path));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let check = |text: &str, expected: &str| {
            assert_eq!(parse_answer(text).unwrap_err().message, expected, "{text}");
        };
        check("err no such image", "no such image");
        check("ok 1", "the helper answered nonsense: \"ok 1\"");
        check("ok -5", "the helper answered nonsense: \"ok -5\"");
        check("fine", "the helper answered nonsense: \"fine\"");
        let parent = std::os::unix::process::parent_id();
        check(
            &format!("ok {parent}"),
            &format!("the helper named pid {parent}, which is no child of the shim"),
        );
    }

    #[test]
    fn a_helper_that_never_answers_is_killed_at_its_deadline() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("helper");
        fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let tools = Tools {
            program: CString::new(program.as_os_str().as_bytes()).unwrap(),
            run: directory.path().into(),
            null: File::options().read(true).write(true).open("/dev/null").unwrap(),
            oom_score_adj: fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().into(),
        };
        let asker = Asker { connection: 1, request: 2 };
        let words = ["run", "web.0", "/bundle"].map(OsStr::new);
        let mut helper = Helper::start(&tools, asker, Job::Run(1), words, None).unwrap();
        assert!(directory.path().join("console-1-2").exists());
        helper.advance(Instant::now());
        assert!(!helper.is_settled());
        helper.advance(helper.deadline);
        assert!(helper.is_settled());
        let pid = helper.pid;
        let refusal = helper.finish().2.unwrap_err();
        assert_eq!(refusal.message, "the helper took over 60 s and gave no answer");
        assert!(!directory.path().join("console-1-2").exists());
        while sys::wait(pid).unwrap().is_none() {
            std::thread::yield_now();
        }
    }
}
