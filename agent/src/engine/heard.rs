//! What the API's pods name: asked for, heard, and kept for the day when the server cannot be reached.
//!
//! The server's word replaces what is stored, and is stored when it differs. What was never heard of and is not stored is
//! [`Lack::NotYet`]: the pod waits, and says nothing. Of a token the first is stored, so that a board that boots offline can
//! start its pod; those that follow are not, since each would be a write to flash. An object goes with the last pod that
//! names it.

use super::objects::{Key, Origin, admit_config_map, admit_secret};
use super::{Engine, Row};
use crate::cluster::objects::{News, ObjectKey, TokenKey, Wanted};
use crate::record::{ObjectRecord, Source, TokenRecord, TokensRecord};
use crate::request::{Kind, Refusal};
use coracle_pod::PodSpec;
use coracle_pod::objects::{Lack, ObjectKind, ObjectName, TokenRequest};
use coracle_pod::spec::PodUid;
use coracle_store::Batch;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tracing::{error, warn};

type Tokens = BTreeMap<TokenRequest, Result<Arc<str>, Lack>>;

/// What was heard beside the objects themselves.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Why there is no such object, as far as the server said.
    lacks: BTreeMap<Key, Lack>,
    tokens: BTreeMap<PodUid, Tokens>,
    stored: BTreeMap<PodUid, TokensRecord>,
}

impl Heard {
    /// Why a pod of the API cannot have an object that is not kept.
    pub(super) fn lack(&self, key: &Key) -> Lack {
        self.lacks.get(key).cloned().unwrap_or(Lack::NotYet)
    }

    pub(super) fn tokens_of(&self, uid: &PodUid) -> Tokens {
        self.tokens.get(uid).cloned().unwrap_or_default()
    }
}

impl Engine {
    /// Reads the tokens that the store has.
    pub(super) fn open_tokens(&mut self) -> anyhow::Result<()> {
        let scan = self.store.all::<TokensRecord>()?;
        for damaged in &scan.damaged {
            error!(key = %damaged, "the stored tokens of a pod cannot be read; others are asked for");
        }
        for (uid, record) in scan.records {
            let tokens = record.tokens.iter().map(|t| (t.request(), Ok(Arc::from(t.token.as_str()))));
            self.heard.tokens.insert(PodUid(uid.clone()), tokens.collect());
            self.heard.stored.insert(PodUid(uid), record);
        }
        Ok(())
    }

    /// Asks for what the API's pods name now.
    pub(super) fn ask_for_objects(&self) {
        let Some(wanted) = &self.wanted else { return };
        let now = self.wanted_now();
        wanted.send_if_modified(|before| {
            let news = *before != now;
            *before = now;
            news
        });
    }

    fn wanted_now(&self) -> Wanted {
        let mut wanted = Wanted::default();
        let of_api = self.pods.values().filter(|entry| entry.record.source == Source::Api);
        for spec in of_api.map(|entry| &entry.spec) {
            let namespace = &spec.namespace;
            let key = |n: ObjectName| ObjectKey { kind: n.kind, namespace: namespace.clone(), name: n.name };
            wanted.objects.extend(names(spec).into_iter().map(key));
            wanted.tokens.extend(spec.token_requests().into_iter().map(|request| TokenKey {
                namespace: namespace.clone(),
                service_account: spec.service_account_name.clone(),
                pod_name: spec.name.clone(),
                pod_uid: spec.uid.0.clone(),
                request,
            }));
        }
        wanted
    }

    /// Forgets what no pod of the API names any more.
    pub(super) fn forget_unwanted(&mut self) {
        let wanted = self.wanted_now();
        let is_wanted = |key: &Key| {
            let kind = match key.kind {
                Kind::ConfigMap => ObjectKind::ConfigMap,
                Kind::Secret | Kind::Pod => ObjectKind::Secret,
            };
            wanted.objects.contains(&ObjectKey {
                kind,
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            })
        };
        self.heard.lacks.retain(|key, _| is_wanted(key));
        let unwanted: Vec<Key> =
            self.objects.keys().filter(|key| key.origin == Origin::Api && !is_wanted(key)).cloned().collect();
        for key in unwanted {
            self.forget_object(&key);
        }
        let pods: BTreeSet<&PodUid> = self.pods.keys().collect();
        let gone: Vec<PodUid> = self.heard.stored.keys().filter(|uid| !pods.contains(uid)).cloned().collect();
        self.heard.tokens.retain(|uid, _| pods.contains(uid));
        for uid in gone {
            self.heard.stored.remove(&uid);
            self.save(Row::Tokens(uid));
        }
    }

    pub(super) fn hear(&mut self, news: News) {
        match news {
            News::ConfigMap(object) => self.hear_object(admit_config_map(&object, &Source::Api), || {
                let meta = &object.metadata;
                api_key(Kind::ConfigMap, meta.namespace.clone(), meta.name.clone())
            }),
            News::Secret(object) => self.hear_object(admit_secret(&object, &Source::Api), || {
                let meta = &object.metadata;
                api_key(Kind::Secret, meta.namespace.clone(), meta.name.clone())
            }),
            News::None(ObjectKey { kind, namespace, name }) => {
                let key = api_key(kind.into(), Some(namespace), Some(name));
                self.heard.lacks.insert(key.clone(), Lack::NotFound);
                self.forget_object(&key);
            }
            News::Token(key, result) => self.hear_token(key, result),
        }
    }

    fn hear_object(&mut self, admitted: Result<ObjectRecord, Refusal>, key: impl FnOnce() -> Key) {
        let placed = admitted.and_then(|record| self.replace_object(record));
        if let Err(refusal) = placed {
            let key = key();
            warn!(
                kind = key.kind.name(),
                namespace = key.namespace,
                name = key.name,
                message = refusal.message,
                "an object of the API server is not kept"
            );
            self.heard.lacks.insert(key.clone(), Lack::Failed(refusal.message));
            self.forget_object(&key);
        }
    }

    fn hear_token(&mut self, key: TokenKey, result: Result<String, String>) {
        let uid = PodUid(key.pod_uid);
        let Some(entry) = self.pods.get(&uid) else { return };
        if !entry.spec.token_requests().contains(&key.request) {
            return;
        }
        let tokens = self.heard.tokens.entry(uid.clone()).or_default();
        match result {
            Ok(token) => {
                let stored = self.heard.stored.entry(uid.clone()).or_default();
                if !stored.tokens.iter().any(|known| known.request() == key.request) {
                    stored.tokens.push(TokenRecord::new(&key.request, token.clone()));
                    tokens.insert(key.request, Ok(token.into()));
                    self.save(Row::Tokens(uid.clone()));
                } else {
                    tokens.insert(key.request, Ok(token.into()));
                }
            }
            // One that is there is used for as long as it lives.
            Err(why) => {
                let known = tokens.get(&key.request).is_some_and(Result::is_ok);
                if !known {
                    tokens.insert(key.request, Err(Lack::Failed(why)));
                }
            }
        }
        self.look_at_objects_of(&uid);
    }

    /// What of its `imagePullSecrets` nobody has answered for yet: a pull without them would fail, and then wait.
    pub(super) fn awaits_pull_secrets(&self, spec: &PodSpec) -> bool {
        spec.deletion.is_none()
            && spec.image_pull_secrets.iter().any(|name| {
                let key = api_key(Kind::Secret, Some(spec.namespace.clone()), Some(name.clone()));
                self.objects.record(&key).is_none() && self.heard.lack(&key) == Lack::NotYet
            })
    }

    pub(super) fn write_tokens(&self, batch: &mut Batch, uid: &PodUid) {
        match self.heard.stored.get(uid) {
            Some(record) => batch.put(&uid.0, record),
            None => batch.delete::<TokensRecord>(&uid.0),
        }
    }
}

/// What a pod names, for its containers and for its pulls.
fn names(spec: &PodSpec) -> BTreeSet<ObjectName> {
    let pulls = spec.image_pull_secrets.iter();
    let pulls = pulls.map(|name| ObjectName { kind: ObjectKind::Secret, name: name.clone() });
    spec.object_names().into_iter().chain(pulls).collect()
}

fn api_key(kind: Kind, namespace: Option<String>, name: Option<String>) -> Key {
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    Key { origin: Origin::Api, kind, namespace, name }
}
