//! The processes of a local cluster: found by what the kernel says they run, started apart from the terminal, ended for sure.
//!
//! No file holds a process id: one that outlives its process tells of another's. Whose a process is, its command line says,
//! which names a directory of this cluster; what is signalled is a pidfd, opened before that was read.

use anyhow::{Context, Result};
use nix::unistd::geteuid;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

/// A process that was found, and is meant whatever becomes of its number.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
}

/// Processes of this user whose program is called `program` and whose arguments satisfy `is_meant`.
///
/// # Errors
/// `/proc` cannot be read.
pub fn find(program: &str, is_meant: impl Fn(&[OsString]) -> bool) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let entry = entry.context("list the processes")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // One that ends meanwhile is not there.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // Anybody may call himself anything.
        if entry.metadata().map_or(true, |of| of.uid() != geteuid().as_raw()) {
            continue;
        }
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<OsString> =
            line.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
        let name = words.first().and_then(|word| Path::new(word).file_name());
        if name == Some(OsStr::new(program)) && is_meant(&words[1..]) {
            found.push(Process { pidfd });
        }
    }
    Ok(found)
}

/// Whether `wanted` stand one after another in `words`.
pub fn has(words: &[OsString], wanted: &[&OsStr]) -> bool {
    words.windows(wanted.len()).any(|window| window.iter().zip(wanted).all(|(word, wanted)| word == wanted))
}

/// Ends processes: SIGTERM to all, and SIGKILL to those that are still there after `grace`. When it returns they are gone.
///
/// # Errors
/// The kernel's refusal.
pub async fn end(processes: Vec<Process>, grace: Duration) -> Result<()> {
    let mut ends = Vec::new();
    for process in processes {
        signal(&process.pidfd, Signal::TERM)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe to call; an OwnedFd closes its descriptor last"
        )]
        ends.push(AsyncFd::with_interest(process.pidfd, Interest::READABLE)?);
    }
    let all = async {
        for end in &ends {
            // pidfd_open(2): readable once the process has ended.
            end.readable().await?.retain_ready();
        }
        std::io::Result::Ok(())
    };
    if let Ok(ended) = tokio::time::timeout(grace, all).await {
        return Ok(ended?);
    }
    for end in &ends {
        signal(end.get_ref(), Signal::KILL)?;
    }
    for end in &ends {
        end.readable().await?.retain_ready();
    }
    Ok(())
}

fn signal(pidfd: &OwnedFd, signal: Signal) -> Result<()> {
    match pidfd_send_signal(pidfd, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        answer => answer.context("signal a process"),
    }
}

/// What a started process runs, and where.
pub struct Program {
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// The network namespace it runs in, by a file; this one without.
    pub netns: Option<PathBuf>,
    /// Another `/etc/resolv.conf` than the machine's.
    pub resolv_conf: Option<PathBuf>,
}

impl Program {
    /// A command that leaves this session, goes where it belongs and becomes the program. See [`become_program`].
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(["local", "run"]);
        for (flag, path) in [("--netns", &self.netns), ("--resolv-conf", &self.resolv_conf)] {
            if let Some(path) = path {
                command.arg(flag).arg(path);
            }
        }
        command.arg("--").args(&self.words);
        command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET").env("NO_COLOR", "1");
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Starts it in the background, what it says going to `log` and, once, that it is ready to `notify`.
    pub fn start(&self, log: &Path, notify: Option<&Path>) -> Result<Child> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| log.display().to_string())?;
        let mut command = self.command()?;
        if let Some(notify) = notify {
            command.env("NOTIFY_SOCKET", notify);
        }
        command.stdout(file.try_clone()?).stderr(file);
        command.spawn().with_context(|| format!("start {}", self.words[0].display()))
    }
}

/// Becomes the program of the command line: in a session of its own, so that no terminal ends it, and in that namespace.
/// Returns only what kept it from that. Before the process has a second thread.
pub fn become_program(netns: Option<&Path>, resolv_conf: Option<&Path>, words: &[OsString]) -> Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, setns, unshare};
    use std::os::unix::process::CommandExt;
    // Refused to the leader of a process group, which nobody is who was just forked by a program that is no shell.
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::errno::Errno::EPERM) => {}
        Err(error) => return Err(error).context("begin a session"),
    }
    if let Some(path) = netns {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))?;
    }
    if let Some(path) = resolv_conf {
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
        let none = None::<&str>;
        // What the machine mounts is seen; what is mounted here stays here.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).context("part from the mounts")?;
        let place = fs::canonicalize("/etc/resolv.conf").context("/etc/resolv.conf")?;
        mount(Some(path), &place, none, MsFlags::MS_BIND, none).context("/etc/resolv.conf")?;
    }
    let (program, arguments) = words.split_first().context("no program was named")?;
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("run {}", program.display()))
}
