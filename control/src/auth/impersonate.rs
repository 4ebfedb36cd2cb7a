//! `kubectl --as`: whoever may do so acts as somebody else (the headers `Impersonate-*`).

use super::attributes::Attributes;
use super::authz::Authorizer;
use super::identity::{ANONYMOUS, AUTHENTICATED, Identity, UNAUTHENTICATED};
use coracle_api::percent;
use coracle_api::status::{GroupResource, StatusError};
use hyper::HeaderMap;

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Who the request is to be from: the sender, or whom it names and may act as.
///
/// # Errors
/// 403 for what the sender may not be, 400 for headers that make no sense.
pub fn act_as(
    authorizer: &Authorizer,
    sender: Identity,
    headers: &HeaderMap,
) -> Result<Identity, StatusError> {
    let all = |name: &str| -> Result<Vec<String>, StatusError> {
        headers.get_all(name).iter().map(|value| text(value.as_bytes())).collect()
    };
    let mut extra = Vec::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            let key = percent::decoded(key).unwrap_or_else(|| key.to_string()).to_lowercase();
            extra.push((key, text(value.as_bytes())?));
        }
    }
    let (user, uid, groups) = (all(USER)?, all(UID)?, all(GROUP)?);
    let Some(user) = user.into_iter().next().filter(|user| !user.is_empty()) else {
        return match groups.is_empty() && uid.is_empty() && extra.is_empty() {
            true => Ok(sender),
            false => Err(StatusError::internal("requested impersonation without impersonating a user")),
        };
    };
    let may = |of: (&str, &str), subresource: &str, namespace: &str, name: &str| {
        let GroupResource { group, resource } = GroupResource { group: of.0, resource: of.1 };
        let verb = "impersonate";
        let fields = None;
        let asked = Attributes::Resource { verb, group, resource, subresource, namespace, name, fields };
        authorizer.authorize(&sender, &asked)
    };
    let mut acting = Identity { user, ..Identity::default() };
    match service_account(&acting.user) {
        Some((namespace, name)) => {
            may(("", "serviceaccounts"), "", namespace, name)?;
            if groups.is_empty() {
                acting.groups = service_account_groups(namespace);
            }
        }
        None => may(("", "users"), "", "", &acting.user)?,
    }
    for uid in uid {
        may((AUTHENTICATION, "uids"), "", "", &uid)?;
        acting.uid = uid;
    }
    for group in groups {
        may(("", "groups"), "", "", &group)?;
        acting.groups.push(group);
    }
    for (key, value) in extra {
        may((AUTHENTICATION, "userextras"), &key, "", &value)?;
        acting.extra.entry(key).or_default().push(value);
    }
    if !acting.is_in(AUTHENTICATED) && !acting.is_in(UNAUTHENTICATED) {
        let everybody = if acting.user == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
        acting.groups.push(everybody.into());
    }
    tracing::debug!(sender = sender.user, acting = acting.user, "impersonated");
    Ok(acting)
}

/// Namespace and name of `system:serviceaccount:NAMESPACE:NAME`.
pub fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// What a service account is called as a user.
pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// What every service account of a namespace is in, without `system:authenticated`.
pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}

fn text(value: &[u8]) -> Result<String, StatusError> {
    let wrong = |_| StatusError::bad_request("a header of impersonation is no text");
    std::str::from_utf8(value).map(String::from).map_err(wrong)
}
