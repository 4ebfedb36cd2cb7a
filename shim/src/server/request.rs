//! What each request does. Where the answer comes later, it is given by the helper's end.

use super::{EXECS_MAX, Ending, Exec, INSTANCES_MAX, Shim};
use crate::child::Instance;
use crate::cri::{Bounds, Log, Stream};
use crate::helper::{Asker, Helper, Job, refusal};
use crate::sys;
use crate::wire::{
    Cause, INSTANCE_NAME_MAX, InstanceStatus, MESSAGE_BYTES_MAX, Phase, Refusal, Reply, Request, Run,
};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// A message's header, and the `more` flag of a page.
const PAGE_OVERHEAD_BYTES: usize = 64;

fn kernel(error: &io::Error) -> Refusal {
    refusal(Cause::Kernel, error.to_string())
}

/// `web.0` as container and attempt. Both become file names, so nothing else may pass.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let (container, attempt) = name.split_once('.')?;
    let label = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let number = !attempt.is_empty() && attempt.bytes().all(|byte| byte.is_ascii_digit());
    (name.len() <= INSTANCE_NAME_MAX && label(container) && number).then_some((container, attempt))
}

impl Shim {
    /// Carries out `request`; a refusal returned is still to be sent.
    pub(super) fn answer(
        &mut self,
        asker: Asker,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        match request {
            Request::Run(run) => return self.run(asker, &run),
            Request::Exec { instance, tty } => return self.exec(asker, &instance, tty, fds),
            Request::Attach { instance } => return self.attach(asker, &instance),
            Request::State { after } => return self.state(asker, &after),
            Request::Signal { instance, signal } => {
                let pid = self.running(&instance)?.pid();
                let pid =
                    pid.ok_or_else(|| refusal(Cause::NotFound, format!("{instance} is not running")))?;
                sys::kill(pid, signal).map_err(|error| kernel(&error))?;
            }
            Request::SignalExec { exec, signal } => {
                let pid = self.execs.iter().find(|found| found.id == exec).and_then(|found| found.pid);
                let pid =
                    pid.ok_or_else(|| refusal(Cause::NotFound, format!("exec {exec} is not running")))?;
                sys::kill(pid, signal).map_err(|error| kernel(&error))?;
            }
            Request::CloseStdin { instance } => self.running(&instance)?.close_stdin(),
            Request::Resize { instance, rows, columns } => {
                let instance = self.running(&instance)?;
                let terminal = instance.output(Stream::Stdout).filter(|_| instance.tty);
                let terminal = terminal
                    .ok_or_else(|| refusal(Cause::NotFound, format!("{} has no terminal", instance.name)))?;
                sys::set_window_size(terminal, rows, columns).map_err(|error| kernel(&error))?;
            }
            Request::Forget { instance } => {
                let index = self.find(&instance)?;
                if !matches!(self.instances[index].phase, Phase::Exited { .. }) {
                    return Err(refusal(Cause::Busy, format!("{instance} still runs")));
                }
                self.instances.remove(index);
            }
            Request::Shutdown => self.shutdown()?,
            // Said again on a connection that has said it.
            Request::Hello { .. } => {}
        }
        self.reply(asker, &Reply::Done, &[]);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize, Refusal> {
        let index = self.instances.iter().position(|instance| instance.name == name);
        index.ok_or_else(|| refusal(Cause::NotFound, format!("there is no instance {name:?}")))
    }

    fn running(&mut self, name: &str) -> Result<&mut Instance, Refusal> {
        let index = self.find(name)?;
        match self.instances[index].phase {
            Phase::Running(_) => Ok(&mut self.instances[index]),
            Phase::Starting | Phase::Exited { .. } => {
                Err(refusal(Cause::NotFound, format!("{name} is not running")))
            }
        }
    }

    fn run(&mut self, asker: Asker, run: &Run) -> Result<(), Refusal> {
        let name = &run.instance;
        let Some((container, attempt)) = split_name(name) else {
            return Err(refusal(Cause::Malformed, format!("{name:?} is no instance's name, as web.0 is")));
        };
        if self.find(name).is_ok() {
            return Err(refusal(Cause::Exists, format!("{name} was started already")));
        }
        if self.ending != Ending::No {
            return Err(refusal(Cause::Busy, "the shim was told to end"));
        }
        if self.instances.len() >= INSTANCES_MAX {
            let text = format!("{INSTANCES_MAX} instances are known; forget those that exited");
            return Err(refusal(Cause::Busy, text));
        }
        let path = self.options.logs.join(container).join(format!("{attempt}.log"));
        let bounds = Bounds { bytes_max: self.options.log_bytes_max, files_max: self.options.log_files_max };
        let key = self.next_key();
        let mut instance = Instance::new(key, run, Log::new(path, bounds));
        let started = || -> io::Result<Helper> {
            let ends = match run.tty {
                true => None,
                false => Some(instance.open_pipes(run.stdin, &self.tools.null)?),
            };
            let stdio = ends.as_ref().map(|ends| ends.each_ref().map(|end| end.as_fd()));
            let words: [&OsStr; 3] = ["run".as_ref(), name.as_ref(), run.bundle.as_ref()];
            Helper::start(&self.tools, asker, Job::Run(key), words, stdio)
        }();
        self.helpers.push(started.map_err(|error| kernel(&error))?);
        self.instances.push(instance);
        Ok(())
    }

    fn exec(&mut self, asker: Asker, name: &str, tty: bool, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        self.running(name)?;
        if self.execs.len() >= EXECS_MAX {
            return Err(refusal(Cause::Busy, format!("{EXECS_MAX} execs are running already")));
        }
        let expected = if tty { 1 } else { 4 };
        let count = fds.len();
        let mut fds = fds.into_iter();
        let (Some(process), true) = (fds.next(), count == expected) else {
            let text = format!("exec came with {count} descriptors instead of {expected}");
            return Err(refusal(Cause::Malformed, text));
        };
        let stdio: Vec<OwnedFd> = fds.collect();
        let stdio: Option<[BorrowedFd<'_>; 3]> = match stdio.as_slice() {
            [stdin, stdout, stderr] => Some([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]),
            _ => None,
        };
        // The helper opens it by the shim's own descriptor, so that none can leak into the container.
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), process.as_raw_fd()));
        let id = self.next_key();
        let words: [&OsStr; 3] = ["exec".as_ref(), name.as_ref(), path.as_ref()];
        let job = Job::Exec { id, _process: process };
        let helper = Helper::start(&self.tools, asker, job, words, stdio).map_err(|error| kernel(&error))?;
        self.helpers.push(helper);
        self.execs.push(Exec { id, connection: asker.connection, pid: None });
        Ok(())
    }

    fn attach(&mut self, asker: Asker, name: &str) -> Result<(), Refusal> {
        let [stdout, stderr, stdin] = self.running(name)?.attach().map_err(|error| kernel(&error))?;
        let reply =
            Reply::Attached { stdout: stdout.is_some(), stderr: stderr.is_some(), stdin: stdin.is_some() };
        let ends: Vec<BorrowedFd<'_>> =
            [&stdout, &stderr, &stdin].into_iter().flatten().map(AsFd::as_fd).collect();
        self.reply(asker, &reply, &ends);
        Ok(())
    }

    fn state(&mut self, asker: Asker, after: &str) -> Result<(), Refusal> {
        let mut known: Vec<&Instance> =
            self.instances.iter().filter(|instance| instance.name.as_str() > after).collect();
        known.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut instances, mut room) = (Vec::new(), MESSAGE_BYTES_MAX - PAGE_OVERHEAD_BYTES);
        for instance in &known {
            let status = InstanceStatus { instance: instance.name.clone(), phase: instance.phase.clone() };
            let Some(left) = room.checked_sub(status.encoded_length()) else { break };
            room = left;
            instances.push(status);
        }
        let more = instances.len() < known.len();
        self.reply(asker, &Reply::State { instances, more }, &[]);
        Ok(())
    }

    fn shutdown(&mut self) -> Result<(), Refusal> {
        let running = |instance: &Instance| !matches!(instance.phase, Phase::Exited { .. });
        if let Some(instance) = self.instances.iter().find(|instance| running(instance)) {
            return Err(refusal(Cause::Busy, format!("{} still runs", instance.name)));
        }
        if !self.execs.is_empty() || !self.helpers.is_empty() {
            return Err(refusal(Cause::Busy, "an exec still runs"));
        }
        // A last attempt; what the disk still refuses, the agent knows from the event or the state.
        self.retry_records();
        self.done = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_names_are_safe_file_names() {
        let check =
            |name: &str, expected: Option<(&str, &str)>| assert_eq!(split_name(name), expected, "{name}");
        check("web.0", Some(("web", "0")));
        check("a-b_C.4294967295", Some(("a-b_C", "4294967295")));
        for bad in
            ["", "web", "web.", ".0", "../x.0", "a/b.0", "web.0.1", "web.-1", "web.x", "wéb.0", "w b.0"]
        {
            check(bad, None);
        }
        check(&format!("{}.0", "a".repeat(80)), None);
    }
}
