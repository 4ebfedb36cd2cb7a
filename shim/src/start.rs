//! From a command line to a daemon: what happens once, before the first container.

use crate::{packet, sys};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The socket's name below `--run`.
pub const SOCKET: &str = "shim.sock";
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 8;
/// Killed last of all: with the shim gone, a whole pod is (`systemd` and `containerd` sit at −999).
const OOM_SCORE_ADJ: &str = "-998";

/// The default of a pod's `terminationGracePeriodSeconds`.
const GRACE: Duration = Duration::from_secs(30);

/// A shim that cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The command line is wrong.
    #[error(
        "{0}\nusage: coracle-shim --run DIR --data DIR --logs DIR --helper FILE --log-max-bytes N \
         --log-max-files N [--grace-seconds N] [--cgroup-procs FILE]..."
    )]
    Usage(String),
    /// Another shim has the pod.
    #[error("{0}: another shim serves this pod")]
    Taken(PathBuf),
    /// The kernel or the disk refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with its path.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
        let what = what.into();
        move |source| StartError::Io { what, source }
    }
}

/// The command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `RUN/pods/UID`: socket, libcontainer's state.
    pub run: PathBuf,
    /// `DATA/pods/UID`: exit records below `exits`.
    pub data: PathBuf,
    /// `DATA/logs/NS_NAME_UID`.
    pub logs: PathBuf,
    /// The program that makes containers.
    pub helper: PathBuf,
    /// A log file is rotated before it grows past this.
    pub log_bytes_max: u64,
    /// Log files of one instance, the current one included; at least 1.
    pub log_files_max: u32,
    /// What containers get between SIGTERM and SIGKILL when the shim itself is told to end by SIGTERM.
    pub grace: Duration,
    /// `cgroup.procs` of the cgroups that the shim enters before anything else.
    pub cgroup_procs: Vec<PathBuf>,
}

impl Options {
    /// Parses the arguments after the program's name.
    ///
    /// # Errors
    /// [`StartError::Usage`] names the first one that is wrong or missing.
    pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Options, StartError> {
        let mut arguments = arguments;
        let (mut run, mut data, mut logs, mut helper) = (None, None, None, None);
        let (mut log_bytes_max, mut log_files_max, mut cgroup_procs) = (None, None, Vec::new());
        let mut grace = GRACE;
        while let Some(name) = arguments.next() {
            let name = name.to_string_lossy().into_owned();
            let Some(value) = arguments.next() else {
                return Err(StartError::Usage(format!("{name} needs a value")));
            };
            let number = || {
                let parsed = value.to_str().and_then(|text| text.parse::<u64>().ok()).filter(|n| *n > 0);
                parsed.ok_or_else(|| StartError::Usage(format!("{name}: not a positive number")))
            };
            match name.as_str() {
                "--run" => run = Some(absolute(&name, value)?),
                "--data" => data = Some(absolute(&name, value)?),
                "--logs" => logs = Some(absolute(&name, value)?),
                "--helper" => helper = Some(absolute(&name, value)?),
                "--log-max-bytes" => log_bytes_max = Some(number()?),
                "--log-max-files" => log_files_max = Some(u32::try_from(number()?).unwrap_or(u32::MAX)),
                "--grace-seconds" => grace = Duration::from_secs(number()?),
                "--cgroup-procs" => cgroup_procs.push(absolute(&name, value)?),
                _ => return Err(StartError::Usage(format!("unknown option {name}"))),
            }
        }
        let missing = |name: &str| StartError::Usage(format!("{name} is missing"));
        Ok(Options {
            run: run.ok_or_else(|| missing("--run"))?,
            data: data.ok_or_else(|| missing("--data"))?,
            logs: logs.ok_or_else(|| missing("--logs"))?,
            helper: helper.ok_or_else(|| missing("--helper"))?,
            log_bytes_max: log_bytes_max.ok_or_else(|| missing("--log-max-bytes"))?,
            log_files_max: log_files_max.ok_or_else(|| missing("--log-max-files"))?,
            grace,
            cgroup_procs,
        })
    }
}

/// The shim's working directory is `/`, so a relative path would change its meaning.
fn absolute(name: &str, value: OsString) -> Result<PathBuf, StartError> {
    let path = PathBuf::from(value);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(StartError::Usage(format!("{name}: not an absolute path")))
    }
}

/// What a daemon has that a process has not.
#[derive(Debug)]
pub struct Seat {
    pub(crate) listener: OwnedFd,
    pub(crate) signals: File,
    pub(crate) null: File,
    pub(crate) boot_id: String,
    /// The value to give back to helpers, and so to containers.
    pub(crate) oom_score_adj: String,
    /// An open directory under an exclusive lock: as long as it lives, no second shim takes the pod.
    pub(crate) _lock: File,
}

/// Turns this process into the pod's shim, and tells whoever waits on standard output by one byte that it listens.
///
/// It enters its cgroups and forks; `None` in the parent, which should leave. The child leads a session of its own,
/// so neither the agent's terminal nor its end reaches it, and belongs to pid 1, so it never stays a zombie.
///
/// # Errors
/// In parent or child; the one who fails says so on standard error.
pub fn daemonize(options: &Options) -> Result<Option<Seat>, StartError> {
    sys::close_inherited().map_err(StartError::io("closing inherited descriptors"))?;
    for file in &options.cgroup_procs {
        let entered = File::options().write(true).open(file).and_then(|mut file| file.write_all(b"0"));
        entered.map_err(StartError::io(file.display().to_string()))?;
    }
    sys::ignore_signals();
    if !sys::fork_session().map_err(StartError::io("fork"))? {
        return Ok(None);
    }
    std::env::set_current_dir("/").map_err(StartError::io("/"))?;
    sys::become_parent().map_err(StartError::io("prctl"))?;
    let oom_score_adj = lower_oom_score()?;
    let boot_id = read("/proc/sys/kernel/random/boot_id")?;
    let signals = sys::signal_descriptor().map_err(StartError::io("signalfd"))?;
    let null =
        File::options().read(true).write(true).open("/dev/null").map_err(StartError::io("/dev/null"))?;
    let lock = lock(&options.run)?;
    let socket = options.run.join(SOCKET);
    let listener = match packet::listen(&socket, BACKLOG) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(StartError::Taken(socket)),
        listener => listener.map_err(StartError::io(socket.display().to_string()))?,
    };
    // An agent that has died meanwhile is no reason not to serve the next one.
    drop(io::stdout().write_all(b"\n").and_then(|()| io::stdout().flush()));
    sys::null_stdio(&null).map_err(StartError::io("dup2"))?;
    Ok(Some(Seat { listener, signals, null, boot_id, oom_score_adj, _lock: lock }))
}

fn read(path: &str) -> Result<String, StartError> {
    let text = fs::read_to_string(path).map_err(StartError::io(path))?;
    Ok(text.trim().into())
}

/// Returns the score as it was. Without `CAP_SYS_RESOURCE` it stays what it was.
fn lower_oom_score() -> Result<String, StartError> {
    let before = read("/proc/self/oom_score_adj")?;
    match sys::set_oom_score_adj(OOM_SCORE_ADJ) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            Err(StartError::io("/proc/self/oom_score_adj")(error))
        }
        _ => Ok(before),
    }
}

fn lock(run: &Path) -> Result<File, StartError> {
    let what = run.display().to_string();
    let directory = File::open(run).map_err(StartError::io(what.clone()))?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(StartError::Taken(run.into())),
        Err(TryLockError::Error(error)) => Err(StartError::io(what)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let check = |line: &str, expected: Result<u64, &str>| {
            let parsed = Options::parse(line.split(' ').filter(|word| !word.is_empty()).map(Into::into));
            match (parsed, expected) {
                (Ok(options), Ok(bytes)) => assert_eq!(options.log_bytes_max, bytes, "{line}"),
                (Err(error), Err(part)) => assert!(error.to_string().starts_with(part), "{line}: {error}"),
                (parsed, _) => panic!("{line}: {parsed:?}"),
            }
        };
        let rest = "--run /r --data /d --logs /l --helper /h";
        check(&format!("{rest} --log-max-bytes 7 --log-max-files 2 --cgroup-procs /c"), Ok(7));
        check(&format!("{rest} --log-max-bytes 0 --log-max-files 2"), Err("--log-max-bytes: not a positive"));
        check(&format!("{rest} --log-max-bytes 7"), Err("--log-max-files is missing"));
        check("--run r", Err("--run: not an absolute path"));
        check("--run", Err("--run needs a value"));
        check("--frob 1", Err("unknown option --frob"));
        check("", Err("--run is missing"));
    }
}
