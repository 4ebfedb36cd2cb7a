//! protobuf's wire format: numbered fields, each a number or bytes.
//!
//! Borrows from the body and allocates nothing. Groups, which Kubernetes has none of, are refused.

use super::ProtobufError;

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Payload<'a> {
    fn wire(&self) -> u8 {
        match self {
            Payload::Varint(_) => 0,
            Payload::Fixed64(_) => 1,
            Payload::Bytes(_) => 2,
            Payload::Fixed32 => 5,
        }
    }

    fn wrong(&self, field: &'static str) -> ProtobufError {
        ProtobufError::WireType { wire: self.wire(), field }
    }

    pub(super) fn bytes(&self, field: &'static str) -> Result<&'a [u8], ProtobufError> {
        match self {
            Payload::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong(field)),
        }
    }

    pub(super) fn text(&self, field: &'static str) -> Result<&'a str, ProtobufError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| ProtobufError::Utf8(field))
    }

    pub(super) fn varint(&self, field: &'static str) -> Result<u64, ProtobufError> {
        match self {
            Payload::Varint(number) => Ok(*number),
            _ => Err(self.wrong(field)),
        }
    }

    pub(super) fn int64(&self, field: &'static str) -> Result<i64, ProtobufError> {
        self.varint(field).map(u64::cast_signed)
    }

    pub(super) fn double(&self, field: &'static str) -> Result<f64, ProtobufError> {
        match self {
            Payload::Fixed64(bits) => Ok(f64::from_bits(*bits)),
            _ => Err(self.wrong(field)),
        }
    }
}

/// The fields of a message, in their order. Ends at the first error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Fields<'a> {
        Fields { rest: bytes }
    }

    fn field(&mut self) -> Result<(u32, Payload<'a>), ProtobufError> {
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Varint)?;
        if number == 0 {
            return Err(ProtobufError::IllegalTag);
        }
        let payload = match tag & 7 {
            0 => Payload::Varint(varint(&mut self.rest)?),
            1 => {
                let (bits, rest) = self.rest.split_first_chunk().ok_or(ProtobufError::Truncated)?;
                self.rest = rest;
                Payload::Fixed64(u64::from_le_bytes(*bits))
            }
            2 => {
                let length = varint(&mut self.rest)?;
                let length = usize::try_from(length).map_err(|_| ProtobufError::Truncated)?;
                let (bytes, rest) = self.rest.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
                self.rest = rest;
                Payload::Bytes(bytes)
            }
            5 => {
                self.rest = self.rest.get(4..).ok_or(ProtobufError::Truncated)?;
                Payload::Fixed32
            }
            wire => return Err(ProtobufError::IllegalWireType(u8::try_from(wire).unwrap_or(7))),
        };
        Ok((number, payload))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Payload<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The numbers of a packed list. Ends at the first error.
pub(super) fn packed(mut bytes: &[u8]) -> impl Iterator<Item = Result<u64, ProtobufError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let number = varint(&mut bytes);
        if number.is_err() {
            bytes = &[];
        }
        Some(number)
    })
}

fn varint(bytes: &mut &[u8]) -> Result<u64, ProtobufError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(ProtobufError::Truncated)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(ProtobufError::Varint)
}
