//! Reading a kubeconfig (`clientcmd` v1): which server, whom to believe, who we are.
//!
//! The current context's cluster and user, with files given inline or by path (relative to the kubeconfig). Left out, and
//! refused where it would be silently weaker or other than asked: `insecure-skip-tls-verify`, plain HTTP, proxies, exec and
//! auth-provider plugins, passwords.

use base64::Engine;
use serde::Deserialize;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of the kubeconfig and of each file that it names.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A kubeconfig that cannot be used. Never holds a credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeconfigError {
    /// It, or a file that it names.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Not a kubeconfig, or one with something that is not supported.
    #[error("{path}: {message}", path = path.display())]
    Invalid {
        /// The kubeconfig.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// What a kubeconfig says, with every file read.
pub(crate) struct Kubeconfig {
    /// `https://HOST[:PORT][/PREFIX]`.
    pub server: String,
    /// PEM; `None` = the system's authorities.
    pub authority: Option<Vec<u8>>,
    /// Name in the server's certificate where it is not the host.
    pub tls_server_name: Option<String>,
    /// PEM of certificates and key.
    pub client_certificate: Option<(Vec<u8>, Vec<u8>)>,
    pub token: Option<String>,
    /// Every file that was read, as it was just before: whoever changes one changes this.
    pub files: Vec<FileIdentity>,
}

/// A file at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    path: PathBuf,
    /// Inode, size, time of change; `None` = not there.
    stat: Option<(u64, u64, i64, i64)>,
}

impl FileIdentity {
    fn of(path: &Path) -> FileIdentity {
        let stat = fs::metadata(path).ok().map(|m| (m.ino(), m.size(), m.ctime(), m.ctime_nsec()));
        FileIdentity { path: path.into(), stat }
    }

    /// Whether it is still that very file. One stat.
    pub(crate) fn holds(&self) -> bool {
        FileIdentity::of(&self.path) == *self
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    clusters: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    cluster: Cluster,
    #[serde(default)]
    user: User,
    #[serde(default)]
    context: Context,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

impl Kubeconfig {
    /// Reads `path` and what it names. Blocking, briefly.
    pub(crate) fn read(path: &Path) -> Result<Kubeconfig, KubeconfigError> {
        let mut reader = Reader { dir: path.parent().unwrap_or(Path::new(".")).into(), files: Vec::new() };
        let text = reader.read(path)?;
        let invalid = |message: String| KubeconfigError::Invalid { path: path.into(), message };
        // The parser's message may quote the text, and so a key: only the place is told.
        let text = String::from_utf8(text).map_err(|_| invalid("not UTF-8".into()))?;
        let file: File = serde_saphyr::from_str(&text).map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            invalid(format!("not a kubeconfig (line {line})"))
        })?;
        let named = |list: &'static str, of: &[Named], name: &str| {
            let found = of.iter().position(|n| n.name == name);
            found.ok_or_else(|| invalid(format!("{list} has no {name:?}")))
        };
        let context = &file.contexts[named("contexts", &file.contexts, &file.current_context)?].context;
        let cluster = &file.clusters[named("clusters", &file.clusters, &context.cluster)?].cluster;
        let user = &file.users[named("users", &file.users, &context.user)?].user;
        let refused = [
            (cluster.insecure_skip_tls_verify, "insecure-skip-tls-verify"),
            (cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()), "proxy-url"),
            (user.username.is_some(), "username"),
            (user.exec.is_some(), "exec"),
            (user.auth_provider.is_some(), "auth-provider"),
        ];
        if let Some((_, field)) = refused.iter().find(|(present, _)| *present) {
            return Err(invalid(format!("{field} is not supported")));
        }
        let mut part = |data: &Option<String>, file: &Option<PathBuf>, field: &str| match (data, file) {
            (Some(data), _) if !data.is_empty() => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(data.trim());
                bytes.map(Some).map_err(|_| invalid(format!("{field}-data is not base64")))
            }
            (_, Some(file)) => reader.read(file).map(Some),
            _ => Ok(None),
        };
        let authority = part(
            &cluster.certificate_authority_data,
            &cluster.certificate_authority,
            "certificate-authority",
        )?;
        let certificate =
            part(&user.client_certificate_data, &user.client_certificate, "client-certificate")?;
        let key = part(&user.client_key_data, &user.client_key, "client-key")?;
        let client_certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid("client-certificate and client-key belong together".into())),
        };
        // As client-go: the file wins, since it is the one that is renewed.
        let token = match (&user.token_file, &user.token) {
            (Some(file), _) => {
                let token = String::from_utf8(reader.read(file)?);
                Some(token.map_err(|_| invalid("the token is not text".into()))?.trim().to_string())
            }
            (None, token) => token.clone().filter(|token| !token.is_empty()),
        };
        Ok(Kubeconfig {
            server: cluster.server.clone(),
            authority,
            tls_server_name: cluster.tls_server_name.clone(),
            client_certificate,
            token,
            files: reader.files,
        })
    }
}

struct Reader {
    dir: PathBuf,
    files: Vec<FileIdentity>,
}

impl Reader {
    fn read(&mut self, path: &Path) -> Result<Vec<u8>, KubeconfigError> {
        // An absolute path stays what it is. The kubeconfig itself is named from where the agent is.
        let path = if self.files.is_empty() { path.to_path_buf() } else { self.dir.join(path) };
        // Before it is read: a change in between is seen as one.
        self.files.push(FileIdentity::of(&path));
        let read = || {
            let mut bytes = Vec::new();
            fs::File::open(&path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > FILE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
            }
            Ok(bytes)
        };
        read().map_err(|source| KubeconfigError::Read { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Kubeconfig, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        for (name, content) in
            [("ca.crt", "CA"), ("client.crt", "CERT"), ("client.key", "KEY"), ("token", "T0\n")]
        {
            fs::write(dir.path().join(name), content).expect("written");
        }
        fs::write(&path, text).expect("written");
        Kubeconfig::read(&path).map_err(|e| e.to_string().replace(&path.display().to_string(), "F"))
    }

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: {{cluster: k, user: u, namespace: n}}\nclusters:\n- name: k\n  cluster: {{server: 'https://h:1', {cluster}}}\nusers:\n- name: u\n  user: {{{user}}}\n"
        )
    }

    #[test]
    fn a_kubeconfig_is_read_with_what_it_names() {
        let found = read(&config(
            "certificate-authority: ca.crt, tls-server-name: n",
            "client-certificate: client.crt, client-key: client.key",
        ))
        .expect("reads");
        assert_eq!(found.server, "https://h:1");
        assert_eq!(found.authority.as_deref(), Some(&b"CA"[..]));
        assert_eq!(found.tls_server_name.as_deref(), Some("n"));
        assert_eq!(found.client_certificate, Some((b"CERT".to_vec(), b"KEY".to_vec())));
        assert_eq!(found.files.len(), 4);
        let inline =
            read(&config("certificate-authority-data: Q0E=", "token: a, tokenFile: token")).expect("reads");
        assert_eq!((inline.authority.as_deref(), inline.token.as_deref()), (Some(&b"CA"[..]), Some("T0")));
    }

    #[test]
    fn what_is_not_supported_is_refused_and_no_secret_is_told() {
        let check = |text: &str, expected: &str| {
            let error = read(text).err().unwrap_or_default();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        };
        check(&config("insecure-skip-tls-verify: true", ""), "F: insecure-skip-tls-verify is not supported");
        check(&config("", "username: a, password: hunter2"), "F: username is not supported");
        check(&config("", "exec: {command: hunter2}"), "F: exec is not supported");
        check(&config("", "client-key: client.key"), "belong together");
        check(&config("", "client-key-data: 'hunter2!'"), "client-key-data is not base64");
        check(&config("certificate-authority: none", ""), "none: No such file");
        check("current-context: d\ncontexts: []", "F: contexts has no \"d\"");
        check("users: [{name: a, user: {token: [hunter2]}}]", "F: not a kubeconfig (line");
    }
}
