//! ConfigMaps and Secrets that pods name: for their volumes and variables, and for their pulls.
//!
//! Wherever an object comes from, it is kept as an [`ObjectRecord`] with its [`Source`]. Each pod has its own view of those
//! that it names ([`Engine::look_at_objects_of`]); what of them it lacks, and that its volumes are behind, become facts for
//! the plan. Nothing here shows what a secret holds: not in refusals, events or logs.

use super::heard::Heard;
use super::{Engine, Row};
use crate::record::{ObjectRecord, SecretRecord, Source};
use crate::request::{Kind, Outcome, Refusal};
use coracle_api::secret::DockerFormat;
use coracle_pod::objects::{Keyed, Lack, ObjectKind, ObjectName, Objects};
use coracle_pod::spec::{PodUid, VolumeSource};
use coracle_pod::{Event, EventType, FieldError, PodSpec};
use coracle_runtime::image::{Credential, docker_cfg, docker_config};
use coracle_store::Batch;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tracing::error;

/// Objects that a board keeps.
const OBJECTS_MAX: usize = 512;
/// Bytes of their values together: they are kept in memory.
const OBJECTS_BYTES_MAX: usize = 32 << 20;
/// Bytes of one as it is stored, beside which its row needs some.
const RECORD_BYTES_MAX: usize = coracle_store::VALUE_BYTES_MAX - 1024;

/// An object: whose, its kind, its namespace and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub origin: Origin,
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

/// Whose names they are. Pods of the API server see its objects and no other, and those of the board the board's: who may
/// create pods through the API must not read by it what the board's owner put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    Board,
    Api,
}

impl From<&Source> for Origin {
    fn from(source: &Source) -> Origin {
        match source {
            Source::Manifest(_) | Source::Apply => Origin::Board,
            Source::Api => Origin::Api,
        }
    }
}

/// One object.
#[derive(Debug)]
struct Known {
    record: ObjectRecord,
    /// The values, as pods share them.
    keyed: Arc<Keyed>,
}

/// What is known, as it is stored.
#[derive(Debug, Default)]
pub(super) struct Table {
    known: BTreeMap<Key, Known>,
    bytes: usize,
}

impl Table {
    /// As read from the store.
    pub(super) fn of(records: impl IntoIterator<Item = ObjectRecord>) -> Table {
        let mut table = Table::default();
        for record in records {
            table.put(record);
        }
        table
    }

    fn put(&mut self, record: ObjectRecord) {
        let plain = |data: &BTreeMap<String, ByteString>| {
            data.iter().map(|(key, value)| (key.clone(), value.0.clone())).collect()
        };
        let keyed = Keyed { data: plain(&record.data), binary_data: plain(&record.binary_data) };
        self.remove(&key(&record));
        self.bytes += keyed.bytes();
        self.known.insert(key(&record), Known { record, keyed: Arc::new(keyed) });
    }

    /// Whether there was one.
    fn remove(&mut self, key: &Key) -> bool {
        let known = self.known.remove(key);
        self.bytes -= known.as_ref().map_or(0, |known| known.keyed.bytes());
        known.is_some()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.known.keys()
    }

    pub(super) fn record(&self, key: &Key) -> Option<&ObjectRecord> {
        self.known.get(key).map(|known| &known.record)
    }

    /// What there is of what a pod's volumes and variables name.
    fn view(&self, pod: &PodSpec, origin: Origin, heard: &Heard) -> Objects {
        let find = |name: ObjectName| {
            let (namespace, kind) = (pod.namespace.clone(), name.kind.into());
            let key = Key { origin, kind, namespace, name: name.name.clone() };
            let known = self.known.get(&key).map(|known| known.keyed.clone());
            let lack = || match origin {
                Origin::Board => Lack::NotFound,
                Origin::Api => heard.lack(&key),
            };
            (name, known.ok_or_else(lack))
        };
        let keyed = pod.object_names().into_iter().map(find).collect();
        Objects { keyed, tokens: heard.tokens_of(&pod.uid) }
    }

    /// What a pull for this pod may use, in the order of its `imagePullSecrets`; and the kubelet's warning when some
    /// of those are not there: the pull goes on without them.
    pub(super) fn for_pull(&self, pod: &PodSpec, source: &Source) -> (Vec<Credential>, Option<Event>) {
        let (mut list, mut missing) = (Vec::new(), Vec::new());
        for name in &pod.image_pull_secrets {
            let (origin, namespace) = (source.into(), pod.namespace.clone());
            match self.record(&Key { origin, kind: Kind::Secret, namespace, name: name.clone() }) {
                // Of another type, or one that is none of it: nothing to log in with, as with the kubelet's keyring.
                Some(record) => list.extend(credentials(record).and_then(Result::ok).unwrap_or_default()),
                None => missing.push(name.as_str()),
            }
        }
        let warning = (!missing.is_empty()).then(|| Event {
            kind: EventType::Warning,
            reason: "FailedToRetrieveImagePullSecret",
            message: format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            ),
            field_path: None,
        });
        (list, warning)
    }
}

fn key(record: &ObjectRecord) -> Key {
    Key {
        origin: (&record.source).into(),
        kind: record.kind,
        namespace: record.namespace.clone(),
        name: record.name.clone(),
    }
}

/// What a secret of registry credentials holds; `None` for one of another type. The error is one line that quotes nothing.
fn credentials(record: &ObjectRecord) -> Option<Result<Vec<Credential>, String>> {
    let format = DockerFormat::of_type(&record.type_)?;
    let text = record.data.get(format.key()).map(|value| value.0.as_slice()).unwrap_or_default();
    let found = match format {
        DockerFormat::ConfigJson => docker_config(text),
        DockerFormat::Cfg => docker_cfg(text),
    };
    Some(found.map_err(|error| {
        format!("data[{}]: Invalid value: \"<secret contents redacted>\": {error}", format.key())
    }))
}

/// A ConfigMap as it will be stored, or why it is not one.
pub(super) fn admit_config_map(object: &ConfigMap, source: &Source) -> Result<ObjectRecord, Refusal> {
    let keyed = coracle_pod::admission::config_map(object);
    let meta = &object.metadata;
    admit(Kind::ConfigMap, meta.namespace.as_deref(), meta.name.as_deref(), keyed, source, |record| {
        record.immutable = object.immutable.unwrap_or(false);
    })
}

/// A Secret as it will be stored, or why it is not one.
pub(super) fn admit_secret(object: &Secret, source: &Source) -> Result<ObjectRecord, Refusal> {
    let keyed = coracle_pod::admission::secret(object);
    let meta = &object.metadata;
    let record =
        admit(Kind::Secret, meta.namespace.as_deref(), meta.name.as_deref(), keyed, source, |record| {
            record.immutable = object.immutable.unwrap_or(false);
            record.type_ = object.type_.clone().filter(|t| !t.is_empty()).unwrap_or_else(|| "Opaque".into());
        })?;
    match credentials(&record) {
        Some(Err(error)) => Err(Refusal::invalid(Kind::Secret, &record.name, &error)),
        _ => Ok(record),
    }
}

fn admit(
    kind: Kind,
    namespace: Option<&str>,
    name: Option<&str>,
    keyed: Result<Keyed, Vec<FieldError>>,
    source: &Source,
    rest: impl FnOnce(&mut ObjectRecord),
) -> Result<ObjectRecord, Refusal> {
    let name = name.unwrap_or_default();
    let keyed = keyed.map_err(|errors| {
        let first = errors.first().map(ToString::to_string).unwrap_or_default();
        Refusal::invalid(kind, name, &first)
    })?;
    let encoded = |data: BTreeMap<String, Vec<u8>>| {
        data.into_iter().map(|(key, value)| (key, ByteString(value))).collect()
    };
    let mut record = ObjectRecord {
        kind,
        namespace: namespace.filter(|n| !n.is_empty()).unwrap_or("default").into(),
        name: name.into(),
        type_: String::new(),
        data: encoded(keyed.data),
        binary_data: encoded(keyed.binary_data),
        immutable: false,
        source: source.clone(),
    };
    rest(&mut record);
    let bytes = serde_json::to_vec(&record).expect("a record serializes").len();
    if bytes > RECORD_BYTES_MAX {
        let message =
            format!("data: Too long: a board stores at most {RECORD_BYTES_MAX} bytes of one object");
        return Err(Refusal::invalid(kind, name, &message));
    }
    Ok(record)
}

/// What an object of this record's name may not become: the API server's words.
fn forbidden(known: &ObjectRecord, wanted: &ObjectRecord) -> Option<String> {
    if known.type_ != wanted.type_ {
        return Some(format!("type: Invalid value: {:?}: field is immutable", wanted.type_));
    }
    if !known.immutable {
        return None;
    }
    let change = [
        (!wanted.immutable, "immutable: Forbidden: field is immutable when `immutable` is set"),
        (known.data != wanted.data, "data: Forbidden: field is immutable when `immutable` is set"),
        (
            known.binary_data != wanted.binary_data,
            "binaryData: Forbidden: field is immutable when `immutable` is set",
        ),
    ];
    change.into_iter().find(|(changed, _)| *changed).map(|(_, message)| message.into())
}

/// Takes over what agents before this one kept of secrets.
pub(super) fn upgraded(old: SecretRecord) -> ObjectRecord {
    let auths: serde_json::Map<String, serde_json::Value> = old
        .credentials
        .into_iter()
        .map(|c| (c.registry, serde_json::json!({"username": c.user, "password": c.password})))
        .collect();
    let text = serde_json::json!({ "auths": auths }).to_string().into_bytes();
    ObjectRecord {
        kind: Kind::Secret,
        namespace: old.namespace,
        name: old.name,
        type_: "kubernetes.io/dockerconfigjson".into(),
        data: [(DockerFormat::ConfigJson.key().into(), ByteString(text))].into(),
        binary_data: BTreeMap::new(),
        immutable: false,
        source: old.source,
    }
}

impl Engine {
    /// Reads what the store has, also of agents before this one.
    pub(super) fn open_objects(&mut self) -> anyhow::Result<()> {
        let scan = self.store.all::<ObjectRecord>()?;
        let old = self.store.all::<SecretRecord>()?;
        for damaged in scan.damaged.iter().chain(&old.damaged) {
            error!(key = %damaged, "a stored object cannot be read and is left out; apply it again");
        }
        let mut records: Vec<ObjectRecord> = scan.records.into_iter().map(|(_, record)| record).collect();
        for (row, secret) in old.records {
            let record = upgraded(secret);
            self.batch.delete::<SecretRecord>(&row);
            self.batch.put(&row_of(&key(&record)), &record);
            records.push(record);
        }
        self.objects = Table::of(records);
        Ok(())
    }

    pub(super) fn place_object(&mut self, record: ObjectRecord) -> Result<Outcome, Refusal> {
        let key = key(&record);
        let Key { kind, namespace, name, .. } = &key;
        let outcome = match self.objects.record(&key) {
            Some(known) if known.source != record.source => {
                return Err(Refusal::conflict(*kind, namespace, name, &known.source));
            }
            Some(known) if *known == record => return Ok(Outcome::Unchanged),
            Some(known) => match forbidden(known, &record) {
                Some(message) => return Err(Refusal::invalid(*kind, name, &message)),
                None => Outcome::Configured,
            },
            None => Outcome::Created,
        };
        self.has_room(&record, outcome == Outcome::Created)?;
        self.objects.put(record);
        self.object_changed(&key);
        Ok(outcome)
    }

    pub(super) fn delete_object(
        &mut self,
        kind: ObjectKind,
        namespace: &str,
        name: &str,
    ) -> Result<(), Refusal> {
        let kind = Kind::from(kind);
        let key = Key { origin: Origin::Board, kind, namespace: namespace.into(), name: name.into() };
        match self.objects.record(&key).map(|record| &record.source) {
            None => Err(Refusal::not_found(kind, name)),
            Some(Source::Manifest(file)) => Err(Refusal::owned(kind, namespace, name, file)),
            Some(Source::Api) => Err(Refusal::of_the_api(kind, namespace, name)),
            Some(Source::Apply) => {
                self.forget_object(&key);
                Ok(())
            }
        }
    }

    /// Removes objects whose manifest file is readable and no longer has them.
    pub(super) fn remove_orphaned_objects(
        &mut self,
        wanted: &BTreeSet<(String, Key)>,
        unreadable: &BTreeSet<String>,
    ) {
        let orphaned = |(key, known): (&Key, &Known)| match &known.record.source {
            Source::Manifest(file) => {
                let gone = !unreadable.contains(file) && !wanted.contains(&(file.clone(), key.clone()));
                gone.then(|| key.clone())
            }
            Source::Apply | Source::Api => None,
        };
        let orphaned: Vec<Key> = self.objects.known.iter().filter_map(orphaned).collect();
        for key in orphaned {
            self.forget_object(&key);
        }
    }

    /// The API server's word, which replaces whatever was known.
    pub(super) fn replace_object(&mut self, record: ObjectRecord) -> Result<(), Refusal> {
        let key = key(&record);
        if self.objects.record(&key) == Some(&record) {
            return Ok(());
        }
        self.has_room(&record, !self.objects.known.contains_key(&key))?;
        self.objects.put(record);
        self.object_changed(&key);
        Ok(())
    }

    /// Whether one more, or another in its place, may be kept.
    fn has_room(&self, record: &ObjectRecord, is_new: bool) -> Result<(), Refusal> {
        let bytes: usize = record.data.values().chain(record.binary_data.values()).map(|v| v.0.len()).sum();
        let full = is_new && self.objects.known.len() >= OBJECTS_MAX
            || self.objects.bytes.saturating_add(bytes) > OBJECTS_BYTES_MAX;
        if full {
            let message = format!(
                "this board keeps at most {OBJECTS_MAX} ConfigMaps and Secrets, of {OBJECTS_BYTES_MAX} bytes together"
            );
            return Err(Refusal { code: 403, reason: "Forbidden", message });
        }
        Ok(())
    }

    /// Removes one; that nobody has it is no error.
    pub(super) fn forget_object(&mut self, key: &Key) {
        match self.objects.remove(key) {
            true => self.object_changed(key),
            false => self.look_at_users_of(key),
        }
    }

    /// An object came, went, or has other values: it is to be stored, and whoever names it looks again.
    fn object_changed(&mut self, key: &Key) {
        self.save(Row::Object(key.clone()));
        self.look_at_users_of(key);
    }

    fn look_at_users_of(&mut self, key: &Key) {
        let names = |entry: &super::Entry| {
            let named = |n: &ObjectName| Kind::from(n.kind) == key.kind && n.name == key.name;
            Origin::from(&entry.record.source) == key.origin
                && entry.spec.namespace == key.namespace
                && (entry.spec.object_names().iter().any(named)
                    || (key.kind == Kind::Secret && entry.spec.image_pull_secrets.contains(&key.name)))
        };
        let users: Vec<PodUid> =
            self.pods.iter().filter(|(_, e)| names(e)).map(|(uid, _)| uid.clone()).collect();
        for uid in users {
            self.look_at_objects_of(&uid);
        }
    }

    /// What a pod can have of what it names, now.
    pub(super) fn look_at_objects_of(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let objects = self.objects.view(&entry.spec, (&entry.record.source).into(), &self.heard);
        if *entry.objects != objects {
            entry.objects = Arc::new(objects);
            entry.files_wanted += 1;
        }
        entry.observed.unmet = coracle_pod::objects::unmet(&entry.spec, &entry.objects);
        entry.look_at_files();
        self.dirty.insert(uid.clone());
        self.ask_for_objects();
    }

    /// An object as it is, or that it is not, into a batch.
    pub(super) fn write_object(&self, batch: &mut Batch, key: &Key) {
        match self.objects.record(key) {
            Some(record) => batch.put(&row_of(key), record),
            None => batch.delete::<ObjectRecord>(&row_of(key)),
        }
    }
}

impl super::Entry {
    /// Whether its volumes hold what they should.
    pub(super) fn look_at_files(&mut self) {
        let written = self.spec.volumes.iter().any(|v| matches!(v.source, VolumeSource::Projected(_)));
        self.observed.volumes_behind = written && self.files_written != Some(self.files_wanted);
    }
}

/// In the store. No part can hold a slash.
fn row_of(key: &Key) -> String {
    let origin = match key.origin {
        Origin::Board => "board",
        Origin::Api => "api",
    };
    format!("{origin}/{}/{}/{}", key.kind.resource(), key.namespace, key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(kind: &str, text: &str) -> Secret {
        let text = serde_json::json!({"metadata": {"name": "reg"}, "type": kind, "stringData": {
            ".dockerconfigjson": text, ".dockercfg": text}});
        serde_json::from_value(text).expect("a secret")
    }

    #[test]
    fn a_secret_that_is_none_is_refused_and_not_shown() {
        let check = |kind: &str, text: &str, expected: &str| {
            let refused = admit_secret(&secret(kind, text), &Source::Apply).expect_err(expected).message;
            assert_eq!(refused, format!("Secret \"reg\" is invalid: {expected}"));
            assert!(!refused.contains("hunter2"), "{refused}");
        };
        let (config, cfg) = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg");
        let redacted = |key: &str, why: &str| {
            format!("data[{key}]: Invalid value: \"<secret contents redacted>\": {why}")
        };
        check(config, "", "data[.dockerconfigjson]: Required value");
        check(cfg, "", "data[.dockercfg]: Required value");
        check("Opaque", &"x".repeat(1 << 20), "data: Too long: may not be more than 1048576 bytes");
        let shape = redacted(".dockerconfigjson", "not Docker's JSON of registries (line 1, column 9)");
        check(config, "\"hunter2\"", &shape);
        let auth = redacted(".dockercfg", "the auth of r.example is not base64 of user:password");
        check(cfg, r#"{"r.example": {"auth": "hunter2"}}"#, &auth);
        let nameless = Secret::default();
        let refused = admit_secret(&nameless, &Source::Apply).expect_err("nameless").message;
        assert!(
            refused.contains("metadata.name: Required value: name or generateName is required"),
            "{refused}"
        );
    }

    #[test]
    fn immutable_objects_stay() {
        let map = |immutable: bool, value: &str| {
            let text =
                serde_json::json!({"metadata": {"name": "m"}, "immutable": immutable, "data": {"k": value}});
            admit_config_map(&serde_json::from_value(text).expect("a map"), &Source::Apply).expect("valid")
        };
        let check = |known: &ObjectRecord, wanted: &ObjectRecord, expected: Option<&str>| {
            let found = forbidden(known, wanted);
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            let found = found.unwrap_or_default();
            assert!(found.starts_with(expected.unwrap_or_default()), "{found}");
        };
        check(&map(false, "1"), &map(true, "2"), None);
        check(&map(true, "1"), &map(true, "1"), None);
        check(&map(true, "1"), &map(true, "2"), Some("data: Forbidden"));
        check(&map(true, "1"), &map(false, "1"), Some("immutable: Forbidden"));
        let of = |kind: &str| admit_secret(&secret(kind, "{}"), &Source::Apply).expect("valid");
        check(&of("Opaque"), &of("example.test/other"), Some("type: Invalid value"));
    }

    #[test]
    fn credentials_of_an_older_agent_are_taken_over() {
        let text = r#"{"r.example": {"username": "u", "password": "p"}}"#;
        let credentials = docker_cfg(text.as_bytes()).expect("valid");
        let old = SecretRecord {
            namespace: "default".into(),
            name: "reg".into(),
            credentials: credentials.clone(),
            source: Source::Apply,
        };
        let found = super::credentials(&upgraded(old)).expect("of a registry").expect("valid");
        assert_eq!(found, credentials);
    }
}
