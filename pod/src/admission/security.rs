//! Who a container runs as, and what it may do: the container's own settings, else the pod's.

use super::field::{Errors, Path};
use super::names;
use crate::spec::{ContainerSecurity, PodSecurity, Seccomp};
use k8s_openapi::api::core::v1;

/// Ids that the kernel's `uid_t` holds and Kubernetes allows.
const ID_MAX: i64 = 2_147_483_647;

/// Sysctls that touch no other pod: the kubelet's `SafeSysctlAllowlist`.
const SAFE_SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// `capabilities(7)` as of Linux 6.18, without the prefix.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];

fn id(errors: &mut Errors, path: &Path, value: Option<i64>) -> Option<u32> {
    value.and_then(|value| errors.in_range(path, value, 0, ID_MAX))
}

/// The pod's settings, and the namespaces they bear on.
pub(crate) fn pod_security(
    errors: &mut Errors,
    path: &Path,
    wire: Option<&v1::PodSecurityContext>,
    host_network: bool,
    host_ipc: bool,
) -> PodSecurity {
    let Some(wire) = wire else { return PodSecurity::default() };
    errors.unsupported(wire.se_linux_options.is_some(), &path.child("seLinuxOptions"));
    errors.unsupported(wire.windows_options.is_some(), &path.child("windowsOptions"));
    app_armor(errors, &path.child("appArmorProfile"), wire.app_armor_profile.as_ref());
    let policy = wire.supplemental_groups_policy.as_deref();
    errors
        .unsupported(policy.is_some_and(|policy| policy != "Merge"), &path.child("supplementalGroupsPolicy"));
    // Both policies do the same to the volumes that this version has: an emptyDir is new, a hostPath is left alone.
    errors.one_of(
        &path.child("fsGroupChangePolicy"),
        wire.fs_group_change_policy.as_deref(),
        (),
        &[("OnRootMismatch", ()), ("Always", ())],
    );
    let groups_path = path.child("supplementalGroups");
    let supplemental_groups = wire
        .supplemental_groups
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, group)| id(errors, &groups_path.index(index), Some(*group)))
        .collect();
    PodSecurity {
        run_as_user: id(errors, &path.child("runAsUser"), wire.run_as_user),
        run_as_group: id(errors, &path.child("runAsGroup"), wire.run_as_group),
        run_as_non_root: wire.run_as_non_root.unwrap_or(false),
        supplemental_groups,
        fs_group: id(errors, &path.child("fsGroup"), wire.fs_group),
        seccomp: wire
            .seccomp_profile
            .as_ref()
            .map(|profile| seccomp(errors, &path.child("seccompProfile"), profile)),
        sysctls: sysctls(errors, &path.child("sysctls"), wire.sysctls.as_deref(), host_network, host_ipc),
    }
}

fn sysctls(
    errors: &mut Errors,
    path: &Path,
    wire: Option<&[v1::Sysctl]>,
    host_network: bool,
    host_ipc: bool,
) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (index, sysctl) in wire.into_iter().flatten().enumerate() {
        let name_path = path.index(index).child("name");
        // sysctl(8) takes both separators.
        let name = sysctl.name.replace('/', ".");
        if name.is_empty() {
            errors.required(&name_path, "");
        } else if !SAFE_SYSCTLS.contains(&name.as_str()) {
            errors.forbidden(&name_path, format!("sysctl {:?} is not one of the safe sysctls", sysctl.name));
        } else if found.iter().any(|(known, _)| *known == name) {
            errors.duplicate(&name_path, &sysctl.name);
        } else if name.starts_with("net.") && host_network {
            errors.invalid(&name_path, &sysctl.name, "may not be set when 'hostNetwork' is true");
        } else if name.starts_with("kernel.") && host_ipc {
            errors.invalid(&name_path, &sysctl.name, "may not be set when 'hostIPC' is true");
        }
        names::no_nul(errors, &path.index(index).child("value"), &sysctl.value);
        found.push((name, sysctl.value.clone()));
    }
    found
}

fn seccomp(errors: &mut Errors, path: &Path, wire: &v1::SeccompProfile) -> Seccomp {
    let profile_path = path.child("localhostProfile");
    if wire.type_ != "Localhost"
        && let Some(profile) = &wire.localhost_profile
    {
        errors.invalid(&profile_path, profile, "can only be set when seccomp type is Localhost");
    }
    if wire.type_.is_empty() {
        errors.required(&path.child("type"), "type is required when seccompProfile is set");
        return Seccomp::RuntimeDefault;
    }
    let kind = errors.one_of(
        &path.child("type"),
        Some(&wire.type_),
        "RuntimeDefault",
        &[("Localhost", "Localhost"), ("RuntimeDefault", "RuntimeDefault"), ("Unconfined", "Unconfined")],
    );
    match (kind, wire.localhost_profile.as_deref()) {
        ("Localhost", Some(profile)) if !profile.is_empty() => {
            names::descending(errors, &profile_path, profile);
            Seccomp::Localhost(profile.to_owned())
        }
        ("Localhost", _) => {
            errors.required(&profile_path, "must be set when seccomp type is Localhost");
            Seccomp::RuntimeDefault
        }
        ("Unconfined", _) => Seccomp::Unconfined,
        _ => Seccomp::RuntimeDefault,
    }
}

/// No AppArmor profile is ever loaded, so only `Unconfined` is kept to.
fn app_armor(errors: &mut Errors, path: &Path, wire: Option<&v1::AppArmorProfile>) {
    errors.unsupported(wire.is_some_and(|profile| profile.type_ != "Unconfined"), path);
}

/// The container's settings, with the pod's where it has none of its own.
pub(crate) fn container_security(
    errors: &mut Errors,
    path: &Path,
    wire: Option<&v1::SecurityContext>,
    pod: &PodSecurity,
) -> ContainerSecurity {
    let wire = wire.cloned().unwrap_or_default();
    errors.unsupported(wire.se_linux_options.is_some(), &path.child("seLinuxOptions"));
    errors.unsupported(wire.windows_options.is_some(), &path.child("windowsOptions"));
    app_armor(errors, &path.child("appArmorProfile"), wire.app_armor_profile.as_ref());
    let proc_mount = wire.proc_mount.as_deref();
    errors.unsupported(proc_mount.is_some_and(|kind| kind != "Default"), &path.child("procMount"));

    let privileged = wire.privileged.unwrap_or(false);
    let capabilities_path = path.child("capabilities");
    let lists = wire.capabilities.unwrap_or_default();
    let add = capabilities(errors, &capabilities_path.child("add"), lists.add.as_deref());
    let drop = capabilities(errors, &capabilities_path.child("drop"), lists.drop.as_deref());
    let escalation_path = path.child("allowPrivilegeEscalation");
    let no_new_privs = wire.allow_privilege_escalation == Some(false);
    if no_new_privs && privileged {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.invalid(&escalation_path, &false, detail);
    }
    if no_new_privs && add.iter().any(|name| name == "SYS_ADMIN") {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        errors.invalid(&escalation_path, &false, detail);
    }
    let own = wire.seccomp_profile.as_ref().map(|p| seccomp(errors, &path.child("seccompProfile"), p));
    ContainerSecurity {
        run_as_user: id(errors, &path.child("runAsUser"), wire.run_as_user).or(pod.run_as_user),
        run_as_group: id(errors, &path.child("runAsGroup"), wire.run_as_group).or(pod.run_as_group),
        run_as_non_root: wire.run_as_non_root.unwrap_or(pod.run_as_non_root),
        read_only_root: wire.read_only_root_filesystem.unwrap_or(false),
        privileged,
        no_new_privs,
        capabilities_add: add,
        capabilities_drop: drop,
        seccomp: if privileged {
            Seccomp::Unconfined
        } else {
            own.or_else(|| pod.seccomp.clone()).unwrap_or(Seccomp::RuntimeDefault)
        },
    }
}

fn capabilities(errors: &mut Errors, path: &Path, wire: Option<&[String]>) -> Vec<String> {
    let mut found = Vec::new();
    for (index, text) in wire.into_iter().flatten().enumerate() {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" || CAPABILITIES.contains(&name) {
            found.push(name.to_owned());
        } else {
            errors.invalid(&path.index(index), text, "unknown capability");
        }
    }
    found
}
