//! `make run`: a board on this machine with a pod of two containers that serves HTTP, until Ctrl-C.
//!
//! `DEMO_EXIT=1` ends it once the pod has answered. Either way nothing is left.

use anyhow::Result;
use coracle_tests::agent::Board;
use coracle_tests::demo::Stop;
use std::io::Write;

const MANIFEST: &str = include_str!("demo.yaml");

fn main() -> Result<()> {
    let stop = Stop::block()?;
    let mut out = std::io::stdout();
    let board = Board::start("")?;
    writeln!(
        out,
        "The agent runs in a network namespace of its own, with everything below {}",
        board.root().display()
    )?;
    board.manifest("demo.yaml", MANIFEST)?;
    writeln!(out, "Manifest written to {}/manifests; waiting for its pod", board.root().display())?;
    let pod = board.wait("demo", "ready", |pod| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
    })?;
    writeln!(out, "\n$ coracle ps -o wide\n{}", board.run(&["ps", "-o", "wide"])?)?;
    let address = format!("{}:80", pod["status"]["podIP"].as_str().unwrap_or_default());
    let answer = board.http(&address)?;
    writeln!(out, "$ curl http://{address}\n{}", answer.split("\r\n\r\n").nth(1).unwrap_or(&answer))?;
    writeln!(
        out,
        "$ coracle logs demo -c crew --tail=1\n{}",
        board.run(&["logs", "demo", "-c", "crew", "--tail=1"])?
    )?;
    if !stop.is_at_once() {
        writeln!(
            out,
            "In another terminal:\n  coracle --root {} ps\n  coracle --root {} exec -it demo -c crew -- sh\nCtrl-C ends it.",
            board.root().display(),
            board.root().display()
        )?;
        stop.wait()?;
    }
    board.remove_manifest("demo.yaml")?;
    board.wait_gone("demo")?;
    drop(board);
    writeln!(out, "The pod and its agent are gone, and nothing of them is left.")?;
    Ok(())
}
