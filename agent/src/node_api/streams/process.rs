//! Our ends of a process's streams: pipes, or its terminal.

use super::Wants;
use coracle_runtime::readiness::watch;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// Bytes read of a process at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Our ends.
pub(super) struct Ours {
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub stdin: Option<Input>,
    /// The exec's own terminal.
    pub resize: Option<OwnedFd>,
}

pub(super) enum Output {
    Pipe(pipe::Receiver),
    Terminal(AsyncFd<OwnedFd>),
}

pub(super) enum Input {
    Pipe(pipe::Sender),
    Terminal(AsyncFd<OwnedFd>),
}

impl Ours {
    pub(super) fn terminal(master: OwnedFd) -> io::Result<Ours> {
        let flags =
            nix::fcntl::OFlag::from_bits_truncate(nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_GETFL)?);
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
        let (input, resize) = (master.try_clone()?, master.try_clone()?);
        Ok(Ours {
            stdout: Some(Output::Terminal(watch(master, Interest::READABLE)?)),
            stderr: None,
            stdin: Some(Input::Terminal(watch(input, Interest::WRITABLE)?)),
            resize: Some(resize),
        })
    }
}

/// Pipes for what is wanted, `/dev/null` for the rest: ours, and the process's.
pub(super) fn pipes(wants: &Wants) -> io::Result<(Ours, [OwnedFd; 3])> {
    let null = || {
        Ok::<_, io::Error>(OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null")?))
    };
    let mut ours = Ours { stdout: None, stderr: None, stdin: None, resize: None };
    let input = if wants.stdin {
        let (read, write) = io::pipe()?;
        ours.stdin = Some(Input::Pipe(pipe::Sender::from_owned_fd(write.into())?));
        read.into()
    } else {
        null()?
    };
    let output = |wanted: bool| -> io::Result<(Option<Output>, OwnedFd)> {
        if !wanted {
            return Ok((None, null()?));
        }
        let (read, write) = io::pipe()?;
        Ok((Some(Output::Pipe(pipe::Receiver::from_owned_fd(read.into())?)), write.into()))
    };
    let (stdout, out) = output(wants.stdout)?;
    let (stderr, err) = output(wants.stderr)?;
    (ours.stdout, ours.stderr) = (stdout, stderr);
    Ok((ours, [input, out, err]))
}

pub(super) async fn read(mut output: Output, channel: u8, out: mpsc::Sender<(u8, Vec<u8>)>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = match &mut output {
            Output::Pipe(pipe) => pipe.read(&mut chunk).await,
            Output::Terminal(fd) => {
                fd.async_io(Interest::READABLE, |fd| nix::unistd::read(fd, &mut chunk).map_err(Into::into))
                    .await
            }
        };
        // A terminal whose last process is gone answers EIO: its end.
        let Ok(length @ 1..) = length else { return };
        if out.send((channel, chunk[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

pub(super) async fn write(mut input: Input, mut bytes: mpsc::Receiver<Vec<u8>>) {
    while let Some(chunk) = bytes.recv().await {
        let written = match &mut input {
            Input::Pipe(pipe) => pipe.write_all(&chunk).await,
            Input::Terminal(fd) => write_terminal(fd, &chunk).await,
        };
        // A process that does not read any more is none to write to.
        if written.is_err() {
            return;
        }
    }
}

async fn write_terminal(fd: &AsyncFd<OwnedFd>, mut chunk: &[u8]) -> io::Result<()> {
    while !chunk.is_empty() {
        let length =
            fd.async_io(Interest::WRITABLE, |fd| nix::unistd::write(fd, chunk).map_err(Into::into)).await?;
        chunk = &chunk[length..];
    }
    Ok(())
}
