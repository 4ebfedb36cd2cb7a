//! Reading an object as the kind that it claims to be, in place.
//!
//! The type of the kind (`k8s-openapi`) is deserialized from the JSON value and thrown away; on the way every field is
//! checked against it, and the value is brought into the form in which upstream's round trip through Go leaves it:
//! unknown fields are gone (and told), so are nulls and what Go's `omitempty` omits; quantities are canonical. So the
//! real schema decides, for every kind, and the object stays JSON.

use coracle_api::quantity::Quantity;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::fmt;

/// Unknown fields that are told of.
const UNKNOWN_MAX: usize = 100;
/// Go's zero values of plain (not pointer) fields with `omitempty`.
const FALSE_OMITTED: &[&str] = &[
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "paused",
    "publishNotReadyAddresses",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
    "unschedulable",
];
const ZERO_OMITTED: &[&str] = &[
    "containerPort",
    "failureThreshold",
    "hostPort",
    "initialDelaySeconds",
    "minReadySeconds",
    "nodePort",
    "observedGeneration",
    "periodSeconds",
    "successThreshold",
    "timeoutSeconds",
];
/// Pointers to strings, and strings without `omitempty`: the empty one is kept.
const EMPTY_KEPT: &[&str] =
    &["hostname", "key", "name", "storageClassName", "volumeName", "ingressClassName"];

/// A value that is not of the kind. Worded as upstream's decoder words it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

impl Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> DecodeError {
        DecodeError(message.to_string())
    }
}

/// Checks and normalises `value` as a `T`; answers with the paths of unknown fields, which are removed.
///
/// # Errors
/// A field of a wrong type.
pub fn normalize<T: DeserializeOwned>(value: &mut Value) -> Result<Vec<String>, DecodeError> {
    let state = State::default();
    T::deserialize(Node { value, trail: &Trail::Root, owner: "", state: &state })?;
    Ok(state.unknown.into_inner())
}

#[derive(Default)]
struct State {
    unknown: RefCell<Vec<String>>,
    /// The value just visited is to be removed by whoever holds it.
    omit: Cell<bool>,
}

/// Where a value stands.
enum Trail<'t> {
    Root,
    Key(&'t Trail<'t>, &'t str),
    Index(&'t Trail<'t>, usize),
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trail::Root => Ok(()),
            Trail::Key(Trail::Root, key) => f.write_str(key),
            Trail::Key(parent, key) => write!(f, "{parent}.{key}"),
            Trail::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Trail<'_> {
    /// As Go's decoder says it: names only.
    fn names(&self) -> String {
        match self {
            Trail::Root => String::new(),
            Trail::Key(Trail::Root, key) => (*key).to_string(),
            Trail::Key(parent, key) => format!("{}.{key}", parent.names()),
            Trail::Index(parent, _) => parent.names(),
        }
    }
}

struct Node<'a> {
    value: &'a mut Value,
    trail: &'a Trail<'a>,
    /// The struct whose field this is.
    owner: &'static str,
    state: &'a State,
}

impl Node<'_> {
    fn mismatch(&self, wanted: &str) -> DecodeError {
        let found = match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let names = self.trail.names();
        DecodeError(if names.is_empty() {
            format!("json: cannot unmarshal {found} into Go value of type {wanted}")
        } else {
            format!(
                "json: cannot unmarshal {found} into Go struct field {}.{names} of type {wanted}",
                self.owner
            )
        })
    }

    fn quantity(&mut self) -> Result<(), DecodeError> {
        let text = match &self.value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(self.mismatch("resource.Quantity")),
        };
        let quantity: Quantity = text.parse().map_err(DecodeError::custom)?;
        *self.value = Value::String(quantity.to_string());
        Ok(())
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            match self.value.as_i64().and_then(|number| $type::try_from(number).ok()) {
                Some(number) => visitor.$visit(number),
                None => Err(self.mismatch(stringify!($type).replace('i', "int").replace('u', "uint").as_str())),
            }
        }
    )*};
}

macro_rules! as_any {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            self.deserialize_any(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = DecodeError;

    integers! {
        deserialize_i8 visit_i8 i8
        deserialize_i16 visit_i16 i16
        deserialize_i32 visit_i32 i32
        deserialize_i64 visit_i64 i64
        deserialize_u8 visit_u8 u8
        deserialize_u16 visit_u16 u16
        deserialize_u32 visit_u32 u32
        deserialize_u64 visit_u64 u64
    }

    as_any! { deserialize_char deserialize_bytes deserialize_byte_buf deserialize_unit }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &*self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_str(text),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(number), _, _) => visitor.visit_i64(number),
                (_, Some(number), _) => visitor.visit_u64(number),
                (_, _, number) => visitor.visit_f64(number.unwrap_or_default()),
            },
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value.as_bool() {
            Some(value) => visitor.visit_bool(value),
            None => Err(self.mismatch("bool")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value.as_f64() {
            Some(value) => visitor.visit_f64(value),
            None => Err(self.mismatch("float64")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value.as_str() {
            Some(text) => visitor.visit_str(text),
            None => Err(self.mismatch("string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if name == "Quantity" {
            self.quantity()?;
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let wanted = self.mismatch("[]interface {}");
        let Value::Array(items) = self.value else { return Err(wanted) };
        let items = items.iter_mut().enumerate();
        visitor.visit_seq(Items { items, trail: self.trail, owner: self.owner, state: self.state })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let wanted = self.mismatch("map[string]string");
        let Value::Object(map) = self.value else { return Err(wanted) };
        let empty = map.is_empty();
        let mut fields = Fields {
            fields: map.iter_mut(),
            value: None,
            omitted: None,
            trail: self.trail,
            owner: self.owner,
            state: self.state,
        };
        let value = visitor.visit_map(&mut fields)?;
        self.state.omit.set(empty);
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let wanted = self.mismatch(&format!("v1.{name}"));
        let Value::Object(map) = self.value else { return Err(wanted) };
        let mut fields = Fields {
            fields: map.iter_mut(),
            value: None,
            omitted: Some(Vec::new()),
            trail: self.trail,
            owner: name,
            state: self.state,
        };
        let value = visitor.visit_map(&mut fields)?;
        for key in fields.omitted.unwrap_or_default() {
            map.remove(&key);
        }
        self.state.omit.set(false);
        Ok(value)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let mut unknown = self.state.unknown.borrow_mut();
        if unknown.len() < UNKNOWN_MAX {
            unknown.push(self.trail.to_string());
        }
        self.state.omit.set(true);
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_any(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, DecodeError> {
        Err(self.mismatch("no enum of the API"))
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::IterMut<'a, Value>>,
    trail: &'a Trail<'a>,
    owner: &'static str,
    state: &'a State,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        let trail = Trail::Index(self.trail, index);
        let element = seed.deserialize(Node { value, trail: &trail, owner: self.owner, state: self.state });
        self.state.omit.set(false);
        element.map(Some)
    }
}

struct Fields<'a> {
    fields: serde_json::map::IterMut<'a>,
    value: Option<(&'a str, &'a mut Value)>,
    /// For a struct: the keys to remove.
    omitted: Option<Vec<String>>,
    trail: &'a Trail<'a>,
    owner: &'static str,
    state: &'a State,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        let Some((key, value)) = self.fields.next() else { return Ok(None) };
        self.value = Some((key, value));
        seed.deserialize(serde::de::value::StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let (key, value) = self.value.take().expect("a key comes before its value");
        let trail = Trail::Key(self.trail, key);
        let node = Node { value: &mut *value, trail: &trail, owner: self.owner, state: self.state };
        let result = seed.deserialize(node)?;
        let emptied = self.state.omit.take();
        if let Some(omitted) = &mut self.omitted
            && (emptied || omitted_by_go(key, value))
        {
            omitted.push(key.to_string());
        }
        Ok(result)
    }
}

fn omitted_by_go(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value && FALSE_OMITTED.contains(&key),
        Value::Number(number) => number.as_i64() == Some(0) && ZERO_OMITTED.contains(&key),
        Value::String(text) => text.is_empty() && !EMPTY_KEPT.contains(&key),
        Value::Array(items) => items.is_empty(),
        // Whether it is a map or a struct is known to whoever visited it.
        Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Pod, Secret};
    use serde_json::json;

    #[test]
    fn objects_are_read_by_their_own_schema() {
        let check = |mut value: Value, expected: Value, unknown: &[&str]| {
            let found = normalize::<Pod>(&mut value).expect("reads");
            assert_eq!((&value, found), (&expected, unknown.iter().map(ToString::to_string).collect()));
        };
        check(
            json!({"spec": {"containers": [{"name": "c", "imagee": "x", "env": [], "tty": false, "image": null}],
                "nodeSelector": {}, "securityContext": {}}, "spce": {"a": 1}}),
            json!({"spec": {"containers": [{"name": "c"}], "securityContext": {}}}),
            &["spce", "spec.containers[0].imagee"],
        );
        check(
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi", "x": "2"}}}]}}),
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "500m", "memory": "1Gi", "x": "2"}}}]}}),
            &[],
        );
        check(
            json!({"spec": {"containers": [{"ports": [{"containerPort": 80, "hostPort": 0}]}],
                "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0}}),
            json!({"spec": {"containers": [{"ports": [{"containerPort": 80}]}],
                "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0}}),
            &[],
        );
    }

    #[test]
    fn a_wrong_type_is_told_as_go_does() {
        let check = |mut value: Value, expected: &str| {
            assert_eq!(normalize::<Pod>(&mut value).expect_err("refused").to_string(), expected);
        };
        check(
            json!({"spec": {"containers": [{"image": 5}]}}),
            "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
        );
        check(
            json!({"spec": {"containers": [{"ports": [{"containerPort": "http"}]}]}}),
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        );
        check(
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "much"}}}]}}),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        );
        assert!(normalize::<Secret>(&mut json!({"data": {"a": "*"}})).is_err(), "no base64");
    }
}
