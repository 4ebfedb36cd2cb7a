//! What a container's first process is: command, environment and identity, from the pod and the image.
//!
//! Pure but for [`identity`], which reads `/etc/passwd` and `/etc/group` of the container's root without ever
//! leaving it (`openat2` with `RESOLVE_IN_ROOT`).

use coracle_pod::spec::{ContainerSpec, EnvValue, PodSpec};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use oci_spec::image::Config;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

/// The PATH of an image that sets none; Docker's.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes read of a container's passwd or group file.
const ACCOUNT_FILE_BYTES_MAX: u64 = 1 << 20;

/// A container whose process cannot be made out: the kubelet's `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProcessError {
    /// Neither the pod nor the image names a command.
    #[error("no command specified: set command, or use an image with an entrypoint")]
    NoCommand,
    /// `runAsNonRoot` with a user that is, or may be, root.
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    /// `runAsNonRoot` cannot be checked against a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root"
    )]
    NotNumeric(String),
    /// The image's user is not in its passwd file.
    #[error("unable to find user {0}: no matching entries in the image's passwd file")]
    UnknownUser(String),
    /// The image's group is not in its group file.
    #[error("unable to find group {0}: no matching entries in the image's group file")]
    UnknownGroup(String),
    /// `valueFrom.fieldRef` of a field that does not exist.
    #[error("couldn't find {0} for environment variable {1}")]
    Field(String, String),
}

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
    /// From passwd, else `/`; `/root` for root.
    pub home: String,
}

/// Facts of the pod that only its sandbox knows, for `fieldRef`.
#[derive(Clone, Debug, Default)]
pub struct PodFacts {
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub host_ip: Option<IpAddr>,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
}

/// Entrypoint and arguments: Kubernetes' rules for `command` and `args` over the image's.
pub fn arguments(
    container: &ContainerSpec,
    image: &Config,
    variables: &BTreeMap<String, String>,
) -> Result<Vec<String>, ProcessError> {
    let from_image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let expand_all = |list: &[String]| list.iter().map(|t| expand(t, variables)).collect::<Vec<_>>();
    let (mut command, arguments) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (expand_all(&container.command), expand_all(&container.args)),
        (true, false) => (from_image(image.entrypoint()), expand_all(&container.args)),
        (true, true) => (from_image(image.entrypoint()), from_image(image.cmd())),
    };
    command.extend(arguments);
    if command.is_empty() { Err(ProcessError::NoCommand) } else { Ok(command) }
}

/// Name and value.
pub type Variable = (String, String);

/// The pod's own variables in order, expanded: those that `$(VAR)` in `command` and `args` may name.
pub fn variables(
    pod: &PodSpec,
    container: &ContainerSpec,
    facts: &PodFacts,
) -> Result<(Vec<Variable>, BTreeMap<String, String>), ProcessError> {
    let (mut ordered, mut known) = (Vec::new(), BTreeMap::new());
    for variable in &container.env {
        let value = match &variable.value {
            EnvValue::Literal(text) => expand(text, &known),
            EnvValue::Field(path) => field(pod, facts, path)
                .ok_or_else(|| ProcessError::Field(path.clone(), variable.name.clone()))?,
        };
        known.insert(variable.name.clone(), value.clone());
        ordered.push((variable.name.clone(), value));
    }
    Ok((ordered, known))
}

/// `KEY=value` lines: the image's, HOSTNAME, the pod's over them; PATH and HOME are always there.
pub fn environment(
    image: &Config,
    own: &[(String, String)],
    hostname: &str,
    identity: &Identity,
    terminal: bool,
) -> Vec<String> {
    let mut list: Vec<(String, String)> =
        vec![("PATH".into(), DEFAULT_PATH.into()), ("HOSTNAME".into(), hostname.into())];
    if terminal {
        list.push(("TERM".into(), "xterm".into()));
    }
    // HOME always: else libcontainer's init asks the image's NSS libraries for it.
    list.push(("HOME".into(), identity.home.clone()));
    let image = image.env().iter().flatten().filter_map(|line| line.split_once('='));
    let image = image.map(|(k, v)| (k.to_string(), v.to_string()));
    for (key, value) in image.chain(own.iter().cloned()) {
        match list.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = value,
            None => list.push((key, value)),
        }
    }
    list.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// `$(VAR)` by the variables before it, `$$` for a dollar; an unknown name stays as written.
/// Kubernetes: third_party/forked/golang/expansion.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[at..at + name.len() + 3]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

fn field(pod: &PodSpec, facts: &PodFacts, path: &str) -> Option<String> {
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels['") {
        return Some(pod.labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations['") {
        return Some(pod.annotations.get(key).cloned().unwrap_or_default());
    }
    let ips = || facts.pod_ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    Some(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.0.clone(),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => "default".into(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        "status.podIP" => ips().into_iter().next().unwrap_or_default(),
        "status.podIPs" => ips().join(","),
        _ => return None,
    })
}

/// Who the container runs as: `runAsUser`/`runAsGroup` over the image's `USER`, looked up in the image's files.
///
/// # Errors
/// A name that the image does not know, and `runAsNonRoot` broken or not provable.
pub fn identity(
    pod: &PodSpec,
    container: &ContainerSpec,
    image: &Config,
    root: &Path,
) -> Result<Identity, ProcessError> {
    let written = image.user().as_deref().unwrap_or_default();
    let (user, group) = match written.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (written, None),
    };
    let passwd = account_file(root, "etc/passwd");
    let groups = account_file(root, "etc/group");
    let accounts = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let number = |text: &str| text.parse::<u32>().ok();
    let chosen = container.security.run_as_user;
    let uid = match chosen.or_else(|| if user.is_empty() { Some(0) } else { number(user) }) {
        Some(uid) => uid,
        None if container.security.run_as_non_root => return Err(ProcessError::NotNumeric(user.into())),
        None => accounts()
            .find(|a| a.first() == Some(&user))
            .and_then(|a| number(a.get(2)?))
            .ok_or_else(|| ProcessError::UnknownUser(user.into()))?,
    };
    if container.security.run_as_non_root && uid == 0 {
        return Err(ProcessError::Root);
    }
    let account = accounts().find(|a| a.get(2).and_then(|u| number(u)) == Some(uid));
    let gid = match (container.security.run_as_group, group, chosen) {
        (Some(gid), _, _) => gid,
        (None, Some(group), None) if !group.is_empty() => match number(group) {
            Some(gid) => gid,
            None => group_id(&groups, group).ok_or_else(|| ProcessError::UnknownGroup(group.into()))?,
        },
        _ => account.as_ref().and_then(|a| number(a.get(3)?)).unwrap_or(0),
    };
    let name = account.as_ref().and_then(|a| a.first().copied());
    let mut supplementary: Vec<u32> = pod.security.supplemental_groups.clone();
    supplementary.extend(pod.security.fs_group);
    for line in groups.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let member = |name: &str| fields.get(3).is_some_and(|list| list.split(',').any(|m| m == name));
        if let (Some(id), true) = (fields.get(2).and_then(|g| number(g)), name.is_some_and(member)) {
            supplementary.push(id);
        }
    }
    supplementary.sort_unstable();
    supplementary.dedup();
    let home = account.as_ref().and_then(|a| a.get(5)).filter(|h| !h.is_empty());
    let home = home.map_or(if uid == 0 { "/root" } else { "/" }, |h| h).to_string();
    Ok(Identity { uid, gid, groups: supplementary, home })
}

fn group_id(groups: &str, name: &str) -> Option<u32> {
    let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&name))?.get(2)?.parse().ok()
}

/// A file of the container's root, read inside it; one that is missing, foreign or too large reads as empty.
fn account_file(root: &Path, path: &str) -> String {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let Ok(root) = File::open(root) else { return String::new() };
    let Ok(file) = openat2(&root, path, how) else { return String::new() };
    let mut bytes = Vec::new();
    // An image without readable accounts has none: names then fail to resolve, numbers still work.
    match File::from(file).take(ACCOUNT_FILE_BYTES_MAX).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_in_kubernetes() {
        let known: BTreeMap<String, String> =
            [("A".into(), "1".into()), ("B_C".into(), "x$(A)".into())].into();
        let check = |text: &str, expected: &str| assert_eq!(expand(text, &known), expected, "{text}");
        check("", "");
        check("$(A)", "1");
        check("a$(A)b$(B_C)", "a1bx$(A)");
        check("$$(A)", "$(A)");
        check("$$$(A)", "$1");
        check("$(MISSING)", "$(MISSING)");
        check("$(A", "$(A");
        check("$", "$");
        check("$A $(A)$", "$A 1$");
        check("ü$(A)ß", "ü1ß");
    }

    #[test]
    fn an_account_file_is_never_read_from_outside_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/proc/self/environ", root.path().join("etc/passwd")).unwrap();
        assert_eq!(account_file(root.path(), "etc/passwd"), "");
        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/real", root.path().join("etc/passwd")).unwrap();
        std::fs::write(root.path().join("etc/real"), "in the root").unwrap();
        assert_eq!(account_file(root.path(), "etc/passwd"), "in the root");
    }
}
