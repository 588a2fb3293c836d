//! The names that a pickle of plain tensors uses; any other is refused.

use safetensors::Dtype;

/// The names that a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    /// Arguments: storage, offset, shape, strides, `requires_grad`, hooks, and metadata that need not be there.
    RebuildTensor,
    /// The same with the type of an untyped storage after the hooks.
    RebuildTypedTensor,
    /// Arguments: tensor, `requires_grad`, hooks.
    RebuildParameter,
    /// The class of a storage; without a type, its size is in bytes.
    Storage(Option<Dtype>),
    Dtype(Dtype),
}

impl Global {
    /// `None` for any other name.
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTypedTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch.storage", "UntypedStorage") => Self::Storage(None),
            ("torch", name) => match name.strip_suffix("Storage") {
                Some(class) => Self::Storage(Some(STORAGES.iter().find(|(known, _)| *known == class)?.1)),
                None => Self::Dtype(DTYPES.iter().find(|(known, _)| *known == name)?.1),
            },
            _ => return None,
        })
    }
}

/// Classes of storages, without the `Storage` that all end in.
const STORAGES: [(&str, Dtype); 10] = [
    ("Float", Dtype::F32),
    ("Half", Dtype::F16),
    ("BFloat16", Dtype::BF16),
    ("Double", Dtype::F64),
    ("Long", Dtype::I64),
    ("Int", Dtype::I32),
    ("Short", Dtype::I16),
    ("Char", Dtype::I8),
    ("Byte", Dtype::U8),
    ("Bool", Dtype::BOOL),
];

/// Types that have no storage class of their own.
const DTYPES: [(&str, Dtype); 6] = [
    ("uint16", Dtype::U16),
    ("uint32", Dtype::U32),
    ("uint64", Dtype::U64),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
    ("float8_e8m0fnu", Dtype::F8_E8M0),
];
