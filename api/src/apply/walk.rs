//! Walks over objects by their form: what fields they have, how two differ, how they merge, what to take out.
//!
//! Granular are structs, maps, sets and keyed lists; all else, atomic maps and lists among it, is a leaf. Without a
//! form, maps are granular and lists are leaves.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{FieldSet, Step};
use crate::schema::{Form, Topology};

/// How two objects differ.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

/// A child in either of two values.
struct Pair<'a> {
    step: Step,
    form: Option<&'a Form>,
    values: [Option<&'a Value>; 2],
}

/// What a value is to a walk.
enum Shape<'a> {
    Leaf,
    Map(&'a Map<String, Value>),
    List(&'a [Value]),
}

fn shape<'a>(form: Option<&Form>, value: &'a Value) -> Shape<'a> {
    match (form, value) {
        (None, Value::Object(map))
        | (Some(Form::Object { atomic: false, .. } | Form::Map { atomic: false, .. }), Value::Object(map)) => {
            Shape::Map(map)
        }
        (Some(Form::List { topology: Topology::Set | Topology::Map(_), .. }), Value::Array(list)) => {
            Shape::List(list)
        }
        _ => Shape::Leaf,
    }
}

fn child<'a>(form: Option<&'a Form>, name: &str) -> Option<&'a Form> {
    form.and_then(|form| form.child(name))
}

fn item(form: Option<&Form>) -> Option<&Form> {
    form.and_then(Form::item)
}

fn field(name: &str) -> Step {
    Step::Field(name.to_owned())
}

/// Whether a name is a struct's field, rather than a key of a map.
fn is_named(form: Option<&Form>, name: &str) -> bool {
    form.and_then(Form::object).is_some_and(|of| of.field(name).is_some())
}

/// What identifies an item of a granular list.
fn identity(form: Option<&Form>, value: &Value) -> Step {
    let Some(Form::List { topology: Topology::Map(keys), of, .. }) = form else {
        return Step::Value(value.to_string());
    };
    let default = |key: &str| of.object().and_then(|of| of.field(key)).and_then(|field| field.default);
    let value = |key: &str| match value.get(key) {
        None | Some(Value::Null) => default(key).map_or(Value::Null, Value::from),
        Some(value) => value.clone(),
    };
    let keys: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), value(key))).collect();
    Step::Key(Value::Object(keys).to_string())
}

/// The fields of an object.
pub(super) fn set_of(form: &Form, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(Some(form), value, &mut Vec::new(), &mut set);
    set
}

fn collect(form: Option<&Form>, value: &Value, path: &mut Vec<Step>, set: &mut FieldSet) {
    match shape(form, value) {
        Shape::Leaf => set.insert(path),
        Shape::Map(map) => {
            for (name, value) in map {
                path.push(field(name));
                collect(child(form, name), value, path, set);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if empty || !is_named(form, name) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Shape::List(list) => {
            for value in list {
                path.push(identity(form, value));
                collect(item(form), value, path, set);
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// Path and step of an item that a granular list holds twice.
pub(super) fn duplicate(
    form: Option<&Form>,
    value: &Value,
    path: &mut Vec<Step>,
) -> Option<(String, String)> {
    let mut seen = FieldSet::default();
    let children: Vec<(Step, Option<&Form>, &Value)> = match shape(form, value) {
        Shape::Leaf => return None,
        Shape::Map(map) => map.iter().map(|(name, v)| (field(name), child(form, name), v)).collect(),
        Shape::List(list) => list.iter().map(|v| (identity(form, v), item(form), v)).collect(),
    };
    for (step, form, value) in children {
        if seen.has(&step) {
            return Some((path.iter().map(ToString::to_string).collect(), step.to_string()));
        }
        seen.insert(std::slice::from_ref(&step));
        path.push(step);
        if let Some(found) = duplicate(form, value, path) {
            return Some(found);
        }
        path.pop();
    }
    None
}

/// How `new` differs from `old`.
pub(super) fn compare(form: &Form, old: &Value, new: &Value) -> Difference {
    let mut difference = Difference::default();
    differ(Some(form), Some(old), Some(new), &mut Vec::new(), &mut difference);
    difference
}

fn differ(
    form: Option<&Form>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<Step>,
    out: &mut Difference,
) {
    let shapes = [old, new].map(|value| value.map(|value| shape(form, value)));
    let is_empty = |shape: &Option<Shape<'_>>| match shape {
        None => true,
        Some(Shape::Map(map)) => map.is_empty(),
        Some(Shape::List(list)) => list.is_empty(),
        Some(Shape::Leaf) => false,
    };
    let leaf = shapes.iter().any(|shape| matches!(shape, Some(Shape::Leaf))) || shapes.iter().all(is_empty);
    if !leaf {
        for Pair { step, form, values: [old, new] } in pairs(form, &shapes) {
            path.push(step);
            differ(form, old, new, path, out);
            path.pop();
        }
    }
    match (old, new) {
        (None, Some(_)) => out.added.insert(path),
        (Some(_), None) => out.removed.insert(path),
        (Some(old), Some(new)) if leaf && old != new => out.modified.insert(path),
        _ => {}
    }
}

/// The children of two values, those of the same step together.
fn pairs<'a>(form: Option<&'a Form>, shapes: &[Option<Shape<'a>>; 2]) -> Vec<Pair<'a>> {
    let mut places: BTreeMap<Step, usize> = BTreeMap::new();
    let mut pairs: Vec<Pair<'a>> = Vec::new();
    for (side, shape) in shapes.iter().enumerate() {
        let children: Vec<(Step, Option<&Form>, &Value)> = match shape {
            Some(Shape::Map(map)) => map.iter().map(|(n, v)| (field(n), child(form, n), v)).collect(),
            Some(Shape::List(list)) => list.iter().map(|v| (identity(form, v), item(form), v)).collect(),
            _ => Vec::new(),
        };
        for (step, form, value) in children {
            let at = *places.entry(step.clone()).or_insert(pairs.len());
            if at == pairs.len() {
                pairs.push(Pair { step, form, values: [None, None] });
            }
            pairs[at].values[side] = Some(value);
        }
    }
    pairs
}

/// `new` laid over `old`: leaves are the new ones, what only one has stays.
pub(super) fn merge(form: Option<&Form>, old: &Value, new: &Value) -> Value {
    match (shape(form, old), shape(form, new)) {
        (Shape::Map(old), Shape::Map(new)) => {
            let mut merged = old.clone();
            for (name, value) in new {
                let value = match old.get(name) {
                    Some(old) => merge(child(form, name), old, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::List(old), Shape::List(new)) => Value::Array(merge_lists(form, old, new)),
        _ => new.clone(),
    }
}

/// Items of both lists, each once. Those that both have come in the order of the new one, and the others stay as near
/// as can be to where they stood.
fn merge_lists(form: Option<&Form>, old: &[Value], new: &[Value]) -> Vec<Value> {
    let steps = |list: &[Value]| list.iter().map(|value| identity(form, value)).collect::<Vec<_>>();
    let (old_steps, new_steps) = (steps(old), steps(new));
    // The first of equal steps, in lists of any length.
    let places = |steps: &'_ [Step]| {
        steps.iter().enumerate().rev().map(|(at, step)| (step.clone(), at)).collect::<BTreeMap<_, _>>()
    };
    let (in_old, in_new) = (places(&old_steps), places(&new_steps));
    let in_new = |step: &Step| in_new.contains_key(step);
    let mut shared = new_steps.iter().filter(|step| in_old.contains_key(step)).peekable();
    let (mut merged, mut left, mut right) = (Vec::with_capacity(old.len().max(new.len())), 0, 0);
    let both = |at: usize| match in_old.get(&new_steps[at]) {
        Some(before) => merge(item(form), &old[*before], &new[at]),
        None => new[at].clone(),
    };
    while left < old.len() || right < new.len() {
        if left < old.len() && right < new.len() {
            if old_steps[left] == new_steps[right] {
                merged.push(both(right));
                (left, right) = (left + 1, right + 1);
                shared.next();
                continue;
            }
            // Shared, but its turn comes elsewhere.
            if in_new(&old_steps[left]) && shared.peek().is_some_and(|next| **next != old_steps[left]) {
                left += 1;
                continue;
            }
        }
        if left < old.len() {
            if !in_new(&old_steps[left]) {
                merged.push(old[left].clone());
                left += 1;
                continue;
            }
            if right >= new.len() {
                left += 1;
                continue;
            }
        }
        merged.push(both(right));
        if shared.peek().is_some_and(|next| **next == new_steps[right]) {
            shared.next();
        }
        right += 1;
    }
    merged
}

/// The value without the paths of a set. What loses its last child becomes null.
pub(super) fn remove(form: Option<&Form>, value: &Value, set: &FieldSet) -> Value {
    match shape(form, value) {
        Shape::Leaf => value.clone(),
        Shape::Map(map) => {
            let mut kept = Map::new();
            for (name, value) in map {
                let step = field(name);
                if set.has(&step) {
                    continue;
                }
                let value = match set.below(&step) {
                    Some(below) => remove(child(form, name), value, below),
                    None => value.clone(),
                };
                kept.insert(name.clone(), value);
            }
            if kept.is_empty() && !map.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        Shape::List(list) => {
            let mut kept = Vec::new();
            for value in list {
                let step = identity(form, value);
                if set.has(&step) {
                    continue;
                }
                kept.push(match set.below(&step) {
                    Some(below) => remove(item(form), value, below),
                    None => value.clone(),
                });
            }
            if kept.is_empty() && !list.is_empty() { Value::Null } else { Value::Array(kept) }
        }
    }
}

/// The set with every struct field that it goes through.
pub(super) fn with_named_fields(form: Option<&Form>, set: &FieldSet) -> FieldSet {
    set.with_members(form, &|form: Option<&Form>, step| match step {
        Step::Field(name) => (is_named(form, name), below(form, step)),
        _ => (false, below(form, step)),
    })
}

fn below<'a>(form: Option<&'a Form>, step: &Step) -> Option<&'a Form> {
    match step {
        Step::Field(name) => child(form, name),
        _ => item(form),
    }
}
