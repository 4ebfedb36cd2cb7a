//! What a container's first process is: command, environment and identity, from the pod and the image.
//!
//! Pure but for [`identity`], which reads `/etc/passwd` and `/etc/group` of the container's root without ever
//! leaving it (`openat2` with `RESOLVE_IN_ROOT`).

use coracle_pod::environment::{STRINGS_BYTES_MAX, expand, take};
use coracle_pod::objects::ValueError;
use coracle_pod::spec::{ContainerSpec, PodSpec};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::signal::Signal;
use oci_spec::image::Config;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

/// The PATH of an image that sets none; Docker's.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes read of a container's passwd or group file.
const ACCOUNT_FILE_BYTES_MAX: u64 = 1 << 20;

/// The highest user or group id, as runc and containerd have it. The kernel reads the very highest, 4294967295, as
/// "leave it as it is": a process that is to become that user stays root. setresuid(2).
const ID_MAX: u32 = i32::MAX.unsigned_abs();

/// A container whose process cannot be made out: the kubelet's `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProcessError {
    /// Neither the pod nor the image names a command.
    #[error("no command specified: set command, or use an image with an entrypoint")]
    NoCommand,
    /// `runAsNonRoot` with a user that is, or may be, root.
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    /// `runAsNonRoot` with a `runAsUser` of 0.
    #[error("container's runAsUser breaks non-root policy")]
    RootAsked,
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
    /// A variable that cannot be had.
    #[error(transparent)]
    Value(#[from] ValueError),
}

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted; the primary one is among them (CVE-2022-36109), so there always is one, and
    /// the agent's own are never inherited.
    pub groups: Vec<u32>,
    /// From passwd, else `/`; `/root` for root.
    pub home: String,
}

/// Entrypoint and arguments: Kubernetes' rules for `command` and `args` over the image's.
pub fn arguments(
    container: &ContainerSpec,
    image: &Config,
    variables: &BTreeMap<String, String>,
) -> Result<Vec<String>, ProcessError> {
    let from_image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut room = STRINGS_BYTES_MAX;
    let mut expand_all = |what: &str, list: &[String]| -> Result<Vec<String>, ProcessError> {
        let mut expanded = |text: &String| take(&mut room, expand(text, variables));
        let too_long = || ProcessError::Value(ValueError::TooLong(what.into()));
        list.iter().map(|text| expanded(text).ok_or_else(too_long)).collect()
    };
    let (mut command, arguments) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (expand_all("command", &container.command)?, expand_all("args", &container.args)?),
        (true, false) => (from_image(image.entrypoint()), expand_all("args", &container.args)?),
        (true, true) => (from_image(image.entrypoint()), from_image(image.cmd())),
    };
    command.extend(arguments);
    if command.is_empty() { Err(ProcessError::NoCommand) } else { Ok(command) }
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

/// A signal as an image names it: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`. `None` for one that does not exist.
pub fn signal_number(text: &str) -> Option<i32> {
    let name = text.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |from: i32, sign: i32, rest: &str| match rest.trim_start_matches(['+', '-']) {
        "" => Some(from),
        number => number.parse::<i32>().ok().map(|number| from + sign * number),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        real_time(libc::SIGRTMIN(), 1, rest)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        real_time(libc::SIGRTMAX(), -1, rest)
    } else {
        name.parse().ok().or_else(|| Some(format!("SIG{name}").parse::<Signal>().ok()? as i32))
    };
    number.filter(|number| (1..=libc::SIGRTMAX()).contains(number))
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
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id <= ID_MAX);
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
        return Err(if chosen.is_some() { ProcessError::RootAsked } else { ProcessError::Root });
    }
    let account = accounts().find(|a| a.get(2).and_then(|u| number(u)) == Some(uid));
    let gid = match (container.security.run_as_group, group, chosen) {
        (Some(gid), _, _) => gid,
        (None, Some(group), None) if !group.is_empty() => match number(group) {
            Some(gid) => gid,
            None => group_id(&groups, group)
                .and_then(number)
                .ok_or_else(|| ProcessError::UnknownGroup(group.into()))?,
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
    supplementary.push(gid);
    supplementary.sort_unstable();
    supplementary.dedup();
    let home = account.as_ref().and_then(|a| a.get(5)).filter(|h| !h.is_empty());
    let home = home.map_or(if uid == 0 { "/root" } else { "/" }, |h| h).to_string();
    Ok(Identity { uid, gid, groups: supplementary, home })
}

fn group_id<'a>(groups: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&name))?.get(2).copied()
}

/// A file of the container's root, read inside it; one that is missing, foreign or too large reads as empty.
fn account_file(root: &Path, path: &str) -> String {
    // An image without readable accounts has none: names then fail to resolve, numbers still work.
    read_inside(root, path).unwrap_or_default()
}

fn read_inside(root: &Path, path: &str) -> io::Result<String> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = File::from(openat2(&File::open(root)?, path, how)?);
    // To open a device is to use it (a watchdog then resets the board), and an image may carry any device node.
    if !found.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?
        .take(ACCOUNT_FILE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_as_docker_writes_them() {
        let check = |text: &str, expected| assert_eq!(signal_number(text), expected, "{text}");
        check("SIGTERM", Some(15));
        check("sigquit", Some(3));
        check("INT", Some(2));
        check("9", Some(9));
        check("SIGRTMIN+3", Some(libc::SIGRTMIN() + 3));
        check("RTMAX-1", Some(libc::SIGRTMAX() - 1));
        for nonsense in ["", "0", "-9", "65", "SIGNAL", "SIGRTMIN+99", "SIGRTMIN+99999999999"] {
            check(nonsense, None);
        }
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

    #[test]
    fn a_device_in_the_place_of_an_account_file_is_never_opened() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let zero = makedev(1, 5);
        mknod(&root.path().join("etc/passwd"), SFlag::S_IFCHR, Mode::S_IRUSR, zero).unwrap();
        assert_eq!(account_file(root.path(), "etc/passwd"), "");
    }

    fn pod(security: &str) -> PodSpec {
        let text = format!(
            "{{\"metadata\": {{\"name\": \"web\", \"uid\": \"u\"}}, \"spec\": {{\"securityContext\": {security}, \"containers\": [{{\"name\": \"web\", \"image\": \"i:1\"}}]}}}}"
        );
        PodSpec::from_api(&serde_json::from_str(&text).unwrap()).unwrap()
    }

    #[test]
    fn identities_follow_the_pod_then_the_image_and_never_become_root_unseen() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nboat:x:1000:1001::/home/boat:/bin/sh\nhigh:x:4294967295:7::/:\nsneaky:x:0:0::/:\n";
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        let group = "root:x:0:\nboat:x:1001:\ncrew:x:2000:boat\nhigh:x:4294967295:boat\n";
        std::fs::write(root.path().join("etc/group"), group).unwrap();
        let check = |security: &str, user: &str, expected: Result<(u32, u32, &[u32]), &str>| {
            let pod = pod(security);
            let mut image = Config::default();
            image.set_user(Some(user.into()));
            let found = identity(&pod, &pod.containers[0], &image, root.path());
            let found = found.map(|i| (i.uid, i.gid, i.groups)).map_err(|e| e.to_string());
            let expected =
                expected.map(|(uid, gid, groups)| (uid, gid, groups.to_vec())).map_err(String::from);
            match (&found, &expected) {
                (Err(message), Err(part)) => {
                    assert!(message.contains(part.as_str()), "{security} {user}: {message}")
                }
                _ => assert_eq!(found, expected, "{security} {user}"),
            }
        };
        check("{}", "", Ok((0, 0, &[0])));
        check("{}", "boat", Ok((1000, 1001, &[1001, 2000])));
        check("{}", "1000", Ok((1000, 1001, &[1001, 2000])));
        check("{}", "1000:5", Ok((1000, 5, &[5, 2000])));
        check("{}", "boat:crew", Ok((1000, 2000, &[2000])));
        check("{}", "4242", Ok((4242, 0, &[0])));
        check("{}", "nobody", Err("unable to find user nobody"));
        check("{}", "boat:nobody", Err("unable to find group nobody"));
        check(r#"{"runAsUser": 1000, "runAsGroup": 3}"#, "root", Ok((1000, 3, &[3, 2000])));
        check(
            r#"{"runAsUser": 7, "supplementalGroups": [9, 8], "fsGroup": 6}"#,
            "",
            Ok((7, 0, &[0, 6, 8, 9])),
        );
        let strict = r#"{"runAsNonRoot": true}"#;
        check(strict, "", Err("container has runAsNonRoot and image will run as root"));
        check(strict, "0", Err("container has runAsNonRoot and image will run as root"));
        check(strict, "1000", Ok((1000, 1001, &[1001, 2000])));
        check(strict, "sneaky", Err("non-numeric user (sneaky)"));
        check(r#"{"runAsNonRoot": true, "runAsUser": 0}"#, "1000", Err("runAsUser breaks non-root policy"));
        // What setresuid(2) takes for "leave it as it is".
        check(strict, "4294967295", Err("non-numeric user (4294967295)"));
        check("{}", "4294967295", Err("unable to find user 4294967295"));
        check("{}", "high", Err("unable to find user high"));
        check("{}", "1000:4294967295", Err("unable to find group 4294967295"));
        check("{}", "1000:high", Err("unable to find group high"));
    }
}
