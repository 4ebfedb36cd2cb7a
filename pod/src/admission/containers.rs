//! One container: defaults and validation.

use super::field::{Errors, Path, any};
use super::probes::{Purpose, probe};
use super::{environment, names, resources, security, volumes};
use crate::spec::{ContainerPort, ContainerSpec, PodSecurity, Protocol, PullPolicy, RestartOnResize, Volume};
use k8s_openapi::api::core::v1;
use std::collections::BTreeSet;

const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// What the pod says that bears on each of its containers.
pub(crate) struct PodContext<'a> {
    pub(crate) volumes: &'a [Volume],
    pub(crate) security: &'a PodSecurity,
    pub(crate) host_network: bool,
}

/// Ports of the board that the pod has taken so far: protocol, address, number.
pub(crate) type HostPorts = BTreeSet<(Protocol, String, u16)>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Init,
    Main,
    Ephemeral,
}

/// An ephemeral container: a container without what makes a pod last.
pub(crate) fn ephemeral(
    errors: &mut Errors,
    path: &Path,
    wire: &v1::EphemeralContainer,
    pod: &PodContext<'_>,
) -> ContainerSpec {
    let v1::EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = wire;
    let sub_paths = volume_mounts.iter().flatten().enumerate().flat_map(|(index, mount)| {
        let path = path.child("volumeMounts").index(index);
        let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        [
            (set(&mount.sub_path), path.child("subPath")),
            (set(&mount.sub_path_expr), path.child("subPathExpr")),
        ]
    });
    let resources_set = resources.as_ref().is_some_and(|resources| {
        resources.limits.as_ref().is_some_and(|list| !list.is_empty())
            || resources.requests.as_ref().is_some_and(|list| !list.is_empty())
    });
    for (present, at) in [
        (any(ports.as_ref()), path.child("ports")),
        (liveness_probe.is_some(), path.child("livenessProbe")),
        (readiness_probe.is_some(), path.child("readinessProbe")),
        (startup_probe.is_some(), path.child("startupProbe")),
        (lifecycle.is_some(), path.child("lifecycle")),
        (resources_set, path.child("resources")),
        (any(resize_policy.as_ref()), path.child("resizePolicy")),
        (restart_policy.is_some(), path.child("restartPolicy")),
        (any(restart_policy_rules.as_ref()), path.child("restartPolicyRules")),
    ]
    .into_iter()
    .chain(sub_paths)
    {
        if present {
            errors.forbidden(&at, "cannot be set for an Ephemeral Container");
        }
    }
    let plain = v1::Container {
        args: args.clone(),
        command: command.clone(),
        env: env.clone(),
        env_from: env_from.clone(),
        image: image.clone(),
        image_pull_policy: image_pull_policy.clone(),
        name: name.clone(),
        security_context: security_context.clone(),
        stdin: *stdin,
        stdin_once: *stdin_once,
        termination_message_path: termination_message_path.clone(),
        termination_message_policy: termination_message_policy.clone(),
        tty: *tty,
        volume_devices: volume_devices.clone(),
        volume_mounts: volume_mounts.clone(),
        working_dir: working_dir.clone(),
        ..v1::Container::default()
    };
    container(errors, path, &plain, Role::Ephemeral, pod, &mut HostPorts::new())
}

/// Spelt out field by field: a field that a new version of the API brings does not compile until it is either
/// honoured or refused here.
pub(crate) fn container(
    errors: &mut Errors,
    path: &Path,
    wire: &v1::Container,
    role: Role,
    pod: &PodContext<'_>,
    host_ports: &mut HostPorts,
) -> ContainerSpec {
    let v1::Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = wire;

    names::label(errors, &path.child("name"), name);
    errors.unsupported(restart_policy.is_some(), &path.child("restartPolicy"));
    errors.unsupported(any(restart_policy_rules.as_ref()), &path.child("restartPolicyRules"));
    errors.unsupported(any(volume_devices.as_ref()), &path.child("volumeDevices"));
    if let Some(lifecycle) = lifecycle {
        let path = path.child("lifecycle");
        errors.unsupported(lifecycle.post_start.is_some(), &path.child("postStart"));
        errors.unsupported(lifecycle.pre_stop.is_some(), &path.child("preStop"));
        errors.unsupported(lifecycle.stop_signal.is_some(), &path.child("stopSignal"));
    }

    let image = image_reference(errors, &path.child("image"), image.as_deref());
    let security = security::container_security(
        errors,
        &path.child("securityContext"),
        security_context.as_ref(),
        pod.security,
    );
    let ports =
        container_ports(errors, &path.child("ports"), ports.as_deref(), role, pod.host_network, host_ports);
    if role == Role::Init {
        let detail = "may not be set for init containers without restartPolicy=Always";
        for (set, name) in [
            (liveness_probe.is_some(), "livenessProbe"),
            (readiness_probe.is_some(), "readinessProbe"),
            (startup_probe.is_some(), "startupProbe"),
        ] {
            if set {
                errors.forbidden(&path.child(name), detail);
            }
        }
    }
    let mut probe_of = |name: &str, wire: &Option<v1::Probe>, purpose| {
        probe(errors, &path.child(name), wire.as_ref(), &ports, purpose)
    };
    let liveness = probe_of("livenessProbe", liveness_probe, Purpose::Liveness);
    let readiness = probe_of("readinessProbe", readiness_probe, Purpose::Readiness);
    let startup = probe_of("startupProbe", startup_probe, Purpose::Startup);

    let message_path = termination_message_path.clone().filter(|path| !path.is_empty());
    let message_path = message_path.unwrap_or_else(|| TERMINATION_MESSAGE_PATH.to_owned());
    names::no_backsteps(errors, &path.child("terminationMessagePath"), &message_path);
    let working_dir = working_dir.clone().filter(|dir| !dir.is_empty());
    if let Some(dir) = &working_dir {
        names::no_nul(errors, &path.child("workingDir"), dir);
    }
    let restart_on_resize = resize_policy_of(errors, &path.child("resizePolicy"), resize_policy.as_deref());
    ContainerSpec {
        name: name.clone(),
        target: None,
        pull_policy: pull_policy(
            errors,
            &path.child("imagePullPolicy"),
            image_pull_policy.as_deref(),
            &image,
        ),
        image,
        command: words(errors, &path.child("command"), command.as_deref()),
        args: words(errors, &path.child("args"), args.as_deref()),
        env_from: environment::env_from(errors, &path.child("envFrom"), env_from.as_deref()),
        env: environment::env(errors, &path.child("env"), env.as_deref()),
        working_dir,
        ports,
        restart_on_resize,
        resources: resources::container_resources(errors, &path.child("resources"), resources.as_ref()),
        mounts: volumes::mounts(
            errors,
            &path.child("volumeMounts"),
            volume_mounts.as_deref(),
            pod.volumes,
            security.privileged,
        ),
        security,
        liveness,
        readiness,
        startup,
        stdin: stdin.unwrap_or(false),
        stdin_once: stdin_once.unwrap_or(false),
        tty: tty.unwrap_or(false),
        termination_message_path: message_path,
        termination_message_from_logs: errors.one_of(
            &path.child("terminationMessagePolicy"),
            termination_message_policy.as_deref(),
            false,
            &[("FallbackToLogsOnError", true), ("File", false)],
        ),
    }
}

fn image_reference(errors: &mut Errors, path: &Path, wire: Option<&str>) -> String {
    let image = wire.unwrap_or_default();
    if image.is_empty() {
        errors.required(path, "");
    } else if image.trim() != image {
        errors.invalid(path, image, "must not have leading or trailing whitespace");
    }
    image.to_owned()
}

/// `SetDefaults_Container`: what may change under its name is asked for at each start.
fn pull_policy(errors: &mut Errors, path: &Path, wire: Option<&str>, image: &str) -> PullPolicy {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    let default = match (digest, tag) {
        (None, None | Some("latest")) => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    };
    errors.one_of(
        path,
        wire,
        default,
        &[
            ("Always", PullPolicy::Always),
            ("IfNotPresent", PullPolicy::IfNotPresent),
            ("Never", PullPolicy::Never),
        ],
    )
}

fn resize_policy_of(
    errors: &mut Errors,
    path: &Path,
    wire: Option<&[v1::ContainerResizePolicy]>,
) -> RestartOnResize {
    let mut found = RestartOnResize::default();
    for (index, policy) in wire.into_iter().flatten().enumerate() {
        let path = path.index(index);
        let resources = [("cpu", 0), ("memory", 1)];
        let resource = errors.one_of(&path.child("resourceName"), Some(&policy.resource_name), 0, &resources);
        let policies = [("NotRequired", false), ("RestartContainer", true)];
        let restarts =
            errors.one_of(&path.child("restartPolicy"), Some(&policy.restart_policy), false, &policies);
        if resource == 0 {
            found.cpu = restarts;
        } else {
            found.memory = restarts;
        }
    }
    found
}

fn words(errors: &mut Errors, path: &Path, wire: Option<&[String]>) -> Vec<String> {
    let words = wire.unwrap_or_default();
    for (index, word) in words.iter().enumerate() {
        names::no_nul(errors, &path.index(index), word);
    }
    words.to_vec()
}

fn container_ports(
    errors: &mut Errors,
    path: &Path,
    wire: Option<&[v1::ContainerPort]>,
    role: Role,
    host_network: bool,
    host_ports: &mut HostPorts,
) -> Vec<ContainerPort> {
    let mut found: Vec<ContainerPort> = Vec::new();
    // Init containers end before the others start: only among themselves do their ports matter.
    let mut own_ports = HostPorts::new();
    for (index, wire) in wire.into_iter().flatten().enumerate() {
        let path = path.index(index);
        let name = wire.name.clone().filter(|name| !name.is_empty());
        if let Some(name) = &name {
            names::port_name(errors, &path.child("name"), name);
            if found.iter().any(|known| known.name.as_ref() == Some(name)) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        let port_path = path.child("containerPort");
        let container_port = if wire.container_port == 0 {
            errors.required(&port_path, "");
            0
        } else {
            errors.in_range(&port_path, wire.container_port.into(), 1, 65535).unwrap_or(0)
        };
        let host_path = path.child("hostPort");
        let wanted = wire.host_port.filter(|port| *port != 0);
        if host_network && let Some(port) = wanted.filter(|port| *port != wire.container_port) {
            errors.invalid(&host_path, &port, "must match `containerPort` when `hostNetwork` is true");
        }
        let host_port = match wanted {
            Some(port) => errors.in_range::<u16>(&host_path, port.into(), 1, 65535),
            // SetDefaults_Pod.
            None if host_network => Some(container_port),
            None => None,
        };
        let protocols = [("SCTP", Protocol::Sctp), ("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)];
        let protocol =
            errors.one_of(&path.child("protocol"), wire.protocol.as_deref(), Protocol::Tcp, &protocols);
        let host_ip = wire.host_ip.as_deref().filter(|ip| !ip.is_empty()).and_then(|ip| {
            let parsed = ip.parse().ok();
            if parsed.is_none() {
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                errors.invalid(&path.child("hostIP"), ip, detail);
            }
            parsed
        });
        if let Some(number) = host_port {
            let address = wire.host_ip.clone().unwrap_or_default();
            let taken = if role == Role::Init { &mut own_ports } else { &mut *host_ports };
            let shown = format!("{}/{address}/{number}", wire.protocol.as_deref().unwrap_or("TCP"));
            if !taken.insert((protocol, address, number)) {
                errors.duplicate(&host_path, &shown);
            }
        }
        found.push(ContainerPort { name, container_port, host_port, host_ip, protocol });
    }
    found
}
