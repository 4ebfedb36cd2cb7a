//! `make bench`: figures of this machine, against runc and crun in the same run. Writes a JSON object of figure to
//! number, each with its unit in its name, and prints a table.

use anyhow::{Context, Result, ensure};
use coracle_tests::agent::{Board, binary};
use coracle_tests::figures::{self, Figures, cpu_milliseconds, median, milliseconds, pss_kib, rounded};
use coracle_tests::tree;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 30;
/// Idle is watched for so long.
const IDLE: Duration = Duration::from_secs(30);
/// A pod that takes longer is not going to start.
const START: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let out = std::env::args().nth(1).context("usage: bench FILE.json")?;
    let mut figures = Figures::new();
    for runtime in ["runc", "crun"] {
        let alone = std::thread::spawn(move || peer(runtime));
        match alone.join().map_err(|_| anyhow::anyhow!("{runtime}: the bench panicked"))? {
            Ok(time) => drop(figures.insert(format!("{runtime}_ms_median"), json!(time))),
            Err(error) => writeln!(std::io::stderr(), "{runtime} is left out: {error}")?,
        }
    }
    container_start(&mut figures)?;
    pods(&mut figures)?;
    figures.insert("binary_bytes".into(), json!(fs::metadata(binary("coracle")?)?.len()));
    figures.insert("shim_binary_bytes".into(), json!(fs::metadata(binary("coracle-shim")?)?.len()));
    figures::print(&figures)?;
    let ratio = number(&figures, "start_to_process_ms_median") / number(&figures, "runc_ms_median");
    writeln!(std::io::stdout(), "container start is {ratio:.2} of runc's")?;
    Ok(fs::write(&out, serde_json::to_string_pretty(&figures)? + "\n")?)
}

fn number(figures: &Figures, name: &str) -> f64 {
    figures.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

/// Shows this thread, and what it starts, the unified half of a hybrid hierarchy as the only one: crun 1.8 knows no hybrid.
/// True when that was needed; no controller is there then, so the peer runs without limits, to its advantage.
fn unified_only(runtime: &str) -> Result<bool> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if runtime != "crun" || !unified.is_dir() {
        return Ok(false);
    }
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mounts")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make the mounts private")?;
    mount(Some(unified), "/sys/fs/cgroup", none, MsFlags::MS_BIND, none)
        .context("bind the unified hierarchy")?;
    writeln!(std::io::stderr(), "{runtime} runs without limits: it does not know this hybrid hierarchy")?;
    Ok(true)
}

/// A peer: create and start of a container with the same filter and limits, until its program runs. In a thread of its own.
fn peer(runtime: &str) -> Result<f64> {
    let without_limits = unified_only(runtime)?;
    let dir = tempfile::tempdir()?;
    let rootfs = dir.path().join("rootfs");
    fs::create_dir(&rootfs)?;
    tar::Archive::new(tree::busybox()?.tar()?.as_slice()).unpack(&rootfs)?;
    ensure!(Command::new(runtime).arg("spec").current_dir(dir.path()).status()?.success(), "{runtime} spec");
    let path = dir.path().join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["sleep", "1000"]);
    spec["linux"]["seccomp"] = serde_json::to_value(coracle_runtime::seccomp::runtime_default(0xa804_25fb))?;
    spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    spec["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 50000, "period": 100000});
    spec["linux"]["resources"]["pids"] = json!({"limit": 100});
    if without_limits {
        spec["linux"]["resources"] = json!({});
    }
    fs::write(&path, serde_json::to_vec(&spec)?)?;
    let root = dir.path().join("state");
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let id = format!("bench-{}-{round}", std::process::id());
        let start = Instant::now();
        let run = Command::new(runtime)
            .arg("--root")
            .arg(&root)
            .args(["run", "-d", "--bundle"])
            .arg(dir.path())
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()?;
        ensure!(run.success(), "{runtime} run");
        if round > 0 {
            times.push(milliseconds(start));
        }
        ensure!(
            Command::new(runtime).arg("--root").arg(&root).args(["delete", "-f", &id]).status()?.success(),
            "{runtime} delete"
        );
    }
    Ok(median(times))
}

/// Restarts of one container: ordered to running, through shim and helper, as the agent itself tells it.
fn container_start(figures: &mut Figures) -> Result<()> {
    let board = Board::start("")?;
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let name = format!("start-{round}");
        board.apply(&pod(&name, "sleep 1000", ""))?;
        let log = wait_log(&board, &name)?;
        if round > 0 {
            times.push(log);
        }
        board.run(&["delete", &name, "--grace-period=0"])?;
    }
    figures.insert("start_to_process_ms_median".into(), json!(median(times)));
    Ok(())
}

/// The agent logs how long each start took: from the order, image mounted and all, to `execve` reported.
fn wait_log(board: &Board, name: &str) -> Result<f64> {
    board.wait(name, "running", |p| p["status"]["phase"] == "Running")?;
    let metrics = board.get_text("/metrics")?;
    let line = metrics.lines().find(|l| l.starts_with("coracle_container_start_seconds{quantile=\"last\"}"));
    let seconds: f64 = line.and_then(|l| l.rsplit(' ').next()).context("no start metric")?.parse()?;
    Ok(seconds * 1e3)
}

fn pod(name: &str, script: &str, volumes: &str) -> String {
    let mounts =
        if volumes.is_empty() { "" } else { "    volumeMounts: [{name: bench, mountPath: /bench}]\n" };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{volumes}  containers:\n  - name: main\n    image: example.test/busybox:1\n    command: [sh, -c, {script:?}]\n    resources: {{requests: {{cpu: 50m}}, limits: {{memory: 64Mi, cpu: 500m}}}}\n{mounts}"
    )
}

fn pods(figures: &mut Figures) -> Result<()> {
    let board = Board::start("")?;
    let dir = tempfile::tempdir()?;
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
    let volumes = format!("  volumes: [{{name: bench, hostPath: {{path: {}}}}}]\n", dir.path().display());
    // Held open for writing here too, so that reading never ends between two pods.
    let hold = File::options().read(true).write(true).open(&fifo)?;
    let lines = BufReader::new(File::open(&fifo)?).lines();
    let (told, started) = mpsc::channel();
    // Ends with the process: a pod that never starts must not keep the bench waiting for its line.
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| told.send(line)));
    let next = || {
        let late = || format!("no pod started:\n{}", board.run(&["ps"]).unwrap_or_default());
        started.recv_timeout(START).with_context(late)
    };
    figures.insert("pss_kib_0_pods".into(), json!(pss(&board)?.0));
    let script = "echo up > /bench/fifo; exec sleep 1000";
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let name = format!("one-{round}");
        let text = pod(&name, script, &volumes);
        let start = Instant::now();
        board.manifest("one.yaml", &text)?;
        next()?;
        if round > 0 {
            times.push(milliseconds(start));
        }
        board.remove_manifest("one.yaml")?;
        board.wait_gone(&name)?;
    }
    figures.insert("manifest_to_process_ms_median".into(), json!(median(times)));
    board.manifest("keep.yaml", &pod("keep", script, &volumes))?;
    next()?;
    board.wait("keep", "running", |p| p["status"]["phase"] == "Running")?;
    figures.insert("pss_kib_1_pod".into(), json!(pss(&board)?.0));
    let exec: Result<Vec<f64>> = (0..ROUNDS).map(|_| exec(&board)).collect();
    figures.insert("exec_ms_median".into(), json!(median(exec?)));
    board.remove_manifest("keep.yaml")?;
    board.wait_gone("keep")?;
    let before = cpu(&board)?;
    let ten: Vec<String> = (0..10).map(|n| pod(&format!("ten-{n}"), script, &volumes)).collect();
    let start = Instant::now();
    for (n, text) in ten.iter().enumerate() {
        board.manifest(&format!("ten-{n}.yaml"), text)?;
    }
    for _ in 0..10 {
        next()?;
    }
    figures.insert("manifest_to_process_10_ms_max".into(), json!(rounded(milliseconds(start))));
    for n in 0..10 {
        board.wait(&format!("ten-{n}"), "running", |p| p["status"]["phase"] == "Running")?;
    }
    figures.insert("cpu_ms_per_pod_start".into(), json!(rounded((cpu(&board)? - before) / 10.0)));
    let (all, shim) = pss(&board)?;
    figures.insert("pss_kib_10_pods".into(), json!(all));
    figures.insert("shim_pss_kib".into(), json!(shim));
    // The last of the start is still being written when the pods are seen to run.
    let mut written_before = written(&board)?;
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = written(&board)?;
        if now == written_before {
            break;
        }
        written_before = now;
    }
    let cpu_before = cpu(&board)?;
    std::thread::sleep(IDLE);
    let busy = (cpu(&board)? - cpu_before) / (IDLE.as_secs_f64() * 1e3) * 100.0;
    figures.insert("idle_cpu_percent_10_pods".into(), json!(rounded(busy)));
    let bytes = (written(&board)? - written_before) * 60 / IDLE.as_secs();
    figures.insert("idle_written_bytes_per_minute".into(), json!(bytes));
    drop(hold);
    Ok(())
}

/// The agent and its shims.
fn processes(board: &Board) -> Result<(u32, Vec<u32>)> {
    let agent = board.agent_pid().context("the agent runs")?;
    let root = board.root().display().to_string();
    let mut shims = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&line).into_owned();
        if text.contains("coracle-shim") && text.contains(&root) {
            shims.push(pid);
        }
    }
    Ok((agent, shims))
}

/// KiB of the agent with its shims, and of the largest shim.
fn pss(board: &Board) -> Result<(u64, u64)> {
    let (agent, shims) = processes(board)?;
    let each: Vec<u64> = shims.into_iter().map(pss_kib).collect::<Result<_>>()?;
    Ok((pss_kib(agent)? + each.iter().sum::<u64>(), each.into_iter().max().unwrap_or(0)))
}

/// Milliseconds of CPU of the agent, its shims, and everything that they have waited for.
fn cpu(board: &Board) -> Result<f64> {
    let (agent, shims) = processes(board)?;
    shims.into_iter().chain([agent]).map(cpu_milliseconds).sum()
}

/// Bytes that the agent and its shims caused to be written to disks.
fn written(board: &Board) -> Result<u64> {
    let (agent, shims) = processes(board)?;
    let mut bytes = 0;
    for pid in shims.into_iter().chain([agent]) {
        let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
        bytes += text.lines().find_map(|l| l.strip_prefix("write_bytes: ")?.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(bytes)
}

/// `true` in a container, from the first byte of the request to the exit code.
fn exec(board: &Board) -> Result<f64> {
    let socket: PathBuf = board.root().join("run/coracle.sock");
    let start = Instant::now();
    let mut stream = UnixStream::connect(Path::new(&socket))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(
        stream,
        "GET /exec/default/keep/main?command=true&stdout=true&stderr=true HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    )?;
    let (mut heard, mut chunk) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&heard).contains("Success") {
        let length = stream.read(&mut chunk)?;
        ensure!(length > 0, "exec failed: {}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&chunk[..length]);
    }
    Ok(milliseconds(start))
}
