//! One walk over a value and its form: types are checked, unknown fields found, what is empty left out.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Decoded, STRICT_ERRORS_MAX};
use crate::field::quoted;
use crate::quantity::{Quantity, QuantityError};
use crate::schema::{Field, Form, Scalar};

/// A value that does not fit its kind; the text goes after `Pod in version "v1" cannot be handled as a Pod: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// Type of the value, innermost Go struct, path without indices, Go type of the field.
    #[error("json: cannot unmarshal {found} into Go struct field {within}.{path} of type {expected}")]
    Mismatch { found: String, within: String, path: String, expected: String },
    /// The object itself.
    #[error("json: cannot unmarshal {0} into Go value of type {1}")]
    Root(String, String),
    #[error("{0}")]
    Quantity(#[from] QuantityError),
    #[error("illegal base64 data at input byte {0}")]
    Base64(usize),
    #[error("parsing time {} as \"{layout}\": cannot parse {} as \"2006\"", quoted(.text), quoted(.text))]
    Time { text: String, layout: &'static str },
    /// `fieldValidation=Strict`.
    #[error("strict decoding error: {0}")]
    Strict(String),
}

/// RFC 3339 in Go's notation.
const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Where the walk is.
struct Walk {
    /// Names, and `[0]` for items.
    path: Vec<String>,
    /// Go's name of the innermost struct.
    within: &'static str,
    strict: Vec<String>,
}

pub(super) fn object(form: &Form, value: Value) -> Result<Decoded, TypeError> {
    placed(form, value).map_err(|(_, error)| error)
}

pub(super) fn placed(form: &Form, value: Value) -> Result<Decoded, (String, TypeError)> {
    let mut walk = Walk { path: Vec::new(), within: "", strict: Vec::new() };
    // An error leaves the path where it met it.
    let value = walk.visit(form, value).map_err(|error| (walk.shown(true), error))?;
    Ok(Decoded { value, strict: walk.strict })
}

impl Walk {
    fn visit(&mut self, form: &Form, value: Value) -> Result<Value, TypeError> {
        match (form, value) {
            (_, Value::Null) => Ok(Value::Null),
            (Form::Object { .. }, Value::Object(map)) => self.fields(form, map),
            (Form::Map { of, .. }, Value::Object(map)) => {
                let mut out = Map::new();
                for (key, value) in map {
                    self.path.push(key.clone());
                    let value = self.visit(of, value)?;
                    self.path.pop();
                    // Go has no null in a map of values: it is the zero value.
                    let value = if value.is_null() { zero(of) } else { value };
                    out.insert(key, value);
                }
                Ok(Value::Object(out))
            }
            (Form::List { of, .. }, Value::Array(list)) => {
                let mut out = Vec::with_capacity(list.len());
                for (index, value) in list.into_iter().enumerate() {
                    self.path.push(format!("[{index}]"));
                    let value = self.visit(of, value)?;
                    self.path.pop();
                    out.push(if value.is_null() { zero(of) } else { value });
                }
                Ok(Value::Array(out))
            }
            (Form::Scalar(scalar), value) => self.scalar(*scalar, form, value),
            (_, value) => Err(self.mismatch(form, &value)),
        }
    }

    fn fields(&mut self, form: &Form, map: Map<String, Value>) -> Result<Value, TypeError> {
        let Some(of) = form.object() else { return Ok(Value::Object(map)) };
        let outer = std::mem::replace(&mut self.within, of.go_name());
        let mut out = Map::new();
        for (name, value) in map {
            let Some(field) = of.field(&name) else {
                self.unknown(&name);
                continue;
            };
            self.path.push(name.clone());
            let value = self.visit(&field.form, value)?;
            self.path.pop();
            if !left_out(field, &value) {
                out.insert(name, value);
            }
        }
        fill(form, &mut out);
        self.within = outer;
        Ok(Value::Object(out))
    }

    fn unknown(&mut self, name: &str) {
        if self.strict.len() < STRICT_ERRORS_MAX {
            self.path.push(name.to_owned());
            let path = self.shown(true);
            self.path.pop();
            self.strict.push(format!("unknown field {}", quoted(&path)));
        }
    }

    /// `spec.containers[0].name`, or as Go has it in type errors, without the indices.
    fn shown(&self, indices: bool) -> String {
        let mut text = String::new();
        for step in &self.path {
            match (step.starts_with('['), indices) {
                (true, true) => text += step,
                (true, false) => {}
                (false, _) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text += step;
                }
            }
        }
        text
    }

    fn scalar(&self, scalar: Scalar, form: &Form, value: Value) -> Result<Value, TypeError> {
        let fits = match (scalar, &value) {
            (Scalar::Int32, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            (Scalar::Int64, Value::Number(n)) => n.is_i64(),
            (Scalar::IntOrString, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            (Scalar::String | Scalar::IntOrString, Value::String(_))
            | (Scalar::Bool, Value::Bool(_))
            | (Scalar::Double, Value::Number(_))
            | (Scalar::Raw, _)
            | (Scalar::Fields, Value::Object(_)) => true,
            (Scalar::Quantity, Value::String(text)) => {
                return Ok(text.parse::<Quantity>()?.to_string().into());
            }
            (Scalar::Quantity, Value::Number(number)) => {
                return Ok(number.to_string().parse::<Quantity>()?.to_string().into());
            }
            (Scalar::Bytes, Value::String(text)) => {
                base64(text).map_err(TypeError::Base64)?;
                true
            }
            (Scalar::Time, Value::String(text)) => {
                return Ok(go_time(time(text, RFC3339)?, false).into());
            }
            (Scalar::MicroTime, Value::String(text)) => {
                return Ok(go_time(time(text, RFC3339_MICRO)?, true).into());
            }
            _ => false,
        };
        if fits { Ok(value) } else { Err(self.mismatch(form, &value)) }
    }

    fn mismatch(&self, form: &Form, value: &Value) -> TypeError {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(n) if matches!(form, Form::Scalar(Scalar::Int32 | Scalar::Int64)) => {
                format!("number {n}")
            }
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        let (path, expected) = (self.shown(false), go_type(form));
        if path.is_empty() {
            return TypeError::Root(found, expected);
        }
        TypeError::Mismatch { found, within: self.within.to_owned(), path, expected }
    }
}

fn go_type(form: &Form) -> String {
    match form {
        Form::Object { .. } => form.object().map_or_else(String::new, |of| of.name_in_go().to_owned()),
        Form::Map { of, .. } => format!("map[string]{}", go_type(of)),
        Form::List { of, .. } => format!("[]{}", go_type(of)),
        Form::Scalar(scalar) => match scalar {
            Scalar::String => "string",
            Scalar::Bool => "bool",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Double => "float64",
            Scalar::Bytes => "[]uint8",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::Quantity => "resource.Quantity",
            Scalar::IntOrString => "intstr.IntOrString",
            Scalar::Raw => "runtime.RawExtension",
            Scalar::Fields => "v1.FieldsV1",
        }
        .to_owned(),
    }
}

/// Whether Go would leave the field out of JSON. Null counts as not there: [`fill`] says what Go has instead.
fn left_out(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        _ if !field.omit_empty || field.pointer => false,
        Value::Bool(set) => !set,
        // An IntOrString, a quantity or a time is a struct to Go, and never empty to it.
        Value::Number(number) => {
            number.as_f64() == Some(0.0) && !matches!(field.form, Form::Scalar(Scalar::IntOrString))
        }
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && matches!(field.form, Form::Map { .. }),
    }
}

/// Adds what Go writes for fields that are not there: structs always, unless they are `omitzero`; the zeros of all
/// others that are not `omitempty`.
fn fill(form: &Form, out: &mut Map<String, Value>) {
    for field in form.object().into_iter().flat_map(|of| &of.fields) {
        if out.contains_key(field.name) || field.omit_zero {
            continue;
        }
        let zero = match &field.form {
            _ if field.pointer && field.omit_empty => continue,
            _ if field.pointer => Value::Null,
            Form::Object { .. } => {
                let mut object = Map::new();
                fill(&field.form, &mut object);
                Value::Object(object)
            }
            Form::Scalar(Scalar::Time | Scalar::MicroTime | Scalar::Raw | Scalar::Fields) => Value::Null,
            Form::Scalar(Scalar::Quantity | Scalar::IntOrString) => zero(&field.form),
            _ if field.omit_empty => continue,
            Form::Scalar(Scalar::Bytes) | Form::Map { .. } | Form::List { .. } => Value::Null,
            Form::Scalar(_) => zero(&field.form),
        };
        out.insert(field.name.to_owned(), zero);
    }
}

/// What stands for null where Go holds values.
fn zero(form: &Form) -> Value {
    match form {
        Form::Object { .. } => {
            let mut object = Map::new();
            fill(form, &mut object);
            Value::Object(object)
        }
        Form::Map { .. } => Value::Object(Map::new()),
        Form::List { .. } => Value::Array(Vec::new()),
        Form::Scalar(scalar) => match scalar {
            Scalar::String | Scalar::Bytes => "".into(),
            Scalar::Bool => false.into(),
            Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString => 0.into(),
            Scalar::Quantity => "0".into(),
            Scalar::Time | Scalar::MicroTime | Scalar::Raw | Scalar::Fields => Value::Null,
        },
    }
}

/// Standard base64 with padding; line ends are let through, as Go does. The error is where it stops being that.
fn base64(text: &str) -> Result<(), usize> {
    let (mut count, mut padding) = (0_usize, 0_usize);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\r' | b'\n' => {}
            b'=' if count % 4 >= 2 && padding < 4 - count % 4 => padding += 1,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' if padding == 0 => count += 1,
            _ => return Err(at),
        }
    }
    if (count + padding) % 4 == 0 { Ok(()) } else { Err(text.len()) }
}

/// A time as Go writes it: in UTC, to the second or the microsecond.
fn go_time(time: Timestamp, micros: bool) -> String {
    let seconds =
        Timestamp::from_second(time.as_second()).map_or_else(|_| time.to_string(), |t| t.to_string());
    if !micros {
        return seconds;
    }
    format!("{}.{:06}Z", seconds.trim_end_matches('Z'), time.subsec_nanosecond().max(0) / 1000)
}

fn time(text: &str, layout: &'static str) -> Result<Timestamp, TypeError> {
    let wrong = || TypeError::Time { text: text.to_owned(), layout };
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).filter(|t| t.bytes().all(|b| b.is_ascii_digit())).and_then(|t| t.parse::<u32>().ok())
    };
    let mark = |at: usize, c: u8| text.as_bytes().get(at) == Some(&c);
    let parts = (digits(0..4), digits(5..7), digits(8..10), digits(11..13), digits(14..16), digits(17..19));
    let (Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) = parts else {
        return Err(wrong());
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let marks = mark(4, b'-') && mark(7, b'-') && mark(10, b'T') && mark(13, b':') && mark(16, b':');
    let ranges =
        (1..=12).contains(&month) && (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60;
    let rest = text.get(19..).unwrap_or_default();
    let rest = rest.strip_prefix('.').map_or(rest, |r| r.trim_start_matches(|c: char| c.is_ascii_digit()));
    let zone = rest == "Z"
        || matches!(rest.as_bytes(), [b'+' | b'-', a, b, b':', c, d] if [a, b, c, d].iter().all(|b| b.is_ascii_digit()));
    if !(marks && ranges && zone) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}
