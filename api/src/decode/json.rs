//! JSON with its duplicate keys seen, and with errors worded as Go's `encoding/json` words them.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Number, Value};

use super::{BODY_BYTES_MAX, DEPTH_MAX, Document, STRICT_ERRORS_MAX, SyntaxError, VALUES_MAX};

/// Marks our own errors in serde's.
const TOO_DEEP: &str = "exceeded max depth";
const TOO_MANY: &str = "too many values";
/// Of a key, in a path that is told.
const KEY_CHARACTERS_MAX: usize = 300;

pub(super) fn read(body: &[u8]) -> Result<Document, SyntaxError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(SyntaxError::TooLarge);
    }
    let (duplicates, count) = (RefCell::new(Vec::new()), Cell::new(0));
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let node = Node { above: None, step: Step::Root, depth: 0, duplicates: &duplicates, count: &count };
    let value = node
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| worded(body, &error))?;
    Ok(Document { value, duplicates: duplicates.into_inner() })
}

fn worded(body: &[u8], error: &serde_json::Error) -> SyntaxError {
    let text = error.to_string();
    if text.starts_with(TOO_MANY) {
        return SyntaxError::TooMany;
    }
    match error.classify() {
        Category::Eof => SyntaxError::End,
        _ if text.starts_with(TOO_DEEP) || text.starts_with("recursion limit") => SyntaxError::TooDeep,
        Category::Syntax => {
            let context = if text.starts_with("trailing characters") {
                "after top-level value"
            } else if text.starts_with("key must be a string") || text.starts_with("trailing comma") {
                "looking for beginning of object key string"
            } else if text.starts_with("expected `,` or `}`") {
                "after object key:value pair"
            } else if text.starts_with("expected `,` or `]`") {
                "after array element"
            } else if text.starts_with("expected `:`") {
                "after object key"
            } else if text.starts_with("expected value") {
                "looking for beginning of value"
            } else if text.starts_with("expected ident") {
                "in literal"
            } else {
                return SyntaxError::Other(text);
            };
            match character(body, error.line(), error.column()) {
                Some(c) => SyntaxError::Character(c, context),
                None => SyntaxError::End,
            }
        }
        _ => SyntaxError::Other(text),
    }
}

/// The character there, quoted as Go does. serde counts columns in bytes, from 1.
fn character(body: &[u8], line: usize, column: usize) -> Option<String> {
    let line = body.split(|b| *b == b'\n').nth(line.checked_sub(1)?)?;
    let rest = line.get(column.checked_sub(1)?..)?;
    let c = String::from_utf8_lossy(rest.get(..rest.len().min(4))?).chars().next()?;
    Some(if c == '\'' { "'\\''".to_owned() } else { format!("{c:?}") })
}

/// From one value to the next one below it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

/// A value to be read, and the way to it. The way becomes text only where there is something to say: a text for each value
/// would be quadratic in the body.
struct Node<'a> {
    above: Option<&'a Node<'a>>,
    step: Step<'a>,
    depth: usize,
    duplicates: &'a RefCell<Vec<String>>,
    count: &'a Cell<usize>,
}

impl Node<'_> {
    fn below<'b, E: Error>(&'b self, step: Step<'b>) -> Result<Node<'b>, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(TOO_DEEP));
        }
        self.count.set(self.count.get() + 1);
        if self.count.get() > VALUES_MAX {
            return Err(E::custom(TOO_MANY));
        }
        Ok(Node {
            above: Some(self),
            step,
            depth: self.depth + 1,
            duplicates: self.duplicates,
            count: self.count,
        })
    }

    /// `spec.containers[0].name`, of which a hostile key is cut.
    fn path(&self) -> String {
        let mut path = self.above.map(Node::path).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Index(index) => path.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                match key.char_indices().nth(KEY_CHARACTERS_MAX) {
                    Some((end, _)) => path.extend([&key[..end], "…"]),
                    None => path.push_str(key),
                }
            }
        }
        path
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let below = self.below(Step::Index(list.len()))?;
            match items.next_element_seed(below)? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self.below(Step::Key(&key))?)?;
            if map.contains_key(&key) && self.duplicates.borrow().len() < STRICT_ERRORS_MAX {
                let path = self.below(Step::Key(&key))?.path();
                self.duplicates.borrow_mut().push(path);
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
