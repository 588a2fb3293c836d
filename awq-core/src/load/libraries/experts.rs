//! Experts that lie in one tensor, as transformers 5 has them in memory, and HQQ saves them: `experts.gate_up_proj`, `[n, 2 * inner,
//! hidden]`, and `experts.down_proj`, `[n, hidden, inner]`. No library quantizes them; each linear of each expert is read by a name of
//! its own.

use super::{Weight, bad, wrong_type};
use crate::load::safetensors::{RawTensor, SafetensorsCheckpoint};
use crate::load::stored_dtype::float_type;
use crate::load::{LoadError, StoredType, floats};

/// Ends of names, and the linears of an expert that lie there one behind the other.
const PARTS: [(&str, &[&str]); 2] =
    [(".experts.gate_up_proj", &["gate_proj", "up_proj"]), (".experts.down_proj", &["down_proj"])];

/// A damaged number would take memory for each.
pub(super) const MAX_EXPERTS: usize = 4096;

/// The linears of the experts that the tensor `name` holds; none of another tensor.
///
/// # Errors
/// A tensor of such a name that is no float, or has another shape.
pub(super) fn weights(base: &SafetensorsCheckpoint, name: &str) -> Result<Vec<Weight>, LoadError> {
    let Some((experts, parts)) = PARTS.iter().find_map(|(end, parts)| {
        let before = name.strip_suffix(end)?;
        Some((format!("{before}.experts"), *parts))
    }) else {
        return Ok(Vec::new());
    };
    let raw = base.raw(name)?;
    let &[n_experts, n_rows, n_in] = raw.shape else {
        return Err(bad(&raw, name, "expected the matrices of all experts"));
    };
    if n_experts > MAX_EXPERTS {
        return Err(bad(&raw, name, &format!("{n_experts} experts, expected at most {MAX_EXPERTS}")));
    }
    let n_out = n_rows / parts.len();
    if n_out * n_in == 0 || !n_rows.is_multiple_of(parts.len()) {
        return Err(bad(&raw, name, &format!("its rows are no {} matrices of equal size", parts.len())));
    }
    let n = n_experts * parts.len();
    let own = |index: usize| format!("{experts}.{}.{}.weight", index / parts.len(), parts[index % parts.len()]);
    (0..n).map(|index| float_part(&raw, name, own(index), (index, n), [n_out, n_in])).collect()
}

/// The matrix that is one of `n` equal parts of the tensor `name`, under a name of its own.
///
/// # Errors
/// A tensor that is no float.
pub(super) fn float_part(
    raw: &RawTensor<'_>,
    name: &str,
    own: String,
    (index, n): (usize, usize),
    shape: [usize; 2],
) -> Result<Weight, LoadError> {
    let float = float_type(raw.dtype).ok_or_else(|| wrong_type(raw, name, "F32, F16, BF16"))?;
    let (codes, n_bytes) = (name.to_owned(), raw.bytes.len() / n);
    Ok(Weight {
        name: own,
        shape: shape.to_vec(),
        is_of_any_rows: false,
        rounds_inputs: false,
        is_turned: false,
        codes: codes.clone(),
        others: Vec::new(),
        stored_type: StoredType::float(format!("{:?}", raw.dtype), raw.dtype.bitsize()),
        values: Box::new(move |base| Ok(floats::to_f32(float, &base.raw(&codes)?.bytes[index * n_bytes..][..n_bytes]))),
        even: None,
    })
}
