//! The user's kubeconfig: one context is merged into it, as kubectl's own merging does, and taken out again.
//!
//! `$KUBECONFIG` may name several files. What one of them defines is changed there; what none defines goes into the first that
//! exists, else into the last (`kubectl config --help`). Everything else in a file stays. A file appears whole, by rename, 0600,
//! of the owner that it had; a symbolic link stays one. While it is changed, `FILE.lock` keeps kubectl out as kubectl keeps
//! others out; ours says whose it is, so that one that a crash left does not stay for ever.
//!
//! All of it is done with the rights of the user whose file it is: root must not be led about by links in somebody's home.
//! Left out, as kubectl leaves them: comments.

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Gid, Uid, User, getegid, geteuid, setfsgid, setfsuid};
use serde_json::{Map, Value, json};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

const FILE_BYTES_MAX: u64 = 8 << 20;
/// What our lock begins with: see [`FileLock`].
const OURS: &str = "coracle-control ";
/// Lists of named things in a kubeconfig, and what each holds.
const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

/// Whose kubeconfig is meant: whoever called `sudo`, or this user.
#[derive(Clone, Debug)]
pub struct Owner {
    uid: Uid,
    gid: Gid,
    home: PathBuf,
}

impl Owner {
    /// By the environment.
    ///
    /// # Errors
    /// Of a user that is not there.
    pub fn of_caller() -> Result<Owner> {
        let sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok()).map(Uid::from_raw);
        match sudo.filter(|_| geteuid().is_root()) {
            Some(uid) => Owner::of(uid),
            None => match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
                Some(home) => Ok(Owner { uid: geteuid(), gid: getegid(), home: home.into() }),
                None => Owner::of(geteuid()),
            },
        }
    }

    /// By number.
    ///
    /// # Errors
    /// There is no such user.
    pub fn of(uid: Uid) -> Result<Owner> {
        let user = User::from_uid(uid)?.with_context(|| format!("there is no user {uid}"))?;
        Ok(Owner { uid, gid: user.gid, home: user.dir })
    }

    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The files that kubectl would read for this user, in its order, absolute.
    ///
    /// # Errors
    /// There is no working directory.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
        let mut files: Vec<PathBuf> = Vec::new();
        for path in std::env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty()) {
            let path = std::path::absolute(path)?;
            if !files.contains(&path) {
                files.push(path);
            }
        }
        if files.is_empty() {
            files.push(std::path::absolute(self.home.join(".kube").join("config"))?);
        }
        Ok(files)
    }

    /// Runs this with the user's rights on files, in a thread of its own: they are a thread's.
    fn act<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let owner = self.clone();
        std::thread::scope(|scope| {
            let acting = scope.spawn(move || {
                setfsgid(owner.gid);
                setfsuid(owner.uid);
                // The call has no errors: asked again it tells what is.
                ensure!(setfsuid(owner.uid) == owner.uid, "user {} cannot be acted for", owner.uid);
                work()
            });
            acting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// What is to be in it.
#[derive(Clone, Debug)]
pub struct Access {
    /// The name of the context, of its cluster and of its user.
    pub name: String,
    pub cluster: Value,
    pub user: Value,
}

/// Which of the files has the context, or is to have it.
///
/// # Errors
/// A file that is no kubeconfig.
pub fn place(owner: &Owner, files: &[PathBuf], name: &str) -> Result<PathBuf> {
    let defines =
        |config: Map<String, Value>| LISTS.iter().any(|(list, _)| find(&config, list, name).is_some());
    owner.act(|| {
        for path in files {
            if read(path)?.is_some_and(defines) {
                return Ok(path.clone());
            }
        }
        let existing = files.iter().find(|path| path.exists());
        existing.or(files.last()).cloned().context("no kubeconfig was named")
    })
}

/// Puts it into the one at `path` and makes it the current context of all `files`.
///
/// # Errors
/// A file that is no kubeconfig, the disk's refusal, or somebody who is changing it.
pub fn put(owner: &Owner, files: &[PathBuf], path: &Path, access: &Access) -> Result<()> {
    owner.act(|| {
        if let Some(dir) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(dir);
            made.with_context(|| dir.display().to_string())?;
        }
        change(path, |config| merged(config, access))?;
        // kubectl reads the current context of the first file that has one.
        for earlier in files.iter().take_while(|earlier| *earlier != path) {
            if read(earlier)?.is_some_and(|config| !current(&config).is_empty()) {
                return change(earlier, |mut config| {
                    config.insert("current-context".into(), access.name.clone().into());
                    Ok(Some(config))
                });
            }
        }
        Ok(())
    })
}

/// Takes out what [`put`] has put into that file, unless somebody has made something else of it.
///
/// # Errors
/// As [`put`].
pub fn take_out(owner: &Owner, path: &Path, name: &str, server: &str) -> Result<()> {
    owner.act(|| {
        change(path, |mut config| {
            let ours = find(&config, "clusters", name).is_some_and(|of| of["cluster"]["server"] == server);
            if !ours {
                return Ok(None);
            }
            for (list, _) in LISTS {
                if let Some(Value::Array(items)) = config.get_mut(list) {
                    items.retain(|item| item["name"] != name);
                }
            }
            if current(&config) == name {
                config.insert("current-context".into(), "".into());
            }
            Ok(Some(config))
        })
    })
}

/// Whether the file's context of that name leads to this server.
///
/// # Errors
/// As [`put`].
pub fn leads_to(owner: &Owner, path: &Path, name: &str, server: &str) -> Result<bool> {
    owner.act(|| {
        let Some(config) = read(path)? else { return Ok(false) };
        let context = find(&config, "contexts", name).is_some();
        Ok(context && find(&config, "clusters", name).is_some_and(|of| of["cluster"]["server"] == server))
    })
}

/// Pure.
fn merged(mut config: Map<String, Value>, access: &Access) -> Result<Option<Map<String, Value>>> {
    let name = &access.name;
    let before = config.clone();
    config.entry("apiVersion").or_insert_with(|| "v1".into());
    config.entry("kind").or_insert_with(|| "Config".into());
    for (list, key) in LISTS {
        let value = match key {
            "cluster" => access.cluster.clone(),
            "user" => access.user.clone(),
            _ => {
                // A namespace that somebody has chosen stays.
                let mut context = find(&config, list, name).map_or(json!({}), |of| of[key].clone());
                context["cluster"] = name.clone().into();
                context["user"] = name.clone().into();
                context
            }
        };
        let item = json!({"name": name, key: value});
        let items = config.entry(list).or_insert_with(|| json!([]));
        if items.is_null() {
            *items = json!([]);
        }
        let Value::Array(items) = items else { bail!("{list} is no list") };
        match items.iter_mut().find(|item| item["name"] == *name) {
            Some(there) => *there = item,
            None => items.push(item),
        }
    }
    config.insert("current-context".into(), name.clone().into());
    Ok((config != before).then_some(config))
}

fn find<'a>(config: &'a Map<String, Value>, list: &str, name: &str) -> Option<&'a Value> {
    config.get(list)?.as_array()?.iter().find(|item| item["name"] == name)
}

fn current(config: &Map<String, Value>) -> &str {
    config.get("current-context").and_then(Value::as_str).unwrap_or_default()
}

/// The file's content; empty where nothing is in it, `None` where it is not there.
fn read(path: &Path) -> Result<Option<Map<String, Value>>> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) if text.trim().is_empty() => Ok(Some(Map::new())),
        // The parser's words may quote what is secret.
        Ok(_) => match serde_saphyr::from_str(&text) {
            Ok(Value::Object(config)) => Ok(Some(config)),
            _ => bail!("{}: no kubeconfig", path.display()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Changes a file under its lock; nothing is written where there is nothing to change.
fn change(
    path: &Path,
    how: impl FnOnce(Map<String, Value>) -> Result<Option<Map<String, Value>>>,
) -> Result<()> {
    let _lock = FileLock::take(path)?;
    let Some(config) = how(read(path)?.unwrap_or_default()).with_context(|| path.display().to_string())?
    else {
        return Ok(());
    };
    // Through a link, to the file that it means.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    write(&target, serde_saphyr::to_string(&config)?.as_bytes())
        .with_context(|| format!("{}: not written", path.display()))
}

fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let new = beside(path, ".coracle-new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    if let Ok(before) = fs::metadata(path) {
        let now = file.metadata()?;
        if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
    }
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.file_name().unwrap_or(OsStr::new("config")).into();
    name.push(suffix);
    path.with_file_name(name)
}

/// kubectl's lock: a file beside the other one, which only one can make. kubectl's is empty; ours names process and start.
struct FileLock {
    path: PathBuf,
}

impl FileLock {
    fn take(of: &Path) -> Result<FileLock> {
        let path = beside(of, ".lock");
        let mine = format!("{OURS}{}", me()?);
        let new = beside(of, ".coracle-lock");
        let put = || -> std::io::Result<()> {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?
                .write_all(mine.as_bytes())?;
            // Whole from the moment that it is there.
            let linked = fs::hard_link(&new, &path);
            fs::remove_file(&new)?;
            linked
        };
        match put() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && is_left(&path) => {
                fs::remove_file(&path)?;
                put().with_context(|| path.display().to_string())?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "{} is there: somebody changes the kubeconfig, or a crash left it, and then it is to be removed",
                path.display()
            ),
            answer => answer.with_context(|| path.display().to_string())?,
        }
        Ok(FileLock { path })
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a lock stays");
        }
    }
}

/// This process and when it started, which no other process shares.
fn me() -> Result<String> {
    let pid = std::process::id();
    Ok(format!("{pid} {}", started(&pid.to_string()).context("/proc/self/stat")?))
}

/// proc_pid_stat(5), field 22; counted from behind the name, which may hold anything.
fn started(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(String::from)
}

/// Whether a lock is ours and its process has ended.
fn is_left(path: &Path) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    let Some((pid, start)) = text.strip_prefix(OURS).and_then(|rest| rest.split_once(' ')) else {
        return false;
    };
    started(pid).is_none_or(|now| now != start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access {
            name: "coracle".into(),
            cluster: json!({"server": "https://10.244.0.1:6443"}),
            user: json!({"token": "t"}),
        }
    }

    fn owner() -> Owner {
        Owner { uid: geteuid(), gid: getegid(), home: "/nowhere".into() }
    }

    fn put_into(files: &[PathBuf]) -> Result<PathBuf> {
        let path = place(&owner(), files, "coracle")?;
        put(&owner(), files, &path, &access())?;
        Ok(path)
    }

    const OTHERS: &str = "apiVersion: v1\nkind: Config\npreferences: {colors: true}\nclusters:\n- name: work\n  cluster: {server: https://work, extensions: [{name: a, extension: {b: 1}}]}\nusers:\n- name: me\n  user: {exec: {command: login, args: [a, 'yes'], interactiveMode: Never}}\ncontexts:\n- name: work\n  context: {cluster: work, user: me, namespace: '01'}\ncurrent-context: work\n";

    #[test]
    fn what_others_wrote_stays_and_comes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        fs::write(&path, OTHERS).expect("written");
        let before = read(&path).expect("read");
        put_into(std::slice::from_ref(&path)).expect("merged");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        let merged = read(&path).expect("read").expect("there");
        assert_eq!(current(&merged), "coracle");
        assert_eq!(merged["clusters"][0], before.as_ref().expect("there")["clusters"][0]);
        assert!(leads_to(&owner(), &path, "coracle", "https://10.244.0.1:6443").expect("read"));
        assert!(!leads_to(&owner(), &path, "coracle", "https://elsewhere").expect("read"));
        take_out(&owner(), &path, "coracle", "https://elsewhere").expect("left alone");
        assert_eq!(read(&path).expect("read"), Some(merged));
        take_out(&owner(), &path, "coracle", "https://10.244.0.1:6443").expect("taken out");
        let mut expected = before.expect("there");
        expected.insert("current-context".into(), "".into());
        assert_eq!(read(&path).expect("read"), Some(expected));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "no lock and no copy is left");
    }

    #[test]
    fn of_several_files_the_one_that_defines_it_is_changed() {
        let check = |files: [&str; 3], expected: usize, contexts: [&str; 3]| {
            let dir = tempfile::tempdir().expect("a directory");
            let paths = ["a", "b", "c"].map(|name| dir.path().join(name));
            for (path, text) in paths.iter().zip(files).filter(|(_, text)| *text != "absent") {
                fs::write(path, text).expect("written");
            }
            let chosen = put_into(&paths).expect("merged");
            assert_eq!(chosen, paths[expected], "{files:?}");
            let now = paths
                .map(|path| read(&path).expect("read").map_or("absent".into(), |c| current(&c).to_string()));
            assert_eq!(now, contexts, "{files:?}");
        };
        let ours = "contexts: [{name: coracle, context: {namespace: x}}]";
        check(["absent", "absent", "absent"], 2, ["absent", "absent", "coracle"]);
        check(["absent", "", "absent"], 1, ["absent", "coracle", "absent"]);
        check(["current-context: work", ours, "absent"], 1, ["coracle", "coracle", "absent"]);
    }

    #[test]
    fn a_chosen_namespace_stays_and_a_second_time_changes_nothing() {
        let config = json!({"contexts": [{"name": "coracle", "context": {"namespace": "x", "user": "old"}}], "users": null});
        let Value::Object(config) = config else { unreachable!("an object") };
        let once = merged(config, &access()).expect("merged").expect("changed");
        assert_eq!(
            once["contexts"][0]["context"],
            json!({"cluster": "coracle", "user": "coracle", "namespace": "x"})
        );
        assert_eq!(merged(once, &access()).expect("merged"), None);
    }

    #[test]
    fn nothing_is_written_to_what_is_no_kubeconfig_or_is_being_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, lock) = (dir.path().join("config"), dir.path().join("config.lock"));
        let check = |expected: &str| {
            let error = put_into(std::slice::from_ref(&path)).expect_err(expected);
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        };
        for text in ["secret: [", "- a", "clusters: 5"] {
            fs::write(&path, text).expect("written");
            check(if text == "clusters: 5" { "clusters is no list" } else { "no kubeconfig" });
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
        }
        fs::write(&path, "").expect("written");
        fs::write(&lock, "").expect("kubectl's");
        check("somebody changes the kubeconfig");
        fs::write(&lock, format!("{OURS}{}", me().expect("this process"))).expect("another of ours");
        check("somebody changes the kubeconfig");
        // What a killed one has left: a process of that number that started at another time.
        fs::write(&lock, format!("{OURS}{} 1", std::process::id())).expect("left");
        put_into(std::slice::from_ref(&path)).expect("healed");
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, real) = (dir.path().join("config"), dir.path().join("dotfiles"));
        fs::write(&real, OTHERS).expect("written");
        std::os::unix::fs::symlink(&real, &path).expect("linked");
        put_into(std::slice::from_ref(&path)).expect("merged");
        assert!(fs::symlink_metadata(&path).expect("there").is_symlink());
        assert!(fs::read_to_string(&real).expect("read").contains("coracle"));
    }
}
