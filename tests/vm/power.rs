//! The plug is pulled while pods are created and deleted. `CORACLE_VM_POWER_CUTS` says how often, 4 by default.

use anyhow::{Result, ensure};
use coracle_tests::vm::kit::{Kit, SINCE_THE_AGENT_STARTED, counter, install, name, runs, wait};
use coracle_tests::vm::{Boot, Machine};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// From the agent's start to the last pod's, on an emulated machine that has its two processors for itself. Told, not
/// asserted: a busy host is no fault of the agent's.
const BACK_WITHIN_SECONDS: f64 = 30.0;

/// Changes pods until the moment has come; what is acknowledged is in `wanted`, what was under way is returned.
fn change_until(
    machine: &mut Machine,
    moment: Instant,
    wanted: &mut BTreeSet<String>,
    dice: &mut impl FnMut() -> u64,
) -> Result<Option<String>> {
    while Instant::now() < moment {
        let pod = format!("p{}", dice() % 6);
        let there = wanted.contains(&pod);
        let script = if there {
            format!("coracle delete {pod}")
        } else {
            format!("coracle apply -f - <<'YAML'\n{}\nYAML", counter(&pod))
        };
        let Some(ran) = machine.run_before(&script, moment)? else { return Ok(Some(pod)) };
        ensure!(ran.status == 0, "{script}: {}", ran.text);
        if !wanted.remove(&pod) {
            wanted.insert(pod);
        }
    }
    Ok(None)
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_and_leaves_nothing() {
    let rounds: u64 =
        std::env::var("CORACLE_VM_POWER_CUTS").map_or(4, |text| text.parse().expect("a number"));
    let seed: u64 = std::env::var("CORACLE_VM_SEED").map_or(1, |text| text.parse().expect("a number"));
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut dice = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    };
    let kit = Kit::new().expect("packages and a machine");
    let disk = kit.base.disk().expect("a disk");
    let mut machine = kit.boot(&disk, &Boot::default()).expect("boots");
    install(&mut machine).expect("installed");
    machine.sh("sync").expect("synced");
    let (mut wanted, mut slowest, mut late) = (BTreeSet::new(), 0.0_f64, 0);
    for round in 0..rounds {
        let moment = Instant::now() + Duration::from_millis(500 + dice() % 9500);
        let unsure = change_until(&mut machine, moment, &mut wanted, &mut dice).expect("changed");
        machine.power_cut().expect("cut");
        let boot = Boot { without_clock: round % 2 == 0, ..Boot::default() };
        machine = kit.boot(&disk, &boot).expect("boots again");
        let year = machine.sh("date +%Y").expect("a date");
        assert_eq!(year.trim() == "1970", boot.without_clock, "{year}");
        let sure = |pods: &[serde_json::Value]| {
            let there: BTreeSet<&str> = pods.iter().map(name).collect();
            wanted.iter().all(|n| Some(n) == unsure.as_ref() || there.contains(n.as_str()))
                && there.iter().all(|n| Some(*n) == unsure.as_deref() || wanted.contains(*n))
                && pods.iter().all(runs)
        };
        let pods = wait(&mut machine, &format!("round {round}: {wanted:?}, perhaps {unsure:?}, run"), sure)
            .expect("nothing acknowledged is lost");
        if let Some(pod) = unsure {
            wanted.remove(&pod);
            if pods.iter().any(|p| name(p) == pod) {
                wanted.insert(pod);
            }
        }
        let took = machine.sh(SINCE_THE_AGENT_STARTED).expect("times");
        let took: f64 = took.trim().parse().unwrap_or_else(|_| panic!("round {round}: seconds: {took}"));
        slowest = slowest.max(took);
        println!("round {round}: {} pods back {took:.1} s after the agent's start", pods.len());
        late += u64::from(took > BACK_WITHIN_SECONDS);
        let left = machine.sh(COUNT).expect("counted");
        let n = wanted.len().to_string();
        assert_eq!(
            left.split_whitespace().collect::<Vec<_>>(),
            vec![n.as_str(); 5],
            "round {round}: {COUNT}"
        );
        if round % 2 == 0 {
            // Time sync arrives, years later.
            machine.sh("date -s @1900000000 >/dev/null").expect("jumped");
            let still =
                wait(&mut machine, "the same pods after the jump", sure_of(&wanted)).expect("unharmed");
            let restarts = |pods: &[serde_json::Value]| -> Vec<_> {
                pods.iter().map(|p| p["status"]["containerStatuses"][0]["restartCount"].clone()).collect()
            };
            assert_eq!(restarts(&still), restarts(&pods), "the clock's jump restarts nothing");
        }
    }
    println!(
        "{rounds} power cuts, seed {seed}: the slowest was back after {slowest:.1} s, {late} after more than {BACK_WITHIN_SECONDS} s"
    );
}

fn sure_of(wanted: &BTreeSet<String>) -> impl Fn(&[serde_json::Value]) -> bool {
    let wanted: Vec<String> = wanted.iter().cloned().collect();
    move |pods| {
        let there: BTreeSet<&str> = pods.iter().map(name).collect();
        wanted.iter().all(|n| there.contains(n.as_str()))
            && pods.len() == wanted.len()
            && pods.iter().all(runs)
    }
}

/// Pods by their cgroups, shims, leases, veths, and directories on disk.
const COUNT: &str = "find /sys/fs/cgroup/coracle.slice/kubepods -type d -name 'pod*' | wc -l; \
    ls /sys/fs/cgroup/coracle.slice/shims 2>/dev/null | grep -c -; \
    ls /run/coracle/net/leases | grep -vc '^last$'; \
    ls -d /sys/class/net/coracle/brif/* 2>/dev/null | wc -l; \
    ls /var/lib/coracle/pods 2>/dev/null | wc -l";
