//! Where everything of one agent lies: pure path arithmetic below two directories.
//!
//! `data` survives a reboot (flash), `run` need not (tmpfs where there is one). Nothing else in the crate
//! joins these paths by hand, so the code and the table in ARCHITECTURE.md cannot drift apart.

use coracle_pod::observed::InstanceId;
use coracle_pod::spec::{PodSpec, PodUid};
use std::path::{Path, PathBuf};

/// The two directories of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `/var/lib/coracle`, or what `--root` names.
    pub data: PathBuf,
    /// `/run/coracle`, or `ROOT/run`.
    pub run: PathBuf,
}

impl Layout {
    /// The layout of `--root data`: run state goes to `/run/coracle` only for the default root.
    pub fn of_root(data: &Path) -> Layout {
        let run =
            if data == Path::new("/var/lib/coracle") { "/run/coracle".into() } else { data.join("run") };
        Layout { data: data.into(), run }
    }

    /// `DATA/pods/UID`: volumes, etc files, exit records, writable layers.
    pub fn pod_data(&self, uid: &PodUid) -> PathBuf {
        self.data.join("pods").join(&uid.0)
    }

    /// `RUN/pods/UID`: shim socket, namespaces, bundles.
    pub fn pod_run(&self, uid: &PodUid) -> PathBuf {
        self.run.join("pods").join(&uid.0)
    }

    /// `DATA/logs/NS_NAME_UID`, as the kubelet names it below `/var/log/pods`.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &PodUid) -> PathBuf {
        self.data.join("logs").join(format!("{namespace}_{name}_{}", uid.0))
    }

    /// Log directory of a validated pod.
    pub fn logs_of(&self, pod: &PodSpec) -> PathBuf {
        self.pod_logs(&pod.namespace, &pod.name, &pod.uid)
    }

    /// `RUN/pods/UID/shim.sock`.
    pub fn shim_socket(&self, uid: &PodUid) -> PathBuf {
        self.pod_run(uid).join("shim.sock")
    }

    /// libcontainer's state root of one pod.
    pub fn state(&self, uid: &PodUid) -> PathBuf {
        self.pod_run(uid).join("state")
    }

    /// The OCI bundle of one instance: `config.json` and `rootfs`.
    pub fn bundle(&self, uid: &PodUid, instance: &InstanceId) -> PathBuf {
        self.pod_run(uid).join(instance_name(instance))
    }

    /// The writable layer of one instance: `upper`, `work`, `termination-log`.
    pub fn writable(&self, uid: &PodUid, instance: &InstanceId) -> PathBuf {
        self.pod_data(uid).join("containers").join(&instance.container).join(instance.attempt.to_string())
    }

    /// The shim's exit record of one instance.
    pub fn exit_record(&self, uid: &PodUid, instance: &InstanceId) -> PathBuf {
        self.pod_data(uid).join("exits").join(instance_name(instance))
    }

    /// The read-only bind of the agent's own binary that helpers are started from.
    pub fn helper(&self) -> PathBuf {
        self.run.join("rt").join("coracle")
    }
}

/// `web.3`: unique within a pod, for ever. Container names hold no dot (DNS label).
pub fn instance_name(instance: &InstanceId) -> String {
    format!("{}.{}", instance.container, instance.attempt)
}

/// The reverse of [`instance_name`]; `None` for anything else.
pub fn parse_instance(name: &str) -> Option<InstanceId> {
    let (container, attempt) = name.split_once('.')?;
    let attempt: u32 = attempt.parse().ok()?;
    let instance = InstanceId { container: container.into(), attempt };
    (!container.is_empty() && instance_name(&instance) == name).then_some(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_names_round_trip_and_nothing_else_parses() {
        let check = |text: &str, expected: Option<(&str, u32)>| {
            let found = parse_instance(text);
            assert_eq!(found.as_ref().map(|i| (i.container.as_str(), i.attempt)), expected, "{text}");
        };
        check("web.0", Some(("web", 0)));
        check("web-2.17", Some(("web-2", 17)));
        for bad in ["web", "web.", ".1", "web.01", "web.-1", "web.1.2", "web.99999999999", ""] {
            check(bad, None);
        }
    }

    #[test]
    fn only_the_default_root_uses_slash_run() {
        assert_eq!(Layout::of_root(Path::new("/var/lib/coracle")).run, Path::new("/run/coracle"));
        assert_eq!(Layout::of_root(Path::new("/srv/a")).run, Path::new("/srv/a/run"));
    }
}
