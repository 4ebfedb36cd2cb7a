//! JSON patch: a list of operations on JSON pointers.

use serde_json::Value;

use super::{COPY_BYTES_MAX, OPERATIONS_MAX, PatchError, SHIFTS_MAX};
use crate::decode::{DEPTH_MAX, depth};

/// A pointer's steps, unescaped.
type Pointer = Vec<String>;

enum Operation {
    Add(Pointer, Value),
    Remove(Pointer),
    Replace(Pointer, Value),
    Move(Pointer, Pointer),
    Copy(Pointer, Pointer),
    Test(Pointer, Value),
}

/// Why an operation cannot be done.
type Why = &'static str;

/// What a patch has cost so far.
#[derive(Default)]
struct Spent {
    /// Bytes.
    copied: usize,
    /// Items of lists.
    shifted: usize,
}

impl Spent {
    fn shift(&mut self, items: usize) -> Result<(), Why> {
        self.shifted = self.shifted.saturating_add(items);
        if self.shifted > SHIFTS_MAX { Err("the operations shift too many items") } else { Ok(()) }
    }
}

const MISSING: Why = "unable to find that path";
const INDEX: Why = "unable to access invalid index";
const WHOLE: Why = "the whole document cannot be removed";

pub(super) fn apply(mut target: Value, patch: &Value) -> Result<Value, PatchError> {
    let list = patch
        .as_array()
        .ok_or_else(|| malformed("json: cannot unmarshal object into Go value of type jsonpatch.Patch"))?;
    if list.len() > OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations(list.len()));
    }
    let mut spent = Spent::default();
    for entry in list {
        let (operation, name) = read(entry)?;
        let path = entry["path"].as_str().unwrap_or_default();
        perform(&mut target, operation, &mut spent).map_err(|why| PatchError::Operation {
            operation: name,
            path: path.to_owned(),
            why,
        })?;
    }
    Ok(target)
}

fn malformed(why: impl Into<String>) -> PatchError {
    PatchError::Malformed(why.into())
}

fn read(entry: &Value) -> Result<(Operation, &'static str), PatchError> {
    let pointer = |name: &str| -> Result<Pointer, PatchError> {
        let text =
            entry[name].as_str().ok_or_else(|| malformed(format!("operation missing {name} field")))?;
        steps(text).ok_or_else(|| malformed(format!("invalid pointer in field {name}: {text}")))
    };
    let value = || {
        let value = entry.get("value").cloned();
        value.ok_or_else(|| malformed("operation missing value field"))
    };
    let path = pointer("path")?;
    Ok(match entry["op"].as_str().unwrap_or_default() {
        "add" => (Operation::Add(path, value()?), "add"),
        "remove" => (Operation::Remove(path), "remove"),
        "replace" => (Operation::Replace(path, value()?), "replace"),
        "move" => (Operation::Move(pointer("from")?, path), "move"),
        "copy" => (Operation::Copy(pointer("from")?, path), "copy"),
        "test" => (Operation::Test(path, entry["value"].clone()), "test"),
        other => return Err(malformed(format!("Unexpected kind: {other}"))),
    })
}

fn steps(text: &str) -> Option<Pointer> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let unescape = |step: &str| step.replace("~1", "/").replace("~0", "~");
    text.strip_prefix('/').map(|rest| rest.split('/').map(unescape).collect())
}

fn perform(target: &mut Value, operation: Operation, spent: &mut Spent) -> Result<(), Why> {
    match operation {
        Operation::Add(path, value) => add(target, &path, value, spent),
        Operation::Remove(path) => remove(target, &path, spent).map(|_| ()),
        Operation::Replace(path, value) => {
            bounded(&path, &value)?;
            *find(target, &path).ok_or(MISSING)? = value;
            Ok(())
        }
        Operation::Move(from, path) if from == path => find(target, &from).map(|_| ()).ok_or(MISSING),
        Operation::Move(from, path) if path.starts_with(&from) => Err("a value cannot move into itself"),
        Operation::Move(from, path) => {
            let value = remove(target, &from, spent)?;
            add(target, &path, value, spent)
        }
        Operation::Copy(from, path) => {
            let value = find(target, &from).ok_or(MISSING)?.clone();
            spent.copied = spent.copied.saturating_add(value.to_string().len());
            if spent.copied > COPY_BYTES_MAX {
                return Err("the operations copy too much");
            }
            add(target, &path, value, spent)
        }
        // What is not there is null to a test, as upstream has it.
        Operation::Test(path, value) => {
            let same = find(target, &path).map_or(value.is_null(), |found| same(found, &value));
            if same { Ok(()) } else { Err("testing value failed") }
        }
    }
}

/// Equal as JSON: `1` and `1.0` are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

fn bounded(path: &[String], value: &Value) -> Result<(), Why> {
    if path.len() + depth(value) > DEPTH_MAX { Err("exceeded max depth") } else { Ok(()) }
}

/// An index below `length`, counted from the end when negative.
fn index(step: &str, length: usize) -> Option<usize> {
    let digits = step.strip_prefix('-').unwrap_or(step);
    if digits.is_empty()
        || !digits.bytes().all(|b| b.is_ascii_digit())
        || digits.len() > 1 && digits.starts_with('0')
    {
        return None;
    }
    let number: usize = digits.parse().ok()?;
    let at = if step.starts_with('-') { length.checked_sub(number)? } else { number };
    (at < length).then_some(at)
}

fn find<'a>(target: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(target, |value, step| match value {
        Value::Object(map) => map.get_mut(step),
        Value::Array(list) => {
            let at = index(step, list.len())?;
            list.get_mut(at)
        }
        _ => None,
    })
}

fn add(target: &mut Value, path: &[String], value: Value, spent: &mut Spent) -> Result<(), Why> {
    bounded(path, &value)?;
    let Some((last, parent)) = path.split_last() else {
        *target = value;
        return Ok(());
    };
    match find(target, parent).ok_or(MISSING)? {
        Value::Object(map) => {
            map.insert(last.clone(), value);
        }
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            let at = index(last, list.len() + 1).ok_or(INDEX)?;
            spent.shift(list.len() - at)?;
            list.insert(at, value);
        }
        _ => return Err(MISSING),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &[String], spent: &mut Spent) -> Result<Value, Why> {
    let (last, parent) = path.split_last().ok_or(WHOLE)?;
    match find(target, parent).ok_or(MISSING)? {
        Value::Object(map) => map.remove(last).ok_or(MISSING),
        Value::Array(list) => {
            let at = index(last, list.len()).ok_or(INDEX)?;
            spent.shift(list.len() - at)?;
            Ok(list.remove(at))
        }
        _ => Err(MISSING),
    }
}
