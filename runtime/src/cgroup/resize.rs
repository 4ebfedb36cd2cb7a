//! Other limits for a pod that runs: its cgroup and its containers', in an order in which no level ever has more than the
//! one above it grants. cgroup-v2.rst, sched-bwc.rst.

use super::limits::{self, Limit};
use super::{CgroupError, Tree, usage, write};
use coracle_pod::observed::InstanceId;
use coracle_pod::spec::PodSpec;
use std::fs;
use std::path::{Path, PathBuf};

impl Tree {
    /// Gives a pod and those of its instances that run what its spec has now. Idempotent; blocking.
    ///
    /// # Errors
    /// Before anything is changed: [`CgroupError::Used`], where a memory limit would be below what is in use. The kernel's.
    pub fn resize(&self, pod: &PodSpec, instances: &[InstanceId]) -> Result<(), CgroupError> {
        let pod_path = self.pod_path(&pod.uid, pod.qos);
        let mut containers = Vec::new();
        for instance in instances {
            let Some(spec) = pod.containers.iter().find(|c| c.name == instance.container) else { continue };
            let path = self.instance_path(&pod.uid, pod.qos, instance);
            self.fits(
                &format!("container {:?}", instance.container),
                &path,
                spec.resources.memory_limit_bytes,
            )?;
            containers.push((path, limits::of_container(&self.hierarchy, pod.qos, &spec.resources)));
        }
        self.fits("pod", &pod_path, pod.resources.memory_limit_bytes)?;
        let of_pod = limits::changing(&self.hierarchy, pod);
        self.apply(&pod_path, &of_pod, Direction::Up)?;
        for (path, files) in &containers {
            // A quota of v1 binds at every level: first what rises, then what falls.
            self.apply(path, files, Direction::Both)?;
        }
        self.apply(&pod_path, &of_pod, Direction::Both)?;
        self.balance()
    }

    /// As the kubelet checks it: the kernel would kill for it.
    fn fits(&self, what: &str, path: &str, limit: Option<u64>) -> Result<(), CgroupError> {
        let (Some(limit), Some(usage)) = (limit, usage::usage(&self.hierarchy, path)) else { return Ok(()) };
        if usage.working_set_bytes < limit {
            return Ok(());
        }
        Err(CgroupError::Used { what: what.into(), limit, used: usage.working_set_bytes })
    }

    fn apply(&self, path: &str, files: &[Limit], direction: Direction) -> Result<(), CgroupError> {
        for (name, value) in files {
            for file in self.files(path, name) {
                if direction == Direction::Both || rises(&file, value) {
                    write(&file, value)?;
                }
            }
        }
        Ok(())
    }

    /// Where a limit of this name is; nowhere, when the kernel or the cgroup is not there.
    fn files(&self, path: &str, name: &str) -> Vec<PathBuf> {
        let below = |root: PathBuf| root.join(path.trim_start_matches('/')).join(name);
        self.pod_roots().into_iter().map(below).filter(|file| file.exists()).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Only limits that become wider.
    Up,
    Both,
}

/// Whether `value` is more than the file has now.
fn rises(file: &Path, value: &str) -> bool {
    // One that cannot be read is written when its turn comes, and then tells why.
    fs::read_to_string(file).is_ok_and(|now| amount(value) > amount(&now))
}

/// The first word: `max`, and -1 as v1 writes it, are more than any number.
fn amount(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_without_a_limit_is_more_than_any() {
        let check = |text: &str, expected: u64| assert_eq!(amount(text), expected, "{text:?}");
        check("max 100000\n", u64::MAX);
        check("50000 100000\n", 50_000);
        check("-1\n", u64::MAX);
        check("9223372036854771712\n", 9_223_372_036_854_771_712);
        check("", u64::MAX);
    }
}
