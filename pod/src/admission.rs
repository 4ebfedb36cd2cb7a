//! Admission: from `v1.Pod` to [`PodSpec`], with the API server's defaults and its validation.
//!
//! Total: any `v1.Pod` gives either a spec without impossible values, or every error found, worded as
//! kube-apiserver words them. A field that this version does not honour yet and that would change how the pod
//! runs is refused by name. Fields about *where* a pod runs (affinity, tolerations, …) are accepted: on this
//! board the choice has been made.
//!
//! Left out on purpose: everything that needs more than the pod itself (quotas, priority classes, service
//! accounts), which is the control plane's, and what only the runtime can know (the image's user, whether a
//! host path exists), which is reported as the container's waiting reason.

mod containers;
mod environment;
mod field;
mod names;
mod objects;
mod probes;
mod projected;
pub(crate) mod resources;
mod security;
mod volumes;

pub use field::{FieldError, Path, Problem};
pub use objects::{config_map, secret};

use crate::spec::{
    ContainerSpec, Deletion, Dns, DnsPolicy, HostAlias, PodSecurity, PodSpec, PodUid, RestartPolicy, Volume,
};
use containers::{HostPorts, PodContext, Role};
use field::{Errors, Shown, any};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::net::IpAddr;
use std::time::Duration;

const GRACE_SECONDS: i64 = 30;
const DEADLINE_SECONDS_MAX: i64 = 2_147_483_647;
/// `uname(2)` and RFC 1123.
const HOSTNAME_BYTES_MAX: usize = 63;
/// resolv.conf(5), glibc's `MAXNS`.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCHES_BYTES_MAX: usize = 2048;
/// Bounds what one manifest can ask of a board; upstream has none but the size of the object.
const CONTAINERS_MAX: usize = 64;

impl PodSpec {
    /// Translates and validates `pod`. `metadata.uid` must have been filled in by the caller: it identifies
    /// the pod for ever.
    ///
    /// # Errors
    /// Every error found, at most a hundred, in the order of the fields.
    pub fn from_api(pod: &v1::Pod) -> Result<PodSpec, Vec<FieldError>> {
        let mut errors = Errors::default();
        let meta = &pod.metadata;
        metadata(&mut errors, meta);
        let empty = v1::PodSpec::default();
        let spec = pod_spec(&mut errors, &Path::new("spec"), meta, pod.spec.as_ref().unwrap_or(&empty));
        errors.into_result(spec)
    }
}

/// What is wrong with the names of an object of another kind, most of which are named as pods are.
pub fn object_names(namespace: &str, name: &str) -> Vec<FieldError> {
    let mut errors = Errors::default();
    name_and_namespace(&mut errors, namespace, Some(name));
    errors.into_result(()).err().unwrap_or_default()
}

fn name_and_namespace(errors: &mut Errors, namespace: &str, name: Option<&str>) {
    let path = Path::new("metadata");
    match name.unwrap_or_default() {
        "" => errors.required(&path.child("name"), "name or generateName is required"),
        name => names::subdomain(errors, &path.child("name"), name),
    }
    names::label(errors, &path.child("namespace"), namespace);
}

fn metadata(errors: &mut Errors, meta: &ObjectMeta) {
    let path = Path::new("metadata");
    name_and_namespace(errors, meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref());
    names::file_name(errors, &path.child("uid"), meta.uid.as_deref().unwrap_or_default());
    if let Some(labels) = &meta.labels {
        names::labels(errors, &path.child("labels"), labels);
    }
    if let Some(annotations) = &meta.annotations {
        names::annotations(errors, &path.child("annotations"), annotations);
    }
}

/// Spelt out field by field: a field that a new version of the API brings does not compile until it is either
/// honoured or refused here.
fn pod_spec(errors: &mut Errors, path: &Path, meta: &ObjectMeta, wire: &v1::PodSpec) -> PodSpec {
    let v1::PodSpec {
        active_deadline_seconds,
        affinity: _,
        // No service account exists on a standalone board, so there is no token to mount.
        automount_service_account_token: _,
        containers,
        dns_config,
        dns_policy,
        // No services yet: there is nothing to link.
        enable_service_links: _,
        ephemeral_containers,
        host_aliases,
        host_ipc,
        host_network,
        host_pid,
        host_users,
        hostname,
        hostname_override,
        image_pull_secrets,
        init_containers,
        node_name: _,
        node_selector: _,
        os,
        overhead,
        preemption_policy: _,
        priority,
        priority_class_name: _,
        readiness_gates,
        resource_claims,
        resources,
        restart_policy,
        runtime_class_name,
        scheduler_name: _,
        scheduling_gates,
        security_context,
        service_account,
        service_account_name,
        set_hostname_as_fqdn,
        share_process_namespace,
        subdomain,
        termination_grace_period_seconds,
        tolerations: _,
        topology_spread_constraints: _,
        volumes,
        workload_ref: _,
    } = wire;

    let host_network = host_network.unwrap_or(false);
    let host_pid = host_pid.unwrap_or(false);
    let host_ipc = host_ipc.unwrap_or(false);
    for (present, name) in [
        (*host_users == Some(false), "hostUsers"),
        (hostname_override.is_some(), "hostnameOverride"),
        (overhead.as_ref().is_some_and(|overhead| !overhead.is_empty()), "overhead"),
        (any(resource_claims.as_ref()), "resourceClaims"),
        (resources.is_some(), "resources"),
        (runtime_class_name.as_ref().is_some_and(|name| !name.is_empty()), "runtimeClassName"),
        (any(scheduling_gates.as_ref()), "schedulingGates"),
    ] {
        errors.unsupported(present, &path.child(name));
    }
    if let Some(os) = os {
        errors.unsupported(os.name == "windows", &path.child("os").child("name"));
        if os.name != "windows" {
            errors.one_of(
                &path.child("os").child("name"),
                Some(&os.name),
                (),
                &[("linux", ()), ("windows", ())],
            );
        }
    }
    let share_process_namespace = share_process_namespace.unwrap_or(false);
    if share_process_namespace && host_pid {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("securityContext").child("shareProcessNamespace"), &true, detail);
    }

    let volumes = volumes::volumes(errors, &path.child("volumes"), volumes.as_deref());
    let security = security::pod_security(
        errors,
        &path.child("securityContext"),
        security_context.as_ref(),
        host_network,
        host_ipc,
    );
    let (init_containers, containers) = all_containers(
        errors,
        path,
        init_containers.as_deref().unwrap_or_default(),
        containers,
        &volumes,
        &security,
        host_network,
    );
    let ephemeral_containers = ephemeral(
        errors,
        &path.child("ephemeralContainers"),
        ephemeral_containers.as_deref().unwrap_or_default(),
        [&init_containers, &containers],
        &volumes,
        &security,
    );
    let gates_path = path.child("readinessGates");
    let readiness_gates: Vec<String> =
        readiness_gates.iter().flatten().map(|gate| gate.condition_type.clone()).collect();
    for (index, gate) in readiness_gates.iter().enumerate() {
        names::qualified_name(errors, &gates_path.index(index).child("conditionType"), gate);
    }
    let grace = grace(*termination_grace_period_seconds, GRACE_SECONDS);
    let deadline_path = path.child("activeDeadlineSeconds");
    let name = meta.name.clone().unwrap_or_default();
    for (value, name) in [(hostname, "hostname"), (subdomain, "subdomain")] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            names::label(errors, &path.child(name), value);
        }
    }
    PodSpec {
        uid: PodUid(meta.uid.clone().unwrap_or_default()),
        namespace: meta.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        labels: meta.labels.clone().unwrap_or_default(),
        annotations: meta.annotations.clone().unwrap_or_default(),
        generation: meta.generation.unwrap_or(0),
        deletion: meta.deletion_timestamp.as_ref().map(|_| Deletion {
            grace: self::grace(
                meta.deletion_grace_period_seconds,
                i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
            ),
        }),
        restart_policy: errors.one_of(
            &path.child("restartPolicy"),
            restart_policy.as_deref(),
            RestartPolicy::Always,
            &[
                ("Always", RestartPolicy::Always),
                ("OnFailure", RestartPolicy::OnFailure),
                ("Never", RestartPolicy::Never),
            ],
        ),
        termination_grace: grace,
        active_deadline: active_deadline_seconds
            .and_then(|seconds| errors.in_range::<u64>(&deadline_path, seconds, 1, DEADLINE_SECONDS_MAX))
            .map(Duration::from_secs),
        host_network,
        host_pid,
        host_ipc,
        share_process_namespace,
        hostname: hostname_of(hostname.as_deref(), &name),
        name,
        subdomain: subdomain.clone().filter(|subdomain| !subdomain.is_empty()),
        set_hostname_as_fqdn: set_hostname_as_fqdn.unwrap_or(false),
        host_aliases: aliases(errors, &path.child("hostAliases"), host_aliases.as_deref()),
        dns: dns(errors, path, dns_policy.as_deref(), dns_config.as_ref()),
        qos: resources::qos_class(&init_containers, &containers),
        resources: resources::pod_resources(&init_containers, &containers),
        init_containers,
        containers,
        ephemeral_containers,
        readiness_gates,
        volumes,
        security,
        image_pull_secrets: image_pull_secrets
            .iter()
            .flatten()
            .map(|secret| secret.name.clone())
            .filter(|name| !name.is_empty())
            .collect(),
        service_account_name: [service_account_name, service_account]
            .into_iter()
            .flatten()
            .find(|name| !name.is_empty())
            .cloned()
            .unwrap_or_else(|| "default".to_owned()),
        priority: priority.unwrap_or(0),
    }
}

/// Seconds to wait between `SIGTERM` and `SIGKILL`; a negative number counts as 1, as upstream has it.
fn grace(wire: Option<i64>, default: i64) -> Duration {
    Duration::from_secs(u64::try_from(wire.unwrap_or(default)).unwrap_or(1))
}

fn all_containers(
    errors: &mut Errors,
    path: &Path,
    init: &[v1::Container],
    main: &[v1::Container],
    volumes: &[Volume],
    security: &PodSecurity,
    host_network: bool,
) -> (Vec<ContainerSpec>, Vec<ContainerSpec>) {
    let containers_path = path.child("containers");
    if main.is_empty() {
        errors.required(&containers_path, "");
    }
    if init.len() + main.len() > CONTAINERS_MAX {
        errors.forbidden(&containers_path, format!("must have at most {CONTAINERS_MAX} containers"));
        return (Vec::new(), Vec::new());
    }
    let pod = PodContext { volumes, security, host_network };
    let mut host_ports = HostPorts::new();
    let mut list = |path: &Path, wire: &[v1::Container], role, taken: &[ContainerSpec]| {
        let mut found: Vec<ContainerSpec> = Vec::new();
        for (index, wire) in wire.iter().enumerate() {
            let path = path.index(index);
            if taken.iter().chain(&found).any(|known| known.name == wire.name && !wire.name.is_empty()) {
                errors.duplicate(&path.child("name"), &wire.name);
            }
            found.push(containers::container(errors, &path, wire, role, &pod, &mut host_ports));
        }
        found
    };
    let main = list(&containers_path, main, Role::Main, &[]);
    let init = list(&path.child("initContainers"), init, Role::Init, &main);
    (init, main)
}

/// `validateEphemeralContainers`: what they may not have is refused with the API server's words.
fn ephemeral(
    errors: &mut Errors,
    path: &Path,
    wire: &[v1::EphemeralContainer],
    others: [&[ContainerSpec]; 2],
    volumes: &[Volume],
    security: &PodSecurity,
) -> Vec<ContainerSpec> {
    if wire.len() > CONTAINERS_MAX {
        errors.forbidden(path, format!("must have at most {CONTAINERS_MAX} ephemeral containers"));
        return Vec::new();
    }
    let pod = PodContext { volumes, security, host_network: false };
    let mut found: Vec<ContainerSpec> = Vec::new();
    for (index, wire) in wire.iter().enumerate() {
        let path = path.index(index);
        let taken = others.iter().flat_map(|list| list.iter()).chain(&found);
        if taken.into_iter().any(|known| known.name == wire.name && !wire.name.is_empty()) {
            errors.duplicate(&path.child("name"), &wire.name);
        }
        let mut container = containers::ephemeral(errors, &path, wire, &pod);
        container.target = wire.target_container_name.clone().filter(|name| !name.is_empty());
        if let Some(target) = &container.target
            && !others.iter().flat_map(|list| list.iter()).any(|known| known.name == *target)
        {
            errors.push(&path.child("targetContainerName"), Problem::NotFound(target.shown()));
        }
        found.push(container);
    }
    found
}

/// `GeneratePodHostName` and `truncatePodHostnameIfNeeded`.
fn hostname_of(wanted: Option<&str>, pod_name: &str) -> String {
    let name = wanted.filter(|name| !name.is_empty()).unwrap_or(pod_name);
    let cut =
        name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= HOSTNAME_BYTES_MAX);
    name[..cut.last().unwrap_or(0)].trim_end_matches(['-', '.']).to_owned()
}

fn aliases(errors: &mut Errors, path: &Path, wire: Option<&[v1::HostAlias]>) -> Vec<HostAlias> {
    let mut found = Vec::new();
    for (index, wire) in wire.into_iter().flatten().enumerate() {
        let path = path.index(index);
        let hostnames = wire.hostnames.clone().unwrap_or_default();
        for (index, hostname) in hostnames.iter().enumerate() {
            names::subdomain(errors, &path.child("hostnames").index(index), hostname);
        }
        if let Some(ip) = ip_address(errors, &path.child("ip"), &wire.ip) {
            found.push(HostAlias { ip, hostnames });
        }
    }
    found
}

fn ip_address(errors: &mut Errors, path: &Path, text: &str) -> Option<IpAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        errors.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
    parsed
}

fn dns(errors: &mut Errors, path: &Path, policy: Option<&str>, config: Option<&v1::PodDNSConfig>) -> Dns {
    let policy = errors.one_of(
        &path.child("dnsPolicy"),
        policy,
        DnsPolicy::ClusterFirst,
        &[
            ("ClusterFirst", DnsPolicy::ClusterFirst),
            ("ClusterFirstWithHostNet", DnsPolicy::ClusterFirstWithHostNet),
            ("Default", DnsPolicy::Default),
            ("None", DnsPolicy::None),
        ],
    );
    let path = path.child("dnsConfig");
    let none = policy == DnsPolicy::None;
    let Some(config) = config else {
        if none {
            errors.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return Dns { policy, ..Dns::default() };
    };
    let nameservers = config.nameservers.clone().unwrap_or_default();
    let servers_path = path.child("nameservers");
    if none && nameservers.is_empty() {
        errors.required(&servers_path, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    if nameservers.len() > NAMESERVERS_MAX {
        let shown = format!("{nameservers:?}");
        let detail = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(&servers_path, Problem::Invalid(shown, detail));
    }
    for (index, server) in nameservers.iter().enumerate() {
        ip_address(errors, &servers_path.index(index), server);
    }
    let searches = config.searches.clone().unwrap_or_default();
    let searches_path = path.child("searches");
    let bytes: usize = searches.iter().map(|search| search.len() + 1).sum();
    if searches.len() > SEARCHES_MAX || bytes > SEARCHES_BYTES_MAX + 1 {
        let detail = format!(
            "must not have more than {SEARCHES_MAX} search paths of {SEARCHES_BYTES_MAX} bytes including spaces"
        );
        errors.push(&searches_path, Problem::Invalid(format!("{searches:?}"), detail));
    }
    for (index, search) in searches.iter().enumerate() {
        // Upstream takes a single dot, a trailing dot, and underscores (RFC 2782) here.
        let bare = search.strip_suffix('.').unwrap_or(search).replace('_', "-0");
        if search != "." && !names::is_subdomain(&bare.trim_start_matches('-').to_ascii_lowercase()) {
            names::subdomain(errors, &searches_path.index(index), search);
        }
    }
    let mut options = Vec::new();
    for (index, option) in config.options.iter().flatten().enumerate() {
        let path = path.child("options").index(index);
        let name = option.name.as_deref().unwrap_or_default();
        let value = option.value.as_deref().filter(|value| !value.is_empty());
        if name.is_empty() {
            errors.required(&path.child("name"), "must not be empty");
        }
        // Each goes into one line of resolv.conf, where blanks separate options.
        for (text, field) in [(name, "name"), (value.unwrap_or_default(), "value")] {
            if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
                errors.invalid(&path.child(field), text, "must not contain white space");
            }
        }
        options.push(value.map_or_else(|| name.to_owned(), |value| format!("{name}:{value}")));
    }
    Dns { policy, nameservers, searches, options }
}
