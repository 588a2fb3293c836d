//! The header of a GGUF file as bytes (version 3, little-endian): what `header.rs` parses.

use super::header::Value;

/// Tensor data starts, and each tensor in it, at multiples of this.
pub(super) const ALIGNMENT: usize = 32;

/// A tensor of the table.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    /// Row-major.
    pub(super) shape: &'a [usize],
    pub(super) type_id: u32,
    /// From the start of the tensor data.
    pub(super) offset: u64,
}

/// The header, up to where tensor data starts.
pub(super) fn header(metadata: &[(String, Value)], tensors: &[Row<'_>]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut bytes, key);
        put(&mut bytes, value);
    }
    for Row { name, shape, type_id, offset } in tensors {
        text(&mut bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&dim| bytes.extend((dim as u64).to_le_bytes()));
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A value with its type, in the types of llama.cpp's converter: integers are unsigned, those of lists signed, of 32 bits.
fn put(bytes: &mut Vec<u8>, value: &Value) {
    const ARRAY: u32 = 9;
    let (id, encoded): (u32, Vec<u8>) = match value {
        Value::Int(int) => match u32::try_from(*int) {
            Ok(int) => (4, int.to_le_bytes().to_vec()),
            Err(_) => (11, int.to_le_bytes().to_vec()),
        },
        Value::Float(float) => (6, (*float as f32).to_le_bytes().to_vec()),
        Value::Bool(bool) => (7, vec![(*bool).into()]),
        Value::Text(one) => {
            let mut encoded = Vec::new();
            text(&mut encoded, one);
            (8, encoded)
        }
        Value::Ints(ints) => (ARRAY, array(5, ints, |bytes, int| bytes.extend((*int as i32).to_le_bytes()))),
        Value::Floats(floats) => (ARRAY, array(6, floats, |bytes, float| bytes.extend(float.to_le_bytes()))),
        Value::Bools(bools) => (ARRAY, array(7, bools, |bytes, bool| bytes.push((*bool).into()))),
        Value::Texts(texts) => (ARRAY, array(8, texts, |bytes, one| text(bytes, one))),
    };
    bytes.extend(id.to_le_bytes());
    bytes.extend(encoded);
}

fn array<T>(element_type: u32, values: &[T], put: impl Fn(&mut Vec<u8>, &T)) -> Vec<u8> {
    let mut bytes = element_type.to_le_bytes().to_vec();
    bytes.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| put(&mut bytes, value));
    bytes
}
