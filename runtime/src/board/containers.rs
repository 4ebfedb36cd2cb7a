//! The board's containers: prepared, started, signalled, removed.

use super::{ActionError, Board, because, blocking, names_in, remove_file};
use crate::cgroup::Hierarchy;
use crate::container::{self, About, Surroundings};
use crate::layout::{instance_name, parse_instance};
use crate::shim_client::{ShimClient, ShimError};
use crate::{names, oci, seccomp};
use coracle_pod::objects::Objects;
use coracle_pod::observed::{InstanceId, Reason, Stamp};
use coracle_pod::spec::{ContainerSpec, PodSpec, Seccomp};
use coracle_shim::wire::{Cause, Phase, Run};
use sha2::{Digest, Sha256};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Board {
    /// Prepares and starts one instance. A failure leaves nothing of it behind.
    pub async fn start(
        self: &Arc<Board>,
        pod: &Arc<PodSpec>,
        container: &ContainerSpec,
        instance: &InstanceId,
        shim: &ShimClient,
        ips: &[IpAddr],
        objects: &Arc<Objects>,
    ) -> Result<(Stamp, About), ActionError> {
        let (board, spec, wanted) = (self.clone(), pod.clone(), container.clone());
        let (id, ips, objects) = (instance.clone(), ips.to_vec(), objects.clone());
        let begun = std::time::Instant::now();
        let target = match &container.target {
            Some(name) => Some(target(shim, name).await?),
            None => None,
        };
        let prepared = blocking(move || board.prepare(&spec, &wanted, &id, ips, &objects, target)).await;
        let started = match prepared {
            Ok(about) => {
                let layout = &self.settings.layout;
                let run = Run {
                    instance: instance_name(instance),
                    bundle: layout.bundle(&pod.uid, instance),
                    tty: container.tty,
                    stdin: container.stdin,
                    oom_events: Some(self.tree.oom_file(&pod.uid, pod.qos, instance)),
                    termination_log: Some(layout.writable(&pod.uid, instance).join("termination-log")),
                };
                shim.run(run)
                    .await
                    .map(|s| (self.stamp_of(&s.started, &self.boot.0), about))
                    .map_err(|error| not_started(&error))
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(started) => {
                let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.last_start_microseconds.store(took, Ordering::Relaxed);
                Ok(started)
            }
            Err(error) => match self.remove_container(pod, instance, false, Some(shim)).await {
                Ok(()) => Err(error),
                Err(second) => Err(ActionError {
                    reason: error.reason,
                    message: format!("{error}; and cleaning up failed too: {second}"),
                }),
            },
        }
    }

    fn prepare(
        &self,
        pod: &PodSpec,
        container: &ContainerSpec,
        instance: &InstanceId,
        pod_ips: Vec<IpAddr>,
        objects: &Objects,
        target: Option<(i32, u64)>,
    ) -> Result<About, ActionError> {
        let image = self.images.resolve(&container.image).map_err(because(Reason::CreateContainerError))?;
        let image = image.ok_or_else(|| ActionError {
            reason: Reason::CreateContainerError,
            message: format!("image {:?} is not on this board any more", container.image),
        })?;
        let filter = self.filter(container)?;
        self.tree
            .create_instance(&pod.uid, pod.qos, instance, container.security.privileged)
            .map_err(because(Reason::CreateContainerError))?;
        let facts = self.facts(pod_ips);
        let score =
            container::oom_score_adj(pod, container, self.memory_bytes_total).max(self.oom_score_floor);
        let about = container::prepare(
            pod,
            container,
            instance,
            &Surroundings {
                layout: &self.settings.layout,
                image: &image,
                facts: &facts,
                objects,
                target,
                hostname: &names::hostname(pod, &self.host_names()),
                cgroup_path: self.tree.instance_path(&pod.uid, pod.qos, instance),
                available_capabilities: self.capabilities,
                oom_score_adj: Some(score),
                pids_max: self.settings.pids_max,
                cgroup2: matches!(self.tree.hierarchy(), Hierarchy::V2 { .. }),
                cgroup_views: self.tree.views(),
                filter: filter.as_deref(),
            },
        )?;
        Ok(about)
    }

    /// The compiled filter of a container, compiled now if this boot has not seen its like. Blocking.
    fn filter(&self, container: &ContainerSpec) -> Result<Option<PathBuf>, ActionError> {
        let config_error = because::<String>(Reason::CreateContainerConfigError);
        let capabilities = oci::capability_mask(&oci::capabilities(container, self.capabilities));
        let layout = &self.settings.layout;
        let (profile, digest) = match &container.security.seccomp {
            Seccomp::Unconfined => return Ok(None),
            Seccomp::RuntimeDefault => (format!("default:{capabilities:x}").into(), String::new()),
            Seccomp::Localhost(name) => {
                let path = layout.data.join("seccomp").join(name);
                let bytes = fs::read(&path)
                    .map_err(|e| config_error(format!("seccomp profile {}: {e}", path.display())))?;
                let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
                (path.into_os_string(), digest)
            }
        };
        let Some(name) = seccomp::cache_name(&container.security.seccomp, capabilities, &digest) else {
            return Ok(None);
        };
        let file = layout.run.join("rt").join(name);
        if !file.exists() {
            compile(&layout.helper(), &profile, &file).map_err(config_error)?;
        }
        Ok(Some(file))
    }

    /// Gives the cgroups of a pod and of those of its instances that run what the pod has now. Idempotent.
    pub async fn resize(
        self: &Arc<Board>,
        pod: &Arc<PodSpec>,
        instances: &[InstanceId],
    ) -> Result<(), ActionError> {
        let (board, spec, ids) = (self.clone(), pod.clone(), instances.to_vec());
        blocking(move || board.tree.resize(&spec, &ids)).await.map_err(because(Reason::FailedResize))
    }

    /// Sends a signal to an instance's init; SIGKILL goes to its whole cgroup, and SIGTERM as the signal that the image
    /// names for it (OCI `StopSignal`). A no-op once it is gone.
    pub async fn signal(
        self: &Arc<Board>,
        pod: &Arc<PodSpec>,
        instance: &InstanceId,
        signal: i32,
        shim: Option<&ShimClient>,
    ) -> Result<(), ActionError> {
        if signal == libc::SIGKILL {
            let (board, spec, id) = (self.clone(), pod.clone(), instance.clone());
            let kill = move || board.tree.kill_instance(&spec.uid, spec.qos, &id);
            return blocking(kill).await.map_err(because(Reason::FailedKillPod));
        }
        let wanted = self.about(&pod.uid, instance).stop_signal.filter(|_| signal == libc::SIGTERM);
        match shim {
            Some(shim) => match shim.signal(&instance_name(instance), wanted.unwrap_or(signal)).await {
                Err(error) if !error.is_not_found() => Err(because(Reason::FailedKillPod)(error)),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Frees an instance that has ended: root, bundle, state, cgroups, record; with `log` its log too. Idempotent.
    pub async fn remove_container(
        self: &Arc<Board>,
        pod: &Arc<PodSpec>,
        instance: &InstanceId,
        log: bool,
        shim: Option<&ShimClient>,
    ) -> Result<(), ActionError> {
        let (board, spec, id) = (self.clone(), pod.clone(), instance.clone());
        blocking(move || board.undo_container(&spec, &id, log))
            .await
            .map_err(because(Reason::FailedKillPod))?;
        if let Some(shim) = shim {
            match shim.forget(&instance_name(instance)).await {
                Err(error) if !error.is_not_found() => return Err(because(Reason::FailedKillPod)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn undo_container(
        &self,
        pod: &PodSpec,
        instance: &InstanceId,
        log: bool,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let layout = &self.settings.layout;
        self.tree.kill_instance(&pod.uid, pod.qos, instance)?;
        container::remove(layout, &pod.uid, instance)?;
        self.tree.remove_instance(&pod.uid, pod.qos, instance)?;
        remove_file(&layout.exit_record(&pod.uid, instance))?;
        if log {
            let dir = layout.logs_of(pod).join(&instance.container);
            let current = format!("{}.log", instance.attempt);
            for name in
                names_in(&dir).into_iter().filter(|n| *n == current || n.starts_with(&format!("{current}.")))
            {
                remove_file(&dir.join(name))?;
            }
        }
        Ok(())
    }
}

/// The process whose pid namespace an ephemeral container joins.
async fn target(shim: &ShimClient, container: &str) -> Result<(i32, u64), ActionError> {
    let states = shim.state().await.map_err(because(Reason::CreateContainerError))?;
    let of_target = |instance: &str| parse_instance(instance).is_some_and(|id| id.container == container);
    let found = states.iter().find_map(|status| match &status.phase {
        Phase::Running(run) if of_target(&status.instance) => Some((run.pid, run.start_ticks)),
        _ => None,
    });
    found.ok_or_else(|| ActionError {
        reason: Reason::CreateContainerConfigError,
        message: format!("unable to find target container {container}"),
    })
}

/// Only what the helper itself says is about the container; without an answer nothing is known of it.
fn not_started(error: &ShimError) -> ActionError {
    let reason = match error {
        ShimError::Refused(refusal) if refusal.cause == Cause::Helper => Reason::RunContainerError,
        _ => Reason::CreateContainerError,
    };
    ActionError { reason, message: error.to_string() }
}

/// Has a helper compile a seccomp profile to `out`. Blocking, 20 ms.
fn compile(helper: &Path, profile: &std::ffi::OsStr, out: &Path) -> Result<(), String> {
    // The helper and not this process: libseccomp's memory would stay with the agent.
    let run = std::process::Command::new(helper)
        .args(["rt".as_ref(), "seccomp".as_ref(), profile, out.as_os_str()])
        .output()
        .map_err(|e| format!("start {}: {e}", helper.display()))?;
    if run.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&run.stderr);
    Err(text.trim().trim_start_matches("err ").to_string())
}
