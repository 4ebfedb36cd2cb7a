//! `serviceaccounts/NAME/token`: what a new token says.

use super::{Bound, Claims, ISSUER, Reference, Tokens};
use crate::auth::Identity;
use crate::auth::impersonate::service_account_user;
use crate::auth::node::{self, restrict};
use crate::object;
use crate::registry::{Registry, Target, new_uid};
use coracle_api::decode::{self, Document};
use coracle_api::field::{Errors, Path, quoted};
use coracle_api::schema;
use coracle_api::status::{GroupKind, GroupResource, StatusError};
use serde_json::{Value, json};

const API_VERSION: &str = "authentication.k8s.io/v1";
const KIND: GroupKind<'static> = GroupKind { group: "authentication.k8s.io", kind: "TokenRequest" };
const SECONDS_DEFAULT: i64 = 3600;
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;

/// Answers a request for a token of the account that `target` names.
///
/// # Errors
/// 400, 403 for a node whose pod it is not, 404, 409 for what is another one by now, 422.
pub async fn request(
    tokens: &Tokens,
    registry: &Registry,
    who: &Identity,
    target: &Target,
    document: Document,
) -> Result<Value, StatusError> {
    let mut asked = read(target, document)?;
    let seconds = object::at(&asked, &["spec", "expirationSeconds"]).as_i64().unwrap_or(SECONDS_DEFAULT);
    let account = registry.get(target).await?;
    let namespace = target.namespace.as_str();
    let reference = object::at(&asked, &["spec", "boundObjectRef"]).clone();
    let says = |key: &str| object::text(&reference, &[key]);
    let (plural, place) = match (says("apiVersion"), says("kind")) {
        ("v1", "Pod") => ("pods", namespace),
        ("v1", "Secret") => ("secrets", namespace),
        ("v1", "Node") => ("nodes", ""),
        _ => ("", ""),
    };
    let found = match plural {
        "" => None,
        plural => registry.stored(plural, place, says("name")).await?,
    };
    if let Some(node) = node::of(who) {
        let pod = found.as_ref().filter(|_| plural == "pods");
        let judged = restrict::create_token(&who.user, node, &asked, pod);
        let of = target.resource.group_resource();
        judged.map_err(|why| StatusError::forbidden(of, &target.name, why))?;
    }
    let mut bound = Bound {
        namespace: namespace.into(),
        node: None,
        pod: None,
        secret: None,
        serviceaccount: reference_to(&account),
    };
    if !reference.is_null() {
        if plural.is_empty() {
            let (api_version, kind) = (says("apiVersion"), says("kind"));
            return Err(StatusError::bad_request(format!(
                "cannot bind token to object of type {api_version}, Kind={kind}"
            )));
        }
        let of = GroupResource { group: "", resource: plural };
        let found = found.ok_or_else(|| StatusError::not_found(of, says("name")))?;
        let uid = object::uid(&found);
        if !says("uid").is_empty() && says("uid") != uid {
            let of = GroupResource { group: "", resource: says("kind") };
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record ({uid}). The object might have been deleted and then recreated",
                says("uid")
            );
            return Err(StatusError::conflict(of, says("name"), why));
        }
        match plural {
            "pods" => {
                let runs_as = object::text(&found, &["spec", "serviceAccountName"]);
                if runs_as != target.name {
                    return Err(StatusError::bad_request(format!(
                        "cannot bind token for serviceaccount {} to pod running with serviceaccount {}",
                        quoted(&target.name),
                        quoted(runs_as)
                    )));
                }
                let node = object::text(&found, &["spec", "nodeName"]);
                if !node.is_empty() {
                    bound.node = registry.stored("nodes", "", node).await?.as_ref().map(reference_to);
                }
                bound.pod = Some(reference_to(&found));
            }
            "secrets" => bound.secret = Some(reference_to(&found)),
            _ => bound.node = Some(reference_to(&found)),
        }
    }
    let audiences = match object::items(&asked, &["spec", "audiences"]) {
        [] => vec![ISSUER.to_string()],
        list => list.iter().filter_map(Value::as_str).map(String::from).collect(),
    };
    let now = jiff::Timestamp::now().as_second();
    let claims = Claims {
        aud: audiences.clone(),
        exp: now + seconds,
        iat: now,
        iss: ISSUER.into(),
        jti: new_uid()?,
        bound,
        nbf: now,
        sub: service_account_user(namespace, &target.name),
    };
    let expires = jiff::Timestamp::from_second(claims.exp).map_err(StatusError::internal)?;
    let token = tokens.sign(&claims)?;
    object::set_meta(
        &mut asked,
        "creationTimestamp",
        jiff::Timestamp::from_second(now).unwrap_or_default().to_string(),
    );
    let spec = object::fields(object::child(&mut asked, "spec"));
    spec.insert("audiences".into(), audiences.into());
    spec.insert("expirationSeconds".into(), seconds.into());
    spec.entry("boundObjectRef").or_insert(Value::Null);
    let status = json!({"token": token, "expirationTimestamp": expires.to_string()});
    object::fields(&mut asked).insert("status".into(), status);
    Ok(asked)
}

/// Brings a request into form.
fn read(target: &Target, document: Document) -> Result<Value, StatusError> {
    let form = schema::kind(API_VERSION, KIND.kind).expect("the schema has TokenRequest");
    let given = |key: &str, wanted: &str| {
        let text = object::text(&document.value, &[key]);
        text.is_empty() || text == wanted
    };
    if !document.value.is_object() || !given("kind", KIND.kind) || !given("apiVersion", API_VERSION) {
        let why = "the body is no TokenRequest of authentication.k8s.io/v1";
        return Err(StatusError::unhandled(KIND.kind, "v1", KIND.kind, why));
    }
    let decoded = decode::object(form, document.value);
    let mut asked = decoded.map_err(|error| StatusError::unhandled(KIND.kind, "v1", KIND.kind, error))?.value;
    let fields = object::fields(&mut asked);
    fields.insert("apiVersion".into(), API_VERSION.into());
    fields.insert("kind".into(), KIND.kind.into());
    fields.remove("status");
    match (object::name(&asked), object::namespace(&asked)) {
        (name, _) if !name.is_empty() && name != target.name => {
            return Err(StatusError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            )));
        }
        (_, namespace) if !namespace.is_empty() && namespace != target.namespace => {
            return Err(StatusError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        _ => {}
    }
    object::set_meta(&mut asked, "name", target.name.as_str());
    object::set_meta(&mut asked, "namespace", target.namespace.as_str());
    let mut errors = Errors::default();
    let path = Path::new("spec").child("expirationSeconds");
    match object::at(&asked, &["spec", "expirationSeconds"]).as_i64() {
        Some(seconds) if seconds < SECONDS_MIN => {
            errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
        }
        Some(seconds) if seconds > SECONDS_MAX => {
            errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
        _ => {}
    }
    errors.into_result().map_err(|errors| StatusError::invalid(KIND, &target.name, &errors))?;
    Ok(asked)
}

fn reference_to(object: &Value) -> Reference {
    Reference { name: object::name(object).into(), uid: object::uid(object).into() }
}
