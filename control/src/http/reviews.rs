//! Questions about who somebody is and what they may: objects that are answered and not stored.

use super::Context;
use crate::auth::tokens::ISSUER;
use crate::auth::{Attributes, Identity, PolicyRule};
use crate::object;
use crate::registry::{Target, accept_review};
use coracle_api::decode::Document;
use coracle_api::field::{Errors, Path};
use coracle_api::selector::FieldSelector;
use coracle_api::status::StatusError;
use serde_json::{Map, Value, json};

/// Answers a review.
///
/// # Errors
/// 400 and 422 for questions that make no sense.
pub(super) async fn answer(
    context: &Context,
    who: &Identity,
    target: &Target,
    document: Document,
) -> Result<Value, StatusError> {
    let mut review = accept_review(target.resource, document)?;
    object::set_meta(&mut review, "creationTimestamp", Value::Null);
    let status = match target.resource.kind {
        "SelfSubjectReview" => json!({"userInfo": user_info(who)}),
        "TokenReview" => token(context, &review).await?,
        "SelfSubjectRulesReview" => rules(context, who, &review)?,
        kind => access(context, who, target, kind, &review)?,
    };
    object::fields(&mut review).insert("status".into(), status);
    Ok(review)
}

/// `authentication.k8s.io/v1` UserInfo.
fn user_info(who: &Identity) -> Value {
    let mut info = Map::new();
    info.insert("username".into(), who.user.clone().into());
    if !who.uid.is_empty() {
        info.insert("uid".into(), who.uid.clone().into());
    }
    if !who.groups.is_empty() {
        info.insert("groups".into(), who.groups.clone().into());
    }
    if !who.extra.is_empty() {
        info.insert("extra".into(), json!(who.extra));
    }
    Value::Object(info)
}

async fn token(context: &Context, review: &Value) -> Result<Value, StatusError> {
    let token = object::text(review, &["spec", "token"]);
    if token.is_empty() {
        return Err(StatusError::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = match object::items(review, &["spec", "audiences"]) {
        [] => vec![ISSUER.to_string()],
        list => list.iter().filter_map(Value::as_str).map(String::from).collect(),
    };
    let found = match context.enrollment.authenticate(token).await {
        Ok(Some(who)) => Ok((who, audiences)),
        Ok(None) => context.authenticator.token(&context.registry, token, &audiences).await,
        Err(error) => Err(error),
    };
    match found {
        Ok((who, audiences)) => {
            Ok(json!({"authenticated": true, "user": user_info(&who), "audiences": audiences}))
        }
        Err(error) if error.code == 401 => {
            Ok(json!({"user": {}, "error": "[invalid bearer token, token lookup failed]"}))
        }
        Err(error) => Err(error),
    }
}

fn rules(context: &Context, who: &Identity, review: &Value) -> Result<Value, StatusError> {
    let namespace = object::text(review, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(StatusError::bad_request("no namespace on request"));
    }
    let authorizer = context.registry.authorizer();
    let (rules, mut lacking) = authorizer.rules_for(who, namespace);
    let (paths, resources): (Vec<&PolicyRule>, Vec<&PolicyRule>) =
        rules.iter().partition(|rule| !rule.non_resource_urls.is_empty());
    let resources: Vec<Value> = resources
        .into_iter()
        .map(|rule| {
            let mut shown =
                json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                shown["resourceNames"] = json!(rule.resource_names);
            }
            shown
        })
        .collect();
    let paths: Vec<Value> = paths
        .into_iter()
        .map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}))
        .collect();
    let is_node = crate::auth::node::of(who).is_some();
    if is_node {
        lacking.push("node authorizer does not support user rule resolution".into());
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": is_node || !lacking.is_empty()});
    if !lacking.is_empty() {
        status["evaluationError"] = lacking.join(", ").into();
    }
    Ok(status)
}

fn access(
    context: &Context,
    who: &Identity,
    target: &Target,
    kind: &str,
    review: &Value,
) -> Result<Value, StatusError> {
    let mut errors = Errors::default();
    let path = Path::new("spec");
    let spec = object::at(review, &["spec"]);
    let (of_resource, of_path) =
        (object::at(spec, &["resourceAttributes"]), object::at(spec, &["nonResourceAttributes"]));
    match (of_resource.is_object(), of_path.is_object()) {
        (true, true) => errors.invalid(
            &path.child("nonResourceAttributes"),
            of_path.clone(),
            "cannot be specified in combination with resourceAttributes",
        ),
        (false, false) => errors.invalid(
            &path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
    let text = |key: &str| object::text(spec, &[key]);
    let groups: Vec<String> =
        object::items(spec, &["groups"]).iter().filter_map(Value::as_str).map(String::from).collect();
    let of_others = kind != "SelfSubjectAccessReview";
    if of_others && text("user").is_empty() && groups.is_empty() {
        errors.invalid(&path.child("user"), "", "at least one of user or group must be specified");
    }
    if kind == "LocalSubjectAccessReview" {
        let namespace = object::text(of_resource, &["namespace"]);
        if of_path.is_object() {
            let why = "disallowed on this kind of request";
            errors.invalid(&path.child("nonResourceAttributes"), of_path.clone(), why);
        } else if namespace != target.namespace {
            let place = path.child("resourceAttributes").child("namespace");
            errors.invalid(&place, namespace, "must match metadata.namespace");
        }
    }
    let resource = target.resource;
    errors.into_result().map_err(|errors| StatusError::invalid(resource.group_kind(), "", &errors))?;
    let other;
    let asked_for = if of_others {
        let extra = object::at(spec, &["extra"]).as_object().into_iter().flatten();
        let values = |list: &Value| {
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
        };
        other = Identity {
            user: text("user").into(),
            uid: text("uid").into(),
            groups,
            extra: extra.map(|(key, list)| (key.to_lowercase(), values(list))).collect(),
        };
        &other
    } else {
        who
    };
    let decision = if of_path.is_object() {
        let (verb, path) = (object::text(of_path, &["verb"]), object::text(of_path, &["path"]));
        context.registry.authorizer().decide(asked_for, &Attributes::Path { verb, path })
    } else {
        let text = |key: &str| object::text(of_resource, &[key]);
        let fields = selected(of_resource);
        let asked = Attributes::Resource {
            verb: text("verb"),
            group: text("group"),
            resource: text("resource"),
            subresource: text("subresource"),
            namespace: text("namespace"),
            name: text("name"),
            fields: fields.as_ref(),
        };
        context.registry.authorizer().decide(asked_for, &asked)
    };
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    Ok(status)
}

/// The field selector of a question; one that cannot be read grants nothing.
fn selected(attributes: &Value) -> Option<FieldSelector> {
    let selector = object::at(attributes, &["fieldSelector"]);
    let raw = object::text(selector, &["rawSelector"]);
    let text = if raw.is_empty() {
        let requirements = object::items(selector, &["requirements"]).iter();
        let terms: Vec<String> = requirements
            .filter(|one| object::text(one, &["operator"]) == "In")
            .filter_map(|one| match object::items(one, &["values"]) {
                [value] => {
                    let value = value.as_str()?.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
                    Some(format!("{}={value}", object::text(one, &["key"])))
                }
                _ => None,
            })
            .collect();
        terms.join(",")
    } else {
        raw.to_string()
    };
    FieldSelector::parse(&text, |_| true).ok().filter(|fields| !fields.terms().is_empty())
}
