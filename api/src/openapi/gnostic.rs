//! OpenAPI v2 in the protobuf form that kubectl asks for (`com.github.proto-openapi.spec.v2.v1.0+protobuf`).
//!
//! Field numbers are those of gnostic's `OpenAPIv2.proto`. Encodes what [`super::v2`] makes: definitions whole, of the
//! paths the operations with their parameters and kinds. kubectl up to 1.26 validates and explains by it.

use serde_json::{Map, Value};

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: usize) {
        while number >= 0x80 {
            self.0.push(u8::try_from(number & 0x7f).expect("seven bits") | 0x80);
            number >>= 7;
        }
        self.0.push(u8::try_from(number).expect("seven bits"));
    }

    fn bytes(&mut self, field: usize, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// A text, if there is one.
    fn text(&mut self, field: usize, value: &Value) {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: usize, value: &Value) {
        if value == true {
            self.varint(field << 3);
            self.varint(1);
        }
    }

    fn message(&mut self, field: usize, message: &Message) {
        self.bytes(field, &message.0);
    }

    /// `x-…`, whose values are YAML, and so JSON.
    fn extensions(&mut self, field: usize, of: &Value) {
        for (name, value) in entries(of).filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Message::default();
            any.bytes(2, value.to_string().as_bytes());
            self.named(field, name, &any);
        }
    }

    /// An entry of a map.
    fn named(&mut self, field: usize, name: &str, value: &Message) {
        let mut entry = Message::default();
        entry.bytes(1, name.as_bytes());
        entry.message(2, value);
        self.message(field, &entry);
    }
}

fn entries(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of.as_object().into_iter().flat_map(Map::iter)
}

fn items(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

/// Encodes a document that [`super::v2`] made.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    out.message(2, &info);
    let mut paths = Message::default();
    for (path, item) in entries(&document["paths"]) {
        paths.named(2, path, &path_item(item));
    }
    out.message(8, &paths);
    let mut definitions = Message::default();
    for (name, definition) in entries(&document["definitions"]) {
        definitions.named(1, name, &schema(definition));
    }
    out.message(9, &definitions);
    out.0
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(operation) = item.get(method) {
            let mut message = Message::default();
            for parameter in items(&operation["parameters"]) {
                message.message(8, &self::parameter(parameter));
            }
            message.extensions(13, operation);
            out.message(field, &message);
        }
    }
    for parameter in items(&item["parameters"]) {
        out.message(9, &self::parameter(parameter));
    }
    out
}

/// A `ParametersItem`.
fn parameter(of: &Value) -> Message {
    let (mut inner, mut kind) = (Message::default(), Message::default());
    match of["in"].as_str() {
        Some("body") => {
            inner.text(2, &of["name"]);
            inner.text(3, &of["in"]);
            inner.message(5, &schema(&of["schema"]));
            kind.message(1, &inner);
        }
        place => {
            // In the query, 5 says whether the value may be empty, and what follows is one further.
            let (field, number) = if place == Some("path") { (4, 5) } else { (3, 6) };
            inner.flag(1, &of["required"]);
            inner.text(2, &of["in"]);
            inner.text(4, &of["name"]);
            inner.text(number, &of["type"]);
            let mut outer = Message::default();
            outer.message(field, &inner);
            kind.message(2, &outer);
        }
    }
    let mut out = Message::default();
    out.message(1, &kind);
    out
}

fn schema(of: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &of["$ref"]);
    out.text(2, &of["format"]);
    out.text(4, &of["description"]);
    if let Some(default) = of.get("default") {
        let mut any = Message::default();
        any.bytes(2, default.to_string().as_bytes());
        out.message(5, &any);
    }
    for name in items(&of["required"]) {
        out.text(19, name);
    }
    for (field, name) in [(21, "additionalProperties"), (23, "items")] {
        if let Some(below) = of.get(name) {
            let mut item = Message::default();
            item.message(1, &schema(below));
            out.message(field, &item);
        }
    }
    if of.get("type").is_some() {
        let mut item = Message::default();
        item.text(1, &of["type"]);
        out.message(22, &item);
    }
    if of.get("properties").is_some() {
        let mut properties = Message::default();
        for (name, property) in entries(&of["properties"]) {
            properties.named(1, name, &schema(property));
        }
        out.message(25, &properties);
    }
    out.extensions(31, of);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_are_nested_by_number() {
        let document = json!({"swagger": "2.0", "info": {"title": "K", "version": "1"},
            "definitions": {"A": {"type": "object", "required": ["b"], "x-k": "v",
                "properties": {"b": {"type": "array", "items": {"$ref": "#/definitions/A"}}}}}});
        let mut schema = vec![0x9a, 1, 1, b'b', 0xb2, 1, 8, 0x0a, 6];
        schema.extend(b"object");
        let items =
            [&[0xba, 1, 19, 0x0a, 17, 0x0a, 15][..], b"#/definitions/A", &[0xb2, 1, 7, 0x0a, 5], b"array"]
                .concat();
        let property =
            [&[0x0a, 1, b'b', 0x12, u8::try_from(items.len()).expect("short")][..], &items].concat();
        let properties = [&[0x0a, u8::try_from(property.len()).expect("short")][..], &property].concat();
        schema.extend([0xca, 1, u8::try_from(properties.len()).expect("short")]);
        schema.extend(properties);
        schema.extend([&[0xfa, 1, 12, 0x0a, 3][..], b"x-k", &[0x12, 5, 0x12, 3], b"\"v\""].concat());
        let named =
            [&[0x0a, 1, b'A', 0x12, u8::try_from(schema.len()).expect("short")][..], &schema].concat();
        let definitions = [&[0x0a, u8::try_from(named.len()).expect("short")][..], &named].concat();
        let expected = [
            &[0x0a, 3][..],
            b"2.0",
            &[0x12, 6, 0x0a, 1, b'K', 0x12, 1, b'1', 0x42, 0, 0x4a],
            &[u8::try_from(definitions.len()).expect("short")],
            &definitions,
        ]
        .concat();
        assert_eq!(encode(&document), expected);
    }
}
