//! Kubernetes protobuf bodies become the objects that JSON would have given.
//!
//! kubectl posts typed creations as `k8s\0` and a `runtime.Unknown` around the object's message. The decoder walks the
//! message by the numbers in the schema, so it knows every kind that the schema knows, and makes the result canonical
//! as `decode` does. Answers are JSON: nothing is encoded here.
//!
//! Bounds: `decode::BODY_BYTES_MAX`, `decode::DEPTH_MAX`, `decode::VALUES_MAX`.

mod wire;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::decode::{self, BODY_BYTES_MAX, DEPTH_MAX, SyntaxError, TypeError, VALUES_MAX};
use crate::schema::{self, Field, Form, Scalar};
use wire::{Fields, Payload};

/// What a body begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// A body that is no object.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProtobufError {
    #[error("limit is {BODY_BYTES_MAX}")]
    TooLarge,
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    Magic,
    /// `io.ErrUnexpectedEOF` to Go.
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Varint,
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType { wire: u8, field: &'static str },
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u8),
    #[error("proto: illegal tag 0")]
    IllegalTag,
    #[error("field {0} contains invalid UTF-8")]
    Utf8(&'static str),
    #[error("exceeded max depth")]
    TooDeep,
    #[error("the body holds more than {VALUES_MAX} values")]
    TooMany,
    #[error("no kind \"{kind}\" is registered for version \"{version}\"")]
    UnknownKind { version: String, kind: String },
    #[error("content type {0} in a protobuf body is not supported")]
    ContentType(String),
    #[error("{0} is not a time of the years 1 to 9999")]
    Time(i64),
    /// In an embedded object.
    #[error(transparent)]
    Json(#[from] SyntaxError),
    #[error(transparent)]
    Type(#[from] TypeError),
}

/// Decodes a body into the canonical object, `apiVersion` and `kind` among its fields.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(ProtobufError::TooLarge);
    }
    let unknown = unknown(body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?)?;
    let form = schema::kind(&unknown.version, &unknown.kind).ok_or_else(|| ProtobufError::UnknownKind {
        version: unknown.version.clone(),
        kind: unknown.kind.clone(),
    })?;
    let mut value = match unknown.content_type.as_str() {
        "" | "application/vnd.kubernetes.protobuf" => {
            let mut object = Map::new();
            Walk { values: 0 }.message(form, 0, unknown.raw, &mut object, 0)?;
            Value::Object(object)
        }
        "application/json" => decode::json(unknown.raw)?.value,
        other => return Err(ProtobufError::ContentType(other.to_owned())),
    };
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), unknown.version.into());
        object.insert("kind".to_owned(), unknown.kind.into());
    }
    Ok(decode::object(form, value)?.value)
}

/// `runtime.Unknown`.
#[derive(Default)]
struct Unknown<'a> {
    version: String,
    kind: String,
    raw: &'a [u8],
    content_type: String,
}

fn unknown(body: &[u8]) -> Result<Unknown<'_>, ProtobufError> {
    let mut found = Unknown::default();
    for field in Fields::of(body) {
        let (number, payload) = field?;
        match number {
            1 => {
                for field in Fields::of(payload.bytes("typeMeta")?) {
                    let (number, payload) = field?;
                    match number {
                        1 => found.version = payload.text("apiVersion")?.to_owned(),
                        2 => found.kind = payload.text("kind")?.to_owned(),
                        _ => {}
                    }
                }
            }
            2 => found.raw = payload.bytes("raw")?,
            4 => found.content_type = payload.text("contentType")?.to_owned(),
            _ => {}
        }
    }
    Ok(found)
}

/// Counts what it makes.
struct Walk {
    values: usize,
}

impl Walk {
    fn count(&mut self) -> Result<(), ProtobufError> {
        self.values += 1;
        if self.values > VALUES_MAX { Err(ProtobufError::TooMany) } else { Ok(()) }
    }

    /// Reads a message into an object. `inline` is the number of the message that JSON has inline in it, or 0 for its
    /// own fields. What is there already is merged into, as protobuf has it.
    fn message(
        &mut self,
        form: &Form,
        inline: u32,
        bytes: &[u8],
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if depth >= DEPTH_MAX {
            return Err(ProtobufError::TooDeep);
        }
        let Some(of) = form.object() else { return Ok(()) };
        for field in Fields::of(bytes) {
            let (number, payload) = field?;
            let own = |f: &&Field| f.number == Some((inline, number));
            if let Some(field) = of.fields.iter().find(own) {
                let value = object.remove(field.name).unwrap_or(Value::Null);
                let value = self.field(&field.form, field.name, payload, value, depth)?;
                object.insert(field.name.to_owned(), value);
            } else if inline == 0
                && of.fields.iter().any(|f| f.number.is_some_and(|(outer, _)| outer == number))
            {
                self.message(form, number, payload.bytes(of.name)?, object, depth + 1)?;
            }
        }
        Ok(())
    }

    /// One occurrence of a field; `before` is what earlier ones made.
    fn field(
        &mut self,
        form: &Form,
        name: &'static str,
        payload: Payload<'_>,
        before: Value,
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        self.count()?;
        match form {
            Form::Object { .. } => {
                let mut object = match before {
                    Value::Object(object) => object,
                    _ => Map::new(),
                };
                self.message(form, 0, payload.bytes(name)?, &mut object, depth + 1)?;
                Ok(Value::Object(object))
            }
            Form::Map { of, .. } => {
                let mut map = match before {
                    Value::Object(map) => map,
                    _ => Map::new(),
                };
                let (mut key, mut value) = (String::new(), Value::Null);
                for field in Fields::of(payload.bytes(name)?) {
                    match field? {
                        (1, payload) => key = payload.text(name)?.to_owned(),
                        (2, payload) => value = self.field(of, name, payload, value, depth + 1)?,
                        _ => {}
                    }
                }
                map.insert(key, value);
                Ok(Value::Object(map))
            }
            Form::List { of, wrapped, .. } => {
                let mut list = match before {
                    Value::Array(list) => list,
                    _ => Vec::new(),
                };
                match (of.as_ref(), &payload) {
                    _ if *wrapped => {
                        for field in Fields::of(payload.bytes(name)?) {
                            if let (1, payload) = field? {
                                list.push(self.field(of, name, payload, Value::Null, depth + 1)?);
                            }
                        }
                    }
                    (Form::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool), Payload::Bytes(packed)) => {
                        for number in wire::packed(packed) {
                            let number = Payload::Varint(number?);
                            list.push(self.field(of, name, number, Value::Null, depth + 1)?);
                        }
                    }
                    _ => list.push(self.field(of, name, payload, Value::Null, depth + 1)?),
                }
                Ok(Value::Array(list))
            }
            Form::Scalar(scalar) => self::scalar(*scalar, name, payload),
        }
    }
}

fn scalar(scalar: Scalar, name: &'static str, payload: Payload<'_>) -> Result<Value, ProtobufError> {
    Ok(match scalar {
        Scalar::String => payload.text(name)?.into(),
        Scalar::Bytes => STANDARD.encode(payload.bytes(name)?).into(),
        Scalar::Bool => (payload.varint(name)? != 0).into(),
        Scalar::Int64 => payload.int64(name)?.into(),
        Scalar::Int32 => int32(payload.int64(name)?).into(),
        Scalar::Double => payload.double(name)?.into(),
        Scalar::Quantity => {
            let mut text = "0";
            for field in Fields::of(payload.bytes(name)?) {
                if let (1, payload) = field? {
                    text = payload.text(name)?;
                }
            }
            text.into()
        }
        Scalar::IntOrString => {
            let (mut is_text, mut number, mut text) = (false, 0, "");
            for field in Fields::of(payload.bytes(name)?) {
                match field? {
                    (1, payload) => is_text = payload.varint(name)? != 0,
                    (2, payload) => number = int32(payload.int64(name)?),
                    (3, payload) => text = payload.text(name)?,
                    _ => {}
                }
            }
            if is_text { text.into() } else { number.into() }
        }
        Scalar::Time | Scalar::MicroTime => time(scalar, name, payload.bytes(name)?)?,
        Scalar::Raw | Scalar::Fields => {
            let mut raw: &[u8] = b"null";
            for field in Fields::of(payload.bytes(name)?) {
                if let (1, payload) = field? {
                    raw = payload.bytes(name)?;
                }
            }
            decode::json(raw)?.value
        }
    })
}

/// As Go truncates it.
fn int32(number: i64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "protobuf's int32 is the low half of the varint")]
    let low = number as i32;
    low
}

/// Seconds and nanoseconds since 1970; the empty message is no time.
fn time(scalar: Scalar, name: &'static str, bytes: &[u8]) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanoseconds) = (0, 0);
    for field in Fields::of(bytes) {
        match field? {
            (1, payload) => seconds = payload.int64(name)?,
            (2, payload) => nanoseconds = int32(payload.int64(name)?),
            _ => {}
        }
    }
    let micros = nanoseconds.clamp(0, 999_999_999) / 1000;
    // The year 1 in Go is its zero time, and no time.
    if seconds == -62_135_596_800 && micros == 0 {
        return Ok(Value::Null);
    }
    let time =
        Timestamp::from_second(seconds).ok().filter(|time| (-62_135_596_800..).contains(&time.as_second()));
    let text = time.ok_or(ProtobufError::Time(seconds))?.to_string();
    Ok(match scalar {
        Scalar::MicroTime => format!("{}.{micros:06}Z", text.trim_end_matches('Z')).into(),
        _ => text.into(),
    })
}

#[cfg(test)]
#[path = "protobuf_test.rs"]
mod tests;
