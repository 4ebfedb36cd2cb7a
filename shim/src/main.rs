//! `coracle-shim`: see the library of the same name.

use coracle_shim::{pause, server, start};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let outcome = if arguments.next_if(|word| word == pause::FLAG).is_some() {
        pause::run(arguments)
    } else {
        start::Options::parse(arguments).and_then(|options| {
            let Some(seat) = start::daemonize(&options)? else { return Ok(()) };
            server::serve(options, seat)
        })
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone, and there is nobody else to tell.
            drop(writeln!(std::io::stderr(), "coracle-shim: {error}"));
            ExitCode::FAILURE
        }
    }
}
