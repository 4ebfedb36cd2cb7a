//! A container as its parent sees it: output, input, whoever is attached, and how it ended.

use crate::clock::Stamp;
use crate::cri::{Log, Stream};
use crate::record::{ExitReport, MESSAGE_BYTES_MAX};
use crate::sys::{self, Status};
use crate::wire::{Phase, Started};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What one read takes.
pub(crate) const READ_BYTES: usize = crate::cri::RECORD_BYTES_MAX;
/// How far an attached reader may fall behind before it is cut off.
const ATTACHED_BYTES_MAX: i32 = 1 << 20;
/// Attached readers of one instance.
const ATTACHED_MAX: usize = 8;
/// What is read of a terminal after its container's end: more than the kernel holds for one.
const TERMINAL_TAIL_BYTES: usize = 64 * 1024;
/// What is read of a cgroup's event counters.
const EVENTS_BYTES_MAX: u64 = 4096;

/// A container, from the request to start it until it is forgotten.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Unique in this shim, so that a forgotten name's old events never reach its next bearer.
    pub(crate) key: u64,
    pub(crate) name: String,
    pub(crate) phase: Phase,
    pub(crate) tty: bool,
    log: Log,
    /// Standard output (or the terminal's master) and standard error, until they end.
    outputs: [Option<File>; 2],
    /// The write end of standard input, if it is kept open.
    stdin: Option<OwnedFd>,
    attached: Vec<Attached>,
    oom_events: Option<PathBuf>,
    termination_log: Option<PathBuf>,
}

/// One reader's pipes.
#[derive(Debug)]
struct Attached([Option<File>; 2]);

/// The ends of standard input, output and error that the container gets.
pub(crate) type ChildEnds = [OwnedFd; 3];

impl Instance {
    pub(crate) fn new(key: u64, request: &crate::wire::Run, log: Log) -> Instance {
        Instance {
            key,
            name: request.instance.clone(),
            phase: Phase::Starting,
            tty: request.tty,
            log,
            outputs: [None, None],
            stdin: None,
            attached: Vec::new(),
            oom_events: request.oom_events.clone(),
            termination_log: request.termination_log.clone(),
        }
    }

    /// Makes the pipes of a container without a terminal.
    pub(crate) fn open_pipes(&mut self, keep_stdin: bool, null: &File) -> io::Result<ChildEnds> {
        let (out_reader, out_writer) = io::pipe()?;
        let (error_reader, error_writer) = io::pipe()?;
        sys::set_nonblocking(out_reader.as_fd())?;
        sys::set_nonblocking(error_reader.as_fd())?;
        let stdin = if keep_stdin {
            let (reader, writer) = io::pipe()?;
            self.stdin = Some(writer.into());
            reader.into()
        } else {
            null.try_clone()?.into()
        };
        self.outputs = [out_reader, error_reader].map(|reader| Some(File::from(OwnedFd::from(reader))));
        Ok([stdin, out_writer.into(), error_writer.into()])
    }

    /// Takes the terminal's master.
    pub(crate) fn open_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        sys::set_nonblocking(master.as_fd())?;
        self.outputs[0] = Some(File::from(master));
        Ok(())
    }

    /// The process that runs, if one does.
    pub(crate) fn pid(&self) -> Option<i32> {
        match &self.phase {
            Phase::Running(started) => Some(started.pid),
            Phase::Starting | Phase::Exited { .. } => None,
        }
    }

    pub(crate) fn output(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        self.outputs[stream as usize].as_ref().map(|file| file.as_fd())
    }

    /// Pipes of attached readers, to be polled for their closing.
    pub(crate) fn attached(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.attached.iter().flat_map(|attached| attached.0.iter().flatten()).map(|file| file.as_fd())
    }

    /// Reads `stream` once, into the log and to whoever is attached. Returns the bytes read.
    pub(crate) fn pump(&mut self, stream: Stream, buffer: &mut [u8]) -> usize {
        let Some(file) = &mut self.outputs[stream as usize] else { return 0 };
        match file.read(buffer) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            // EIO is how a terminal's master says that nobody has the terminal open any more.
            Ok(0) | Err(_) => {
                self.outputs[stream as usize] = None;
                if self.outputs.iter().all(Option::is_none) {
                    self.log.finish(&Stamp::now());
                    self.log.close();
                }
                0
            }
            Ok(length) => {
                self.log.append(stream, &buffer[..length], &Stamp::now());
                self.attached.retain_mut(|attached| attached.take(stream, &buffer[..length]));
                length
            }
        }
    }

    /// Reads what the container wrote before now, but waits for nobody who still holds the other end.
    pub(crate) fn drain(&mut self, buffer: &mut [u8]) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(output) = self.output(stream) else { continue };
            let mut left = if self.tty {
                TERMINAL_TAIL_BYTES
            } else {
                // FIONREAD of a pipe cannot fail; if it did, one full pipe is what can be there.
                sys::bytes_waiting(output).unwrap_or(64 * 1024)
            };
            while left > 0 {
                let read = self.pump(stream, buffer);
                if read == 0 {
                    break;
                }
                left = left.saturating_sub(read);
            }
        }
        // Ends the stream if nobody holds it, so that the descriptors do not wait for the next poll.
        self.log.finish(&Stamp::now());
    }

    /// Attaches a reader: the ends for it, output, error and input as far as there are such.
    pub(crate) fn attach(&mut self) -> io::Result<[Option<OwnedFd>; 3]> {
        self.prune();
        if self.attached.len() >= ATTACHED_MAX {
            return Err(io::Error::other(format!("{ATTACHED_MAX} readers are attached already")));
        }
        let mut ends = [None, None, None];
        let mut kept = [None, None];
        for index in 0..2 {
            if self.outputs[index].is_some() {
                let (reader, writer) = io::pipe()?;
                sys::set_nonblocking(writer.as_fd())?;
                match sys::set_pipe_size(writer.as_fd(), ATTACHED_BYTES_MAX) {
                    // Without CAP_SYS_RESOURCE the user's pipe budget may be spent: the reader then has 64 KiB.
                    Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                    _ => {}
                }
                ends[index] = Some(reader.into());
                kept[index] = Some(File::from(OwnedFd::from(writer)));
            }
        }
        ends[2] = match (&self.stdin, &self.outputs[0]) {
            (Some(stdin), _) => Some(stdin.try_clone()?),
            (None, Some(master)) if self.tty => Some(master.try_clone()?.into()),
            _ => None,
        };
        self.attached.push(Attached(kept));
        Ok(ends)
    }

    /// Drops readers that have gone.
    pub(crate) fn prune(&mut self) {
        self.attached.retain(|attached| {
            let mut polled: Vec<libc::pollfd> =
                attached.0.iter().flatten().map(|file| crate::server::polled(file.as_fd(), 0)).collect();
            let answer = sys::poll(&mut polled, Some(std::time::Duration::ZERO));
            answer.is_err() || polled.iter().any(|fd| fd.revents == 0)
        });
    }

    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The report of how it ended, after its output was read.
    pub(crate) fn report(
        &self,
        started: &Started,
        status: Status,
        finished: Stamp,
        boot_id: &str,
    ) -> ExitReport {
        let (code, signal) = exit_code(status);
        ExitReport {
            instance: self.name.clone(),
            pid: started.pid,
            code,
            signal,
            oom_killed: code != 0 && self.oom_events.as_deref().is_some_and(saw_oom_kill),
            started: started.started,
            finished,
            boot_id: boot_id.into(),
            message: self.termination_log.as_deref().map(termination_message).unwrap_or_default(),
        }
    }

    /// Lets go of what only a running container needs.
    pub(crate) fn end(&mut self) {
        self.stdin = None;
        self.attached.clear();
    }
}

impl Attached {
    /// `false` if the reader has gone or is too slow: it is cut off rather than waited for.
    fn take(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        match &mut self.0[stream as usize] {
            Some(pipe) => pipe.write(bytes).is_ok_and(|written| written == bytes.len()),
            None => true,
        }
    }
}

/// The code as Kubernetes tells it, and the signal.
pub(crate) fn exit_code(status: Status) -> (i32, Option<i32>) {
    match status {
        Status::Code(code) => (code, None),
        Status::Signal(signal) => (128 + signal, Some(signal)),
    }
}

/// `oom_kill` of `memory.events` (cgroup v2) or `memory.oom_control` (v1, since Linux 4.13). The cgroup is the
/// instance's own, so any count is of this run. A cgroup that is gone has seen none that matters.
fn saw_oom_kill(path: &Path) -> bool {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(EVENTS_BYTES_MAX).read_to_string(&mut text));
    read.is_ok()
        && text
            .lines()
            .filter_map(|line| line.strip_prefix("oom_kill "))
            .any(|count| count.trim().parse().is_ok_and(|count: u64| count > 0))
}

/// The last bytes of the file, as the kubelet reads them. The container owns it: whatever cannot be read is empty.
fn termination_message(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        if metadata.is_file() {
            file.seek(SeekFrom::Start(metadata.len().saturating_sub(MESSAGE_BYTES_MAX as u64)))?;
            file.take(MESSAGE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    // Replacing invalid bytes makes it longer; the end is what counts.
    let start = text.len().saturating_sub(MESSAGE_BYTES_MAX);
    let start = (start..=text.len()).find(|index| text.is_char_boundary(*index));
    text[start.unwrap_or(0)..].into()
}

/// Field 22 of `/proc/PID/stat`. Its second field is the command in brackets, which may hold anything.
pub(crate) fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let stat = String::from_utf8_lossy(&stat);
    let after = stat.rfind(')').and_then(|end| stat[end..].split_ascii_whitespace().nth(20));
    after.and_then(|ticks| ticks.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn termination_messages_are_the_last_4096_bytes_of_a_plain_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let check = |expected: &str| assert_eq!(termination_message(&path), expected);
        check("");
        fs::write(&path, "short").unwrap();
        check("short");
        fs::write(&path, format!("{}é{}", "x".repeat(5000), "y".repeat(4094))).unwrap();
        check(&format!("é{}", "y".repeat(4094)));
        fs::write(&path, [0xff; 4096]).unwrap();
        check(&"\u{fffd}".repeat(1365));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        check("");
    }

    #[test]
    fn oom_kills_are_told_from_the_kernels_counters() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let check = |text: &str, expected: bool| {
            fs::write(&path, text).unwrap();
            assert_eq!(saw_oom_kill(&path), expected, "{text}");
        };
        check("low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\noom_group_kill 0\n", true);
        check("low 0\noom 1\noom_kill 0\noom_group_kill 7\n", false);
        check("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", true);
        check("oom_kill_disable 1\nunder_oom 0\n", false);
        assert!(!saw_oom_kill(&directory.path().join("none")));
    }

    #[test]
    fn start_ticks_of_this_process_are_known() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(start_ticks(pid).unwrap() > 0);
    }
}
