//! Figures on a machine that boots: `make bench-vm`. A table on standard output, JSON in the file that is named.
//!
//! `CORACLE_VM_ARCH` names the machine, `CORACLE_VM_IDLE_SECONDS` how long it idles (600).

#![expect(clippy::print_stdout, reason = "a command line that prints a table")]

use anyhow::{Context, Result};
use coracle_tests::vm::kit::{Kit, SINCE_THE_AGENT_STARTED, counter, install, wait, wait_running};
use coracle_tests::vm::{Boot, Machine};
use serde_json::{Map, Value};
use std::time::Duration;

/// Of the agent and of every shim.
const PSS_KIB: &str = "sync; for p in $(systemctl show -P MainPID coracle) $(cat /sys/fs/cgroup/coracle.slice/shims/*/cgroup.procs 2>/dev/null); do \
    sed -n 's/^Pss: *\\([0-9]*\\) kB/\\1/p' /proc/$p/smaps_rollup; done | awk '{ sum += $1 } END { print sum }'";
/// Of the whole machine, what is in memory still included: sectors of 512 bytes. Documentation/admin-guide/iostats.rst.
const WRITTEN_BYTES: &str = "sync; awk '$3 == \"vda\" { print $10 * 512 }' /proc/diskstats";
/// By the agent and the shims, whatever else the machine does. proc_pid_io(5).
const WRITTEN_BYTES_BY_US: &str = "for p in $(systemctl show -P MainPID coracle) $(cat /sys/fs/cgroup/coracle.slice/shims/*/cgroup.procs); do \
    sed -n 's/^write_bytes: //p' /proc/$p/io; done | awk '{ sum += $1 } END { print sum }'";

fn number(machine: &mut Machine, script: &str) -> Result<f64> {
    let text = machine.sh(script)?;
    text.trim().parse().with_context(|| text.clone())
}

fn main() -> Result<()> {
    let file = std::env::args().nth(1).context("usage: vm_bench FILE")?;
    let idle: u64 = std::env::var("CORACLE_VM_IDLE_SECONDS").map_or(Ok(600), |text| text.parse())?;
    let kit = Kit::new()?;
    let disk = kit.base.disk()?;
    let mut machine = kit.boot(&disk, &Boot::default())?;
    let mut figures = Map::new();
    let mut put = |name: &str, value: f64| {
        println!("{name:<44} {value:>12.1}");
        figures.insert(name.into(), value.into());
    };
    install(&mut machine)?;
    put("coracle_bytes", number(&mut machine, "stat -Lc %s /usr/libexec/coracle/coracle")?);
    put("shim_bytes", number(&mut machine, "stat -Lc %s /usr/libexec/coracle/coracle-shim")?);
    put("package_bytes", number(&mut machine, "stat -c %s /host/coracle.deb")?);
    machine.sh("systemctl restart coracle")?;
    wait(&mut machine, "the agent answers", |_| true)?;
    // The agent gives back what starting took once it rests.
    let rest = |machine: &mut Machine, seconds: u64| machine.sh(&format!("sleep {seconds}"));
    rest(&mut machine, 60)?;
    put("pss_kib_0_pods", number(&mut machine, PSS_KIB)?);

    let names: Vec<String> = (0..10).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let before = number(&mut machine, WRITTEN_BYTES)?;
    for name in &names {
        machine.sh(&format!("coracle apply -f - <<'YAML'\n{}\nYAML", quiet(name)))?;
    }
    wait_running(&mut machine, &names)?;
    put("written_bytes_per_pod_created", (number(&mut machine, WRITTEN_BYTES)? - before) / 10.0);
    rest(&mut machine, 60)?;
    put("pss_kib_10_pods", number(&mut machine, PSS_KIB)?);

    let (ours, all) = (number(&mut machine, WRITTEN_BYTES_BY_US)?, number(&mut machine, WRITTEN_BYTES)?);
    for _ in 0..idle.div_ceil(60) {
        rest(&mut machine, Duration::from_secs(60).as_secs().min(idle))?;
    }
    put("idle_seconds", idle as f64);
    put("idle_written_bytes_by_coracle", number(&mut machine, WRITTEN_BYTES_BY_US)? - ours);
    put("idle_written_bytes_by_the_machine", number(&mut machine, WRITTEN_BYTES)? - all);

    machine.reboot()?;
    wait_running(&mut machine, &names)?;
    put("agent_start_to_10_pods_running_seconds", number(&mut machine, SINCE_THE_AGENT_STARTED)?);

    let before = number(&mut machine, WRITTEN_BYTES)?;
    machine.sh(&format!("coracle delete {}", names.join(" ")))?;
    put("written_bytes_per_pod_deleted", (number(&mut machine, WRITTEN_BYTES)? - before) / 10.0);
    std::fs::write(&file, serde_json::to_string_pretty(&Value::Object(figures))?)?;
    Ok(())
}

/// [`counter`], silent: a log is the pod's writing, not ours.
fn quiet(name: &str) -> String {
    counter(name).replace("echo $n; ", "")
}
