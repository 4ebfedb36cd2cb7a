//! What the tests and the figures of one machine have in common: the packages and an image to put on it, and its pods as it tells them.

use super::{Arch, Base, Boot, Disk, Machine};
use crate::image::Image;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Of a pod: its name, and its container's id, start and restarts.
pub type Identity = (String, Value, Value, Value);

/// Of the tests' waits for pods. An emulated machine shares two cores with others.
const PATIENCE: Duration = Duration::from_secs(400);

/// Packages and images for machines of one architecture, as they see it: `/host/coracle.deb`, `/host/next.deb` (the
/// same programs under a later version), `/host/coracle-control.deb`, `/host/coracle.tar.gz`, `/host/busybox.tar` (`example.test/busybox:1`), `/host/foreign.tar`.
pub struct Kit {
    /// The machine.
    pub base: Base,
    share: tempfile::TempDir,
}

impl Kit {
    /// For `CORACLE_VM_ARCH`, arm64 by default. `make deb` has built the packages.
    pub fn new() -> Result<Kit> {
        let arch = match std::env::var("CORACLE_VM_ARCH").as_deref() {
            Ok("amd64") => Arch::Amd64,
            Ok("arm64") | Err(_) => Arch::Arm64,
            Ok("armhf") => Arch::Armhf,
            Ok(other) => bail!("CORACLE_VM_ARCH={other}: amd64, arm64 or armhf"),
        };
        let base = Base::of(arch)?;
        let share = tempfile::Builder::new().prefix("kit").tempdir()?;
        let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist");
        for (package, version, name) in [
            ("coracle", "", "coracle.deb"),
            ("coracle", "+next", "next.deb"),
            ("coracle-control", "", "coracle-control.deb"),
        ] {
            let package: PathBuf =
                dist.join(format!("{package}_{}{version}_{}.deb", env!("CARGO_PKG_VERSION"), arch.name()));
            fs::copy(&package, share.path().join(name))
                .with_context(|| format!("{}: make test-vm builds it", package.display()))?;
        }
        let image = |name: &str, architecture: &str| -> Result<()> {
            Image::busybox_of("example.test/busybox:1", architecture, &base.busybox())?
                .write_oci_archive(&share.path().join(name))
        };
        image("busybox.tar", arch.oci())?;
        image("foreign.tar", "s390x")?;
        let archive = format!("coracle-{}-{}.tar.gz", env!("CARGO_PKG_VERSION"), arch.name());
        fs::copy(dist.join(&archive), share.path().join("coracle.tar.gz")).context(archive)?;
        Ok(Kit { base, share })
    }

    /// A machine that has booted already, with the package installed and the image imported.
    pub fn installed(&self) -> Result<Machine> {
        let mut machine = Machine::warm(&self.base, self.share.path())?;
        install(&mut machine)?;
        Ok(machine)
    }

    /// A machine that has booted already.
    pub fn bare(&self) -> Result<Machine> {
        Machine::warm(&self.base, self.share.path())
    }

    /// Boots from a disk.
    pub fn boot(&self, disk: &Disk, boot: &Boot) -> Result<Machine> {
        Machine::boot(disk, self.share.path(), boot)
    }
}

/// Installs the package as a user does, and imports the image.
pub fn install(machine: &mut Machine) -> Result<()> {
    machine.sh(
        "apt-get install -y -q --no-install-recommends /host/coracle.deb && systemctl is-active coracle",
    )?;
    machine.sh("coracle image import /host/busybox.tar")?;
    Ok(())
}

/// A pod of one container that writes a line with a number every second, and ends at SIGTERM.
pub fn counter(name: &str) -> String {
    let script = "trap 'exit 0' TERM; n=0; while :; do echo $n; n=$((n+1)); sleep 1 & wait $!; done";
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 5\n  containers:\n  - {{name: main, image: 'example.test/busybox:1', imagePullPolicy: IfNotPresent, command: [sh, -c, \"{script}\"]}}\n"
    )
}

/// The pods as the machine's agent lists them, by name.
pub fn pods(machine: &mut Machine) -> Result<Vec<Value>> {
    let ran = machine.run("coracle ps -o json")?;
    ensure!(ran.status == 0, "coracle ps: {}", ran.text);
    let list: Value = serde_json::from_str(&ran.text).with_context(|| ran.text.clone())?;
    Ok(list["items"].as_array().context("a list")?.clone())
}

/// A pod's name.
pub fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

/// Its only container's status.
pub fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// Whether its container runs: the phase says that it is to, also between two starts.
pub fn runs(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && container(pod)["state"]["running"].is_object()
}

/// What must not change while pods run on.
pub fn identity(pods: &[Value]) -> Vec<Identity> {
    let of = |pod: &Value| {
        let container = container(pod);
        let running = &container["state"]["running"]["startedAt"];
        (
            name(pod).into(),
            container["containerID"].clone(),
            running.clone(),
            container["restartCount"].clone(),
        )
    };
    pods.iter().map(of).collect()
}

/// Waits until `wanted` holds for the pods; these.
pub fn wait(machine: &mut Machine, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let until = Instant::now() + PATIENCE;
    loop {
        // An agent that is starting refuses: asked again.
        let seen = pods(machine);
        if let Ok(pods) = &seen
            && wanted(pods)
        {
            return seen;
        }
        if Instant::now() > until {
            let told = machine.run("coracle ps -o wide; journalctl -b -u coracle -n 80 --no-pager")?;
            bail!("not in time: {what}\n{}", told.text);
        }
    }
}

/// Waits until exactly these pods are there and run.
pub fn wait_running(machine: &mut Machine, names: &[&str]) -> Result<Vec<Value>> {
    wait(machine, &format!("{names:?} run"), |pods| {
        pods.len() == names.len() && names.iter().all(|n| pods.iter().any(|p| name(p) == *n && runs(p)))
    })
}

/// Seconds between the agent's first breath and the last container's start, by the kernel's clock.
pub const SINCE_THE_AGENT_STARTED: &str = r#"
agent=$(systemctl show -P ExecMainStartTimestampMonotonic coracle)
last=0
# A cgroup may go while find is on its way to it.
for procs in $({ find /sys/fs/cgroup/coracle.slice/kubepods -mindepth 3 -name cgroup.procs
                 find /sys/fs/cgroup/coracle.slice/kubepods -mindepth 2 -path '*pod*/*/cgroup.procs'; } 2>/dev/null); do
    for pid in $(cat "$procs" 2>/dev/null | head -1); do
        ticks=$(sed 's/.*) //' /proc/$pid/stat 2>/dev/null | cut -d' ' -f20)
        [ "${ticks:-0}" -le "$last" ] || last=$ticks
    done
done
[ "$last" = 0 ] && { echo 0; exit; }
awk -v a="$agent" -v l="$last" 'BEGIN { print l / 100 - a / 1000000 }'"#;
