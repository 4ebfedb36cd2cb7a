//! How boards come in, and every certificate that is signed after the start.
//!
//! ```text
//! POST certificatesigningrequests ─► who asks (a token with a use left?) ─► stored ─┐
//! kubectl certificate approve ─────────────────────────────────────────► stored ─┴► settle: judge ─► sign ─► stored
//! ```
//! A request is settled before its POST is answered, so that the board has its certificate with the answer: one round trip,
//! and nothing that a token must be good for later. What is approved by hand is settled by a loop that watches.
//!
//! Invariants: settling is level-triggered and idempotent, its writes name the version that they read, and several control
//! planes may do it at once; a use of a token is spent, and the Node made, before its certificate is signed; one name is
//! given to one key.

mod clean;
mod ended;
pub mod policy;
pub mod token;

pub use clean::run;

pub(crate) use ended::{ended, key_of};
pub(crate) use policy::{KEY, PREVIOUS};

use crate::auth::{Identity, MASTERS};
use crate::kinds;
use crate::object::{self, at, child, fields, items, text};
use crate::pki::{self, Authority, Leaf, Pki, PkiError, Request};
use crate::registry::options::WriteOptions;
use crate::registry::{Registry, Subresource, Target, Written};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_api::decode::Document;
use coracle_api::status::{Reason, StatusError};
use jiff::Timestamp;
use policy::{Approval, Facts, Verdict};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use token::{Presented, Token};

/// How often settling begins anew because somebody else wrote.
const TRIES: usize = 8;
/// Certificates are valid so long before they are signed, as upstream's.
pub const BACKDATED: Duration = Duration::from_secs(300);
/// Upstream's least `expirationSeconds`.
const SECONDS_MIN: u64 = 600;
/// What writes here are called.
const MANAGER: &str = "coracle-control";

/// Lets boards in, and signs.
#[derive(Clone, Debug)]
pub struct Enrollment {
    registry: Registry,
    clients: Arc<Authority>,
    kubelets: Arc<Authority>,
    longest: Duration,
    who: Identity,
}

impl Enrollment {
    /// Signs with these authorities, for `longest` at most.
    pub fn new(registry: Registry, pki: &Pki, longest: Duration) -> Enrollment {
        let who = Identity::component("system:serviceaccount:kube-system:certificate-controller");
        Enrollment { registry, clients: pki.authority.clone(), kubelets: pki.kubelets.clone(), longest, who }
    }

    /// Whose bootstrap token it is; `None` for a bearer token of another form.
    ///
    /// # Errors
    /// 401 for one that does not exist, is wrong, has ended or was revoked.
    pub async fn authenticate(&self, bearer: &str) -> Result<Option<Identity>, StatusError> {
        let Some(presented) = Presented::parse(bearer) else { return Ok(None) };
        let found = self.token(presented.id).await?;
        let who = found.and_then(|(token, _)| token.identify(presented, Timestamp::now()));
        if who.is_none() {
            tracing::info!(id = presented.id, "a bootstrap token was refused");
        }
        who.map(Some).ok_or_else(StatusError::unauthorized)
    }

    /// Stores a request for a certificate, and settles it where that needs nobody else.
    ///
    /// # Errors
    /// 401 for a token that has no use left, unless it is for the board that took the last; and those of any create.
    pub async fn create(
        &self,
        who: &Identity,
        target: &Target,
        document: Document,
        options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        if let Some(id) = who.user.strip_prefix(token::USER_PREFIX) {
            self.check_uses(id, &document.value).await?;
        }
        // Upstream's plug-in CertificateSubjectRestriction.
        if text(&document.value, &["spec", "signerName"]) == policy::API_CLIENT
            && read(&document.value).is_ok_and(|request| request.organizations.iter().any(|o| o == MASTERS))
        {
            let why = format!("use of {} signer with {MASTERS} group is not allowed", policy::API_CLIENT);
            let name = object::name(&document.value);
            return Err(StatusError::forbidden(target.resource.group_resource(), name, why));
        }
        let written = self.registry.create(who, target, document, options).await?;
        if options.dry_run {
            return Ok(written);
        }
        let object = self.settle(object::name(&written.object)).await?;
        Ok(Written { object, warnings: written.warnings })
    }

    /// A used-up token is as good as none: but the board whose answer was lost may ask once more.
    async fn check_uses(&self, id: &str, csr: &Value) -> Result<(), StatusError> {
        let used_up = match self.token(id).await? {
            Some((token, _)) => token.uses_left == Some(0),
            None => true,
        };
        if !used_up {
            return Ok(());
        }
        let request = read(csr).map_err(|_| StatusError::unauthorized())?;
        let name = request.common_name.strip_prefix(policy::NODE_PREFIX).unwrap_or_default();
        match self.get("nodes", "", name).await? {
            Some(node) if text(&node, &["metadata", "annotations", KEY]) == request.key_hash => Ok(()),
            _ => {
                tracing::info!(id, "a bootstrap token that is used up was refused");
                Err(StatusError::unauthorized())
            }
        }
    }

    /// Approves, denies and signs what there is to; the request as it is then.
    ///
    /// # Errors
    /// 404 when it is gone; the storage's.
    pub async fn settle(&self, name: &str) -> Result<Value, StatusError> {
        let target = target_of(CSRS, "", name);
        for _ in 0..TRIES {
            let csr = self.registry.get(&target).await?;
            match self.step(&target, &csr).await {
                Ok(None) => return Ok(csr),
                Ok(Some(settled)) => return Ok(settled),
                // Somebody else was faster: what it is now decides.
                Err(error) if matches!(error.reason, Reason::Conflict | Reason::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
        }
        self.registry.get(&target).await
    }

    /// One reading of a request, and the write that it leads to.
    async fn step(&self, target: &Target, csr: &Value) -> Result<Option<Value>, StatusError> {
        let spec = at(csr, &["spec"]);
        let signer = text(spec, &["signerName"]);
        let authority = match signer {
            policy::KUBELET_CLIENT | policy::API_CLIENT => &self.clients,
            policy::KUBELET_SERVING => &self.kubelets,
            _ => return Ok(None),
        };
        let is = |kind: &str| has_condition(csr, kind);
        if is("Denied") || is("Failed") || at(csr, &["status", "certificate"]).is_string() {
            return Ok(None);
        }
        let request = match read(csr) {
            Ok(request) => request,
            // Validation lets none of these in.
            Err(error) => return self.fail(target, csr, &error.to_string()).await.map(Some),
        };
        let mut settled = csr.clone();
        if let Err(why) = policy::signable(signer, &request, spec) {
            // Until somebody approves it, it is nobody's business.
            return match is("Approved") {
                true => self.fail(target, csr, &why).await.map(Some),
                false => Ok(None),
            };
        }
        if !is("Approved") {
            match self.judge(csr, &request).await? {
                Verdict::Leave => return Ok(None),
                Verdict::Deny(reason, message) => {
                    tracing::info!(csr = object::name(csr), reason, message, "denied");
                    push_condition(&mut settled, "Denied", reason, &message);
                    return self.write_status(target, settled).await.map(Some);
                }
                Verdict::Approve(approval) => {
                    self.admit(approval, spec, &request).await?;
                    let why = match approval {
                        Approval::Serving => "Auto approving kubelet serving certificate.",
                        Approval::Renewal => "Auto approving self kubelet client certificate.",
                        _ => "Auto approving kubelet client certificate.",
                    };
                    tracing::info!(
                        csr = object::name(csr),
                        subject = request.common_name,
                        ?approval,
                        "approved"
                    );
                    push_condition(&mut settled, "Approved", "AutoApproved", why);
                }
            }
        }
        let certificate = self.sign(authority, spec, &request).map_err(StatusError::internal)?;
        let encoded = STANDARD.encode(certificate);
        fields(child(&mut settled, "status")).insert("certificate".into(), encoded.into());
        self.write_status(target, settled).await.map(Some)
    }

    async fn judge(&self, csr: &Value, request: &Request) -> Result<Verdict, StatusError> {
        let name = request.common_name.strip_prefix(policy::NODE_PREFIX).unwrap_or_default();
        let spec = at(csr, &["spec"]);
        let node = self.get("nodes", "", name).await?;
        let token = match text(spec, &["username"]).strip_prefix(token::USER_PREFIX) {
            Some(id) => self.token(id).await?.map(|(token, _)| token),
            None => None,
        };
        // One that ended or was revoked since it was presented lets nobody in.
        let token = token.filter(|token| token.is_current(Timestamp::now()));
        Ok(policy::judge(request, spec, Facts { node: node.as_ref(), token: token.as_ref() }))
    }

    /// What has to be true before a certificate is signed.
    async fn admit(&self, approval: Approval, spec: &Value, request: &Request) -> Result<(), StatusError> {
        let name = request.common_name.strip_prefix(policy::NODE_PREFIX).unwrap_or_default();
        let id = text(spec, &["username"]).strip_prefix(token::USER_PREFIX).unwrap_or_default();
        match approval {
            Approval::Again | Approval::Serving => Ok(()),
            Approval::Renewal => self.give(name, &request.key_hash, true).await,
            Approval::Replacement => {
                self.spend(id).await?;
                self.give(name, &request.key_hash, false).await
            }
            Approval::NewNode => {
                let labels = self.spend(id).await?;
                let node = json!({
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {
                        "name": name,
                        "labels": labels,
                        "annotations": {KEY: request.key_hash},
                    },
                });
                let document = Document { value: node, duplicates: Vec::new() };
                self.registry
                    .create(&self.who, &target_of(NODES, "", ""), document, &options())
                    .await
                    .map(|_| ())
            }
        }
    }

    /// Takes one use of a token; the labels that it gives.
    async fn spend(&self, id: &str) -> Result<Value, StatusError> {
        let (token, secret) = self.token(id).await?.ok_or_else(StatusError::unauthorized)?;
        match token.uses_left {
            None => {}
            Some(0) => return Err(StatusError::unauthorized()),
            Some(left) => {
                let target = target_of(SECRETS, token::NAMESPACE, object::name(&secret));
                let document = Document { value: token::spend(secret, left), duplicates: Vec::new() };
                self.registry.update(&self.who, &target, None, document, &options()).await?;
            }
        }
        Ok(json!(token.labels))
    }

    /// Refuses a node whose name was given to another board since.
    ///
    /// # Errors
    /// 401.
    pub async fn check_node(&self, who: &Identity) -> Result<(), StatusError> {
        let Some(name) = who.user.strip_prefix(policy::NODE_PREFIX) else { return Ok(()) };
        let Some(key) = who.extra.get(KEY).and_then(|keys| keys.first()) else { return Ok(()) };
        let Some(node) = self.get("nodes", "", name).await? else { return Ok(()) };
        let enrolled = !text(&node, &["metadata", "annotations", KEY]).is_empty();
        if enrolled && !policy::holds(&node, key) {
            tracing::info!(node = name, "a board was refused: its name was given to another one");
            return Err(StatusError::unauthorized());
        }
        Ok(())
    }

    /// Writes down whose key has the name now; the one before is good until the next, if it is the same board's.
    async fn give(&self, name: &str, key: &str, same_board: bool) -> Result<(), StatusError> {
        let Some(mut node) = self.get("nodes", "", name).await? else { return Ok(()) };
        let metadata = child(&mut node, "metadata");
        let annotations = fields(child(metadata, "annotations"));
        let before = annotations.insert(KEY.into(), key.into());
        match before.filter(|before| same_board && before != key) {
            Some(before) => drop(annotations.insert(PREVIOUS.into(), before)),
            None if same_board => {}
            None => drop(annotations.remove(PREVIOUS)),
        }
        let document = Document { value: node, duplicates: Vec::new() };
        let target = target_of(NODES, "", name);
        self.registry.update(&self.who, &target, None, document, &options()).await.map(|_| ())
    }

    fn sign(&self, authority: &Authority, spec: &Value, request: &Request) -> Result<String, PkiError> {
        let wanted = items(spec, &["usages"]).iter().filter_map(Value::as_str);
        let (usages, extended) = pki::usages(wanted).map_err(|_| PkiError::Crypto)?;
        let asked = at(spec, &["expirationSeconds"]).as_u64();
        let lifetime =
            asked.map_or(self.longest, |s| Duration::from_secs(s.max(SECONDS_MIN)).min(self.longest));
        let now = SystemTime::now();
        let certificate = authority.sign(Leaf {
            subject: request.subject.clone(),
            key: request.key.clone(),
            names: request.names.clone(),
            usages,
            extended,
            not_before: now - BACKDATED,
            not_after: now + lifetime,
        })?;
        pki::pem("CERTIFICATE", &certificate)
    }

    async fn fail(&self, target: &Target, csr: &Value, why: &str) -> Result<Value, StatusError> {
        let mut failed = csr.clone();
        push_condition(&mut failed, "Failed", "SignerValidationFailure", why);
        self.write_status(target, failed).await
    }

    async fn write_status(&self, target: &Target, csr: Value) -> Result<Value, StatusError> {
        let document = Document { value: csr, duplicates: Vec::new() };
        let part = status_of(target)?;
        let written = self.registry.update(&self.who, target, Some(part), document, &options()).await?;
        Ok(written.object)
    }

    async fn token(&self, id: &str) -> Result<Option<(Token, Value)>, StatusError> {
        let name = format!("{}{id}", token::NAME_PREFIX);
        let secret = self.get("secrets", token::NAMESPACE, &name).await?;
        Ok(secret.and_then(|secret| Some((Token::of(&secret)?, secret))))
    }

    async fn get(
        &self,
        plural: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, StatusError> {
        match self.registry.get(&target_of(("", plural), namespace, name)).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.reason == Reason::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

const CSRS: (&str, &str) = ("certificates.k8s.io", "certificatesigningrequests");
const NODES: (&str, &str) = ("", "nodes");
const SECRETS: (&str, &str) = ("", "secrets");

fn target_of((group, plural): (&'static str, &'static str), namespace: &str, name: &str) -> Target {
    let resource = kinds::find(group, "v1", plural).expect("a kind of the table");
    Target { resource, namespace: namespace.into(), name: name.into() }
}

fn status_of(target: &Target) -> Result<&'static Subresource, StatusError> {
    target.resource.subresource("status").ok_or_else(|| StatusError::generic(404, ""))
}

fn options() -> WriteOptions {
    WriteOptions { manager: MANAGER.into(), ..WriteOptions::default() }
}

/// Says where the API is and whom to believe, as kubeadm does, in `kube-public/cluster-info`: `token create` reads it. Unlike
/// kubeadm's it is not for anonymous eyes: a board that joins takes the authority from the TLS handshake itself.
///
/// # Errors
/// The storage's.
pub async fn publish(registry: &Registry, url: &str, ca: &str) -> Result<(), StatusError> {
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: {url}\n    certificate-authority-data: {}\n",
        STANDARD.encode(ca)
    );
    let wanted = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": kubeconfig},
    });
    let who = Identity::apiserver();
    let target = target_of(("", "configmaps"), "kube-public", "cluster-info");
    let document = |value| Document { value, duplicates: Vec::new() };
    for _ in 0..TRIES {
        let written = match registry.get(&target).await {
            Ok(found) if at(&found, &["data"]) == at(&wanted, &["data"]) => return Ok(()),
            Ok(_) => registry.update(&who, &target, None, document(wanted.clone()), &options()).await,
            Err(error) if error.reason == Reason::NotFound => {
                let collection = Target { name: String::new(), ..target.clone() };
                registry.create(&who, &collection, document(wanted.clone()), &options()).await
            }
            Err(error) => return Err(error),
        };
        match written {
            Err(error)
                if matches!(error.reason, Reason::Conflict | Reason::AlreadyExists | Reason::NotFound) => {}
            written => return written.map(|_| ()),
        }
    }
    Ok(())
}

/// The PKCS #10 of a CertificateSigningRequest.
pub(crate) fn read(csr: &Value) -> Result<Request, pki::RequestError> {
    let bytes = STANDARD.decode(text(csr, &["spec", "request"])).map_err(|_| pki::RequestError::Pem)?;
    Request::read(&bytes)
}

fn has_condition(csr: &Value, kind: &str) -> bool {
    items(csr, &["status", "conditions"]).iter().any(|condition| text(condition, &["type"]) == kind)
}

fn push_condition(csr: &mut Value, kind: &str, reason: &str, message: &str) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now =
        Timestamp::from_second(i64::try_from(seconds).unwrap_or_default()).unwrap_or_default().to_string();
    let mut conditions = items(csr, &["status", "conditions"]).to_vec();
    conditions.push(json!({
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastUpdateTime": now,
        "lastTransitionTime": now,
    }));
    fields(child(csr, "status")).insert("conditions".into(), conditions.into());
}
