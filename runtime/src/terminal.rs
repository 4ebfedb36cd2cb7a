//! Terminals, as far as their size goes.

use std::io;
use std::os::fd::BorrowedFd;

/// Sets the size of a terminal by its master. `TIOCSWINSZ`, tty_ioctl(4).
pub fn resize(master: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

/// Rows and columns of this process's own terminal; `None` when standard input is none.
pub fn own_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stdin()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// The terminal at standard input in raw mode, for as long as this lives.
#[derive(Debug)]
pub struct Raw(rustix::termios::Termios);

impl Raw {
    /// Switches; an error when standard input is no terminal.
    pub fn enter() -> io::Result<Raw> {
        let before = rustix::termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) =
            rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, &self.0)
        {
            tracing::debug!(%error, "the terminal stays raw; type reset");
        }
    }
}
