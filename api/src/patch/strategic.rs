//! Strategic merge patch: a merge patch that knows which lists are sets and which are keyed.
//!
//! Follows `k8s.io/apimachinery/pkg/util/strategicpatch` as the API server uses it. Directives of a patch:
//! `$patch: replace|delete` in a map or an item, `$retainKeys`, `$setElementOrder/LIST`, `$deleteFromPrimitiveList/LIST`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Form, Merge};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_SCALARS: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

pub(super) fn apply(form: &Form, target: Value, patch: Value) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed("invalid JSON document".to_owned()));
    };
    let Value::Object(target) = target else {
        return Err(PatchError::Malformed("invalid JSON document".to_owned()));
    };
    merge_map(Some(form), target, patch).map(Value::Object)
}

fn merge_map(form: Option<&Form>, mut target: Object, mut patch: Object) -> Result<Object, PatchError> {
    if let Some(directive) = patch.get(PATCH) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(PATCH);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(PatchError::Directive(directive.clone(), Value::Object(patch.clone()))),
        };
    }
    retain(&mut target, &mut patch)?;
    let ordered: Vec<_> = patch.keys().filter(|key| key.starts_with(ORDER)).cloned().collect();
    for directive in ordered {
        let order = patch.remove(&directive).unwrap_or_default();
        let name = directive[ORDER.len()..].to_owned();
        merge_ordered(form, &mut target, &mut patch, name, &order)?;
    }
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_SCALARS) {
            let Value::Array(gone) = &value else { return Err(PatchError::Format("primitive list")) };
            if let Some(Value::Array(list)) = target.get_mut(name) {
                let gone: BTreeSet<_> = gone.iter().map(ToString::to_string).collect();
                list.retain(|item| !gone.contains(&item.to_string()));
            }
            continue;
        }
        if value.is_null() {
            target.remove(&key);
            continue;
        }
        let below = form.and_then(|form| form.child(&key));
        let merged = match (target.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => Value::Object(merge_map(below, old, new)?),
            (Some(Value::Array(old)), Value::Array(new)) => Value::Array(merge_list(below, old, new)?),
            (_, new) => undirected(new),
        };
        target.insert(key, merged);
    }
    Ok(target)
}

/// `$retainKeys` names all fields that stay, those of the patch among them.
fn retain(target: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(PatchError::Format("retainKeys")) };
    let kept: BTreeSet<_> = keys.iter().filter_map(Value::as_str).collect();
    let foreign = |key: &str| !key.starts_with('$') && !kept.contains(key);
    if patch.iter().any(|(key, value)| foreign(key) && !value.is_null()) {
        return Err(PatchError::Format("retainKeys"));
    }
    target.retain(|key, _| kept.contains(key.as_str()));
    Ok(())
}

/// What a patch's value becomes where there is nothing to merge it with: directives and nulls fall away.
fn undirected(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let directive = |key: &str| {
                key == PATCH
                    || key == RETAIN_KEYS
                    || key.starts_with(ORDER)
                    || key.starts_with(DELETE_SCALARS)
            };
            let fields = map.into_iter().filter(|(key, value)| !value.is_null() && !directive(key));
            Value::Object(fields.map(|(key, value)| (key, undirected(value))).collect())
        }
        Value::Array(list) => {
            let items = list.into_iter().filter(|item| item.get(PATCH).is_none());
            Value::Array(items.map(undirected).collect())
        }
        scalar => scalar,
    }
}

fn strategy(form: Option<&Form>) -> Merge {
    match form {
        Some(Form::List { merge, .. }) => *merge,
        _ => Merge::Replace,
    }
}

fn merge_list(form: Option<&Form>, old: Vec<Value>, new: Vec<Value>) -> Result<Vec<Value>, PatchError> {
    let identity = strategy(form);
    let (server, order) = (old.clone(), new.clone());
    let merged = match identity {
        Merge::Replace => return Ok(new.into_iter().map(undirected).collect()),
        Merge::Scalars => {
            let mut seen = BTreeSet::new();
            old.into_iter().chain(new).filter(|item| seen.insert(item.to_string())).collect()
        }
        Merge::Key(key) => match merge_items(form, key, old, new)? {
            Merged::Replaced(list) => return Ok(list),
            Merged::Merged(list) => list,
        },
    };
    Ok(arrange(merged, &order, &server, identity))
}

enum Merged {
    /// By `$patch: replace`; the order is the patch's.
    Replaced(Vec<Value>),
    Merged(Vec<Value>),
}

fn merge_items(
    form: Option<&Form>,
    key: &'static str,
    mut old: Vec<Value>,
    new: Vec<Value>,
) -> Result<Merged, PatchError> {
    let (mut replace, mut items, mut gone) = (false, Vec::with_capacity(new.len()), BTreeSet::new());
    for item in new {
        let Value::Object(item) = item else { return Err(PatchError::NoMergeKey(item, key)) };
        match item.get(PATCH).map(|directive| directive.as_str()) {
            None => items.push(item),
            Some(Some("replace")) => replace = true,
            Some(Some("delete")) => {
                let Some(id) = item.get(key) else { return Err(PatchError::NoMergeKey(item.into(), key)) };
                gone.insert(id.to_string());
            }
            Some(_) => return Err(PatchError::Directive(item[PATCH].clone(), item.into())),
        }
    }
    if replace {
        return Ok(Merged::Replaced(items.into_iter().map(|item| undirected(item.into())).collect()));
    }
    let id = |item: &Value| item.get(key).map(ToString::to_string);
    old.retain(|item| id(item).is_none_or(|id| !gone.contains(&id)));
    let mut places = places(&old, Merge::Key(key));
    let below = form.and_then(Form::item);
    for item in items {
        let Some(id) = item.get(key).map(ToString::to_string) else {
            return Err(PatchError::NoMergeKey(item.into(), key));
        };
        let at = *places.entry(id).or_insert(old.len());
        match old.get_mut(at) {
            Some(Value::Object(old)) => *old = merge_map(below, std::mem::take(old), item)?,
            _ => old.push(undirected(item.into())),
        }
    }
    Ok(Merged::Merged(old))
}

/// Merges one list whose order the patch gives, and puts the list into that order.
fn merge_ordered(
    form: Option<&Form>,
    target: &mut Object,
    patch: &mut Object,
    name: String,
    order: &Value,
) -> Result<(), PatchError> {
    let Value::Array(order) = order else { return Err(PatchError::Format("setElementOrder list")) };
    let below = form.and_then(|form| form.child(&name));
    let identity = strategy(below);
    let new = match patch.remove(&name) {
        // A null deletes the list; there is nothing to order.
        Some(Value::Null) => {
            target.remove(&name);
            return Ok(());
        }
        Some(Value::Array(new)) => Some(new),
        Some(_) => return Err(PatchError::Format("setElementOrder list")),
        None => None,
    };
    if let Some(new) = &new {
        agrees(new, order, &name, identity)?;
    }
    let (server, merged) = match (target.remove(&name), new) {
        (Some(Value::Array(old)), Some(new)) => (old.clone(), merge_list(below, old, new)?),
        (Some(Value::Array(old)), None) => (old.clone(), old),
        (None, Some(new)) => {
            let items = new.into_iter().filter(|item| item.get(PATCH).is_none()).map(undirected);
            (Vec::new(), items.collect())
        }
        (None, None) => return Ok(()),
        (Some(_), _) => return Err(PatchError::Format("setElementOrder list")),
    };
    target.insert(name, Value::Array(arrange(merged, order, &server, identity)));
    Ok(())
}

/// What tells an item from the others of its list.
fn id(item: &Value, identity: Merge) -> Option<String> {
    match identity {
        Merge::Key(key) => item.get(key).map(ToString::to_string),
        Merge::Scalars | Merge::Replace => Some(item.to_string()),
    }
}

/// Where each item stands first. Lists are as long as a body may be, so nothing searches them in a loop.
fn places(list: &[Value], identity: Merge) -> BTreeMap<String, usize> {
    list.iter().enumerate().rev().filter_map(|(at, item)| Some((id(item, identity)?, at))).collect()
}

/// The patch's items must stand in its order as they stand in the list; deleted ones need not.
fn agrees(new: &[Value], order: &[Value], name: &str, identity: Merge) -> Result<(), PatchError> {
    let mut last = 0;
    for item in new.iter().filter(|item| item.get(PATCH).is_none()) {
        let wanted = id(item, identity);
        match order[last..].iter().position(|other| wanted.is_some() && id(other, identity) == wanted) {
            Some(at) => last += at,
            None => {
                let (new, order) = (Value::Array(new.to_vec()), Value::Array(order.to_vec()));
                return Err(PatchError::Order(new, name.to_owned(), order));
            }
        }
    }
    Ok(())
}

/// Items that `order` names come in its order, the others in the server's; where both are known to the server, its
/// order says which goes first.
fn arrange(merged: Vec<Value>, order: &[Value], server: &[Value], identity: Merge) -> Vec<Value> {
    let (order, server) = (places(order, identity), places(server, identity));
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        let id = id(&item, identity);
        let known = id.as_ref().and_then(|id| server.get(id).copied());
        match id.as_ref().and_then(|id| order.get(id)) {
            Some(at) => named.push((*at, known, item)),
            None => others.push((known, item)),
        }
    }
    named.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(known, _)| *known);
    let mut arranged = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let first = match (others.peek(), named.peek()) {
            (Some((Some(left), _)), Some((_, Some(right), _))) => left < right,
            (Some(_), Some(_)) => false,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return arranged,
        };
        if first {
            arranged.extend(others.next().map(|(_, item)| item));
        } else {
            arranged.extend(named.next().map(|(.., item)| item));
        }
    }
}
