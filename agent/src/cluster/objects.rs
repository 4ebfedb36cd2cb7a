//! ConfigMaps, Secrets and tokens that the API's pods of this node name: one watch an object, one request a token.
//!
//! As the kubelet's watch-based managers do, and as the Node authorizer allows: never a namespace, always one object by its
//! name, and for no longer than a pod names it. Tokens are bound to their pod and renewed at four fifths of their life. What
//! is heard goes to the engine, which keeps it for the day when the server cannot be reached.

use super::backoff::{Backoff, spread};
use super::client::{Client, ClientError, Collection};
use super::watch::{Delta, follow};
use crate::engine::Message;
use coracle_pod::objects::{ObjectKind, TokenRequest};
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tracing::warn;

/// No token is used longer (kubelet: `maxTTL`).
const TOKEN: Duration = Duration::from_secs(24 * 3600);
/// Between renewals at least, whatever the server says of a token's life.
const RENEWAL_MIN: Duration = Duration::from_secs(60);

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    pub kind: ObjectKind,
    pub namespace: String,
    pub name: String,
}

/// One token: who may use it, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenKey {
    pub namespace: String,
    pub service_account: String,
    pub pod_name: String,
    pub pod_uid: String,
    pub request: TokenRequest,
}

/// What the pods name together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub objects: BTreeSet<ObjectKey>,
    pub tokens: BTreeSet<TokenKey>,
}

/// What was heard.
#[derive(Debug)]
pub(crate) enum News {
    ConfigMap(ConfigMap),
    Secret(Secret),
    /// There is none of that name.
    None(ObjectKey),
    Token(TokenKey, Result<String, String>),
}

/// Follows what is wanted, until nobody wants any more.
pub(crate) async fn run(client: Client, mut wanted: watch::Receiver<Wanted>, engine: mpsc::Sender<Message>) {
    let mut objects: BTreeMap<ObjectKey, AbortHandle> = BTreeMap::new();
    let mut tokens: BTreeMap<TokenKey, AbortHandle> = BTreeMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        keep(&mut objects, now.objects, |key| follow_object(client.clone(), key, engine.clone()));
        keep(&mut tokens, now.tokens, |key| {
            tokio::spawn(renew(client.clone(), key, engine.clone())).abort_handle()
        });
        if wanted.changed().await.is_err() {
            keep(&mut objects, BTreeSet::new(), |_| unreachable!("nothing is wanted"));
            keep(&mut tokens, BTreeSet::new(), |_| unreachable!("nothing is wanted"));
            return;
        }
    }
}

/// Starts what is wanted and has no task, ends what is no longer.
fn keep<K: Ord + Clone>(
    tasks: &mut BTreeMap<K, AbortHandle>,
    wanted: BTreeSet<K>,
    start: impl Fn(K) -> AbortHandle,
) {
    tasks.retain(|key, task| {
        let stays = wanted.contains(key);
        if !stays {
            task.abort();
        }
        stays
    });
    for key in wanted {
        tasks.entry(key.clone()).or_insert_with(|| start(key));
    }
}

fn follow_object(client: Client, key: ObjectKey, engine: mpsc::Sender<Message>) -> AbortHandle {
    let query = vec![("fieldSelector", format!("metadata.name={}", key.name))];
    let task = match key.kind {
        ObjectKind::ConfigMap => {
            let path = Collection::CONFIG_MAPS.of(&key.namespace);
            let wrap = move |delta| heard(delta, &key, News::ConfigMap);
            tokio::spawn(follow::<ConfigMap, _>(client, path, query, engine, wrap))
        }
        ObjectKind::Secret => {
            let path = Collection::SECRETS.of(&key.namespace);
            let wrap = move |delta| heard(delta, &key, News::Secret);
            tokio::spawn(follow::<Secret, _>(client, path, query, engine, wrap))
        }
    };
    task.abort_handle()
}

/// A list of one name has one object, or none.
fn heard<T>(delta: Delta<T>, key: &ObjectKey, wrap: impl Fn(T) -> News) -> Message {
    let found = match delta {
        Delta::All(list) => list.into_iter().next(),
        Delta::Changed(object) => Some(object),
        Delta::Deleted(_) => None,
    };
    Message::Object(Box::new(found.map_or_else(|| News::None(key.clone()), wrap)))
}

/// Asks for a token, and for the next one before it ends.
async fn renew(client: Client, key: TokenKey, engine: mpsc::Sender<Message>) {
    let mut backoff = Backoff::default();
    loop {
        let (news, wait) = match request(&client, &key).await {
            Ok((token, life)) => {
                backoff.succeeded();
                // As the kubelet: at 80 %, and not all at once.
                let renewal = life.min(TOKEN).mul_f64(0.8).max(RENEWAL_MIN);
                (Some(Ok(token)), renewal.saturating_sub(spread(Duration::from_secs(5))))
            }
            Err(error) => {
                warn!(namespace = key.namespace, account = key.service_account, %error, "no token; tried again");
                // While the server is away, that there is none is no news.
                (error.reason().map(|_| Err(error.to_string())), backoff.next())
            }
        };
        if let Some(news) = news
            && engine.send(Message::Object(Box::new(News::Token(key.clone(), news)))).await.is_err()
        {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

/// A token and its life.
async fn request(client: &Client, key: &TokenKey) -> Result<(String, Duration), ClientError> {
    let TokenRequest { audience, expiration_seconds } = &key.request;
    let audiences = if audience.is_empty() { Vec::new() } else { vec![audience.clone()] };
    let asked = authentication::TokenRequest {
        metadata: ObjectMeta::default(),
        spec: authentication::TokenRequestSpec {
            audiences,
            expiration_seconds: i64::try_from(*expiration_seconds).ok(),
            bound_object_ref: Some(authentication::BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(key.pod_name.clone()),
                uid: Some(key.pod_uid.clone()),
            }),
        },
        status: None,
    };
    let path = Collection::SERVICE_ACCOUNTS.part(&key.namespace, &key.service_account, "token");
    let made: authentication::TokenRequest = client.create(&path, &asked).await?;
    // The board's clock may be wrong: how long it lives counts, not until when.
    let seconds =
        made.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(*expiration_seconds);
    let token = made.status.map(|status| status.token).unwrap_or_default();
    Ok((token, Duration::from_secs(seconds)))
}
