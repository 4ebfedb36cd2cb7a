//! `make demo`: a control plane and three boards on this machine, pods on each, logs and exec through the API, until Ctrl-C.
//!
//! `DEMO_EXIT=1` ends it once everything was shown. Either way nothing is left.

use anyhow::{Context, Result, ensure};
use coracle_tests::agent::Board;
use coracle_tests::demo::Stop;
use coracle_tests::fleet::Fleet;
use std::io::Write;

const BOARDS: usize = 3;
const MANIFEST: &str = include_str!("fleet_demo.yaml");

fn main() -> Result<()> {
    let stop = Stop::block()?;
    let mut out = std::io::stdout();
    let mut fleet = Fleet::start(&[])?;
    writeln!(out, "coracle-control serves {} in a network namespace of its own", fleet.url())?;
    let mut boards = Vec::new();
    for _ in 0..BOARDS {
        let mut board = fleet.board("")?;
        board.start_agent()?;
        let line = fleet.join_line()?;
        let answer = board.join(&line)?;
        writeln!(out, "{}", answer.trim_end())?;
        boards.push(board);
    }
    fleet.wait(&["node", "--all", "--for=condition=Ready"])?;
    fleet.apply(MANIFEST)?;
    fleet.wait(&["pod", "-l", "app=demo", "--for=condition=Ready"])?;
    let mut show = |arguments: &str| -> Result<String> {
        let text = fleet.kubectl(&arguments.split(' ').collect::<Vec<_>>())?;
        writeln!(out, "\n$ kubectl {arguments}\n{text}")?;
        Ok(text)
    };
    show("get nodes -o wide")?;
    show("get pods -o wide")?;
    let log = show("logs demo-1 -c crew --tail=1")?;
    ensure!(log.contains("aboard"), "the pod's log is not here: {log}");
    let greeting = show("exec demo-2 -c crew -- wget -q -O - http://localhost")?;
    ensure!(greeting.contains("coracle"), "the pod does not serve: {greeting}");
    if !stop.is_at_once() {
        let control = fleet.control_pid().context("the control plane runs")?;
        writeln!(
            out,
            "\nIn another terminal:\n  export KUBECONFIG={}\n  nsenter --net=/proc/{control}/ns/net kubectl get pods\nCtrl-C ends it.",
            fleet.kubeconfig().display(),
        )?;
        stop.wait()?;
    }
    boards.into_iter().for_each(drop::<Board>);
    drop(fleet);
    writeln!(out, "\nThe control plane and the boards are gone, and nothing of them is left.")?;
    Ok(())
}
