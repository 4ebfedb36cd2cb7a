//! What a thousand boards with ten thousand pods cost the control plane: adds its figures to the JSON object that the other
//! benches wrote. The boards are `coracle simulate`'s, of a debug build: the agent's own client code over no runtime.

use anyhow::{Context, Result, bail};
use coracle_tests::figures::{self, Figures, rounded};
use coracle_tests::fleet::Fleet;
use serde_json::json;
use std::fs::{self, File};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// All boards have their pods, and nothing changes: what is left is heartbeats.
const STEADY: Duration = Duration::from_secs(60);

/// Killed when it is dropped.
struct Simulator(Child);

impl Drop for Simulator {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("the simulator ends");
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: bench_fleet FILE.json SIMULATOR [BOARDS [PODS]]";
    let (out, simulator) = (arguments.next().context(usage)?, arguments.next().context(usage)?);
    let mut number =
        |default: usize| arguments.next().map_or(Ok(default), |text| text.parse()).context(usage);
    let (boards, pods) = (number(1000)?, number(10_000)?);
    let mut ours = Figures::new();
    let fleet = Fleet::start(&[])?;
    let dir = tempfile::tempdir()?;
    let line = fleet.join_line_with(&["--uses", "0"])?;
    let joins = line.split_whitespace().skip_while(|word| *word != "join").skip(1);
    let mut command = Command::new(simulator);
    command.arg("simulate").args(["--boards", &boards.to_string(), "--dir"]).arg(dir.path()).args(joins);
    let start = Instant::now();
    let log = dir.path().join("log");
    let mut simulator = Simulator(fleet.spawn(command.stderr(File::create(&log)?))?);
    let ready = format!("--for=jsonpath={{.status.readyReplicas}}={pods}");
    fleet.kubectl(&["create", "deployment", "many", "--image=example.test/busybox:1", "--replicas=0"])?;
    // `kubectl wait node --all` asks for one node after another, five a second.
    let ready_boards = || -> Result<usize> {
        let nodes = fleet.kubectl(&["get", "nodes", "--no-headers"])?;
        Ok(nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count())
    };
    while ready_boards()? < boards {
        if let Some(status) = simulator.0.try_wait()? {
            bail!("the simulator ended ({status}):\n{}", fs::read_to_string(&log)?.trim());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    ours.insert(format!("boards_{boards}_joined_seconds"), json!(rounded(start.elapsed().as_secs_f64())));

    let start = Instant::now();
    fleet.kubectl(&["scale", "deployment", "many", &format!("--replicas={pods}")])?;
    fleet.kubectl(&["wait", "deployment/many", &ready, "--timeout=20m"])?;
    ours.insert(format!("pods_{pods}_running_seconds"), json!(rounded(start.elapsed().as_secs_f64())));

    let pid = fleet.control_pid().context("the control plane runs")?;
    let before = figures::cpu_milliseconds(pid)?;
    std::thread::sleep(STEADY);
    let percent = (figures::cpu_milliseconds(pid)? - before) / STEADY.as_secs_f64() / 10.0;
    ours.insert(format!("control_cpu_percent_{boards}_boards"), json!(rounded(percent)));
    ours.insert(format!("control_pss_kib_{boards}_boards_{pods}_pods"), json!(figures::pss_kib(pid)?));
    figures::add(&out, ours)
}
