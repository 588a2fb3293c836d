//! The types that PyTorch stores tensors in, by whichever file format.

use safetensors::Dtype;

use crate::arithmetic::FloatType;

/// The types that can be read, for messages.
pub(super) const READABLE: &str = "F32, F16, BF16";

/// How a stored type is converted; `None` for a type that is not.
pub(super) fn float_type(dtype: Dtype) -> Option<FloatType> {
    match dtype {
        Dtype::F32 => Some(FloatType::F32),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::BF16 => Some(FloatType::Bf16),
        _ => None,
    }
}

/// Whether a type is one of integers or booleans.
pub(super) fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    [BOOL, U8, I8, I16, U16, I32, U32, I64, U64].contains(&dtype)
}
