//! A terminal with a program at its other end, as a person has it.

use crate::agent::deadline;
use crate::sys;
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The person's end.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    heard: String,
}

impl Terminal {
    /// A terminal of so many rows and columns, that will be `command`'s own.
    pub fn of(command: &mut Command, rows: u16, columns: u16) -> Result<Terminal> {
        let pty = openpty(None, None).context("openpty")?;
        let side = || Ok::<_, std::io::Error>(Stdio::from(pty.slave.try_clone()?));
        command.stdin(side()?).stdout(side()?).stderr(side()?);
        sys::own_terminal(command);
        let terminal = Terminal { master: pty.master, heard: String::new() };
        terminal.resize(rows, columns)?;
        Ok(terminal)
    }

    /// Another size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        sys::resize(&self.master, rows, columns).context("resize the terminal")
    }

    /// Types.
    pub fn type_in(&self, text: &str) -> Result<()> {
        Ok(File::from(self.master.try_clone()?).write_all(text.as_bytes())?)
    }

    /// Reads until this appears; what came up to and with it.
    pub fn expect(&mut self, wanted: &str) -> Result<String> {
        let until = Instant::now() + deadline();
        loop {
            if let Some(at) = self.heard.find(wanted) {
                let rest = self.heard.split_off(at + wanted.len());
                return Ok(std::mem::replace(&mut self.heard, rest));
            }
            if !self.more(until)? {
                bail!("the terminal ended without {wanted:?}: {:?}", self.heard);
            }
        }
    }

    /// Reads to the end.
    pub fn rest(&mut self) -> Result<String> {
        let until = Instant::now() + deadline();
        while self.more(until)? {}
        Ok(std::mem::take(&mut self.heard))
    }

    fn more(&mut self, until: Instant) -> Result<bool> {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? == 0 {
            bail!("nothing more on the terminal before the deadline: {:?}", self.heard);
        }
        let mut chunk = [0; 4096];
        match File::from(self.master.try_clone()?).read(&mut chunk) {
            // EIO: the program's end is closed.
            Ok(0) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error.into()),
            Ok(length) => {
                self.heard += &String::from_utf8_lossy(&chunk[..length]);
                Ok(true)
            }
        }
    }
}
