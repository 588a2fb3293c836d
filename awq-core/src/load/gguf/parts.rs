//! The files of a model: one, or the parts that `llama-gguf-split` has cut it into, `NAME-00001-of-00003.gguf` and so on. Any of
//! them stands for all: the others are looked for beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::dequant::dequantize;
use super::header::{Header, Stored, TensorInfo, Value};
use crate::formats::gguf::{GgmlType, type_name};
use crate::load::map::MappedFile;
use crate::load::{LoadError, Slices, floats, slices};

/// Memory-mapped files in their order.
pub(super) struct Files(Vec<MappedFile>);

impl Files {
    /// Maps `file` and what belongs to it, with all tensors in the first header.
    ///
    /// # Errors
    /// A part that is missing, belongs to another model, or has a tensor that another has as well.
    pub(super) fn open(file: &Path) -> Result<(Self, Header), LoadError> {
        let (map, header) = opened(file)?;
        let n_parts = match int(&header.metadata, COUNT) {
            None | Some(0 | 1) => return Ok((Self(vec![map]), header)),
            Some(n_parts) => n_parts,
        };
        let names = gguf_parts(file);
        let bad = |file: &Path, key: &str, problem: String| {
            Err(LoadError::BadKey { file: file.to_owned(), key: key.to_owned(), problem })
        };
        if i64::try_from(names.len()) != Ok(n_parts) {
            let problem = format!(
                "this file is one of {n_parts} parts, and its name does not end as theirs do, with -00001-of-{n_parts:05}.gguf; \
                 give all parts the names that they had, or merge them with `llama-gguf-split --merge FIRST-PART WHOLE.gguf`"
            );
            return bad(file, COUNT, problem);
        }
        let mut maps = Vec::new();
        let mut whole: Option<Header> = None;
        for (part, name) in names.iter().enumerate() {
            let n_th = format!("part {} of {n_parts}", part + 1);
            if !name.exists() {
                let problem = format!("{n_th} is missing: {}; put all parts into one folder", name.display());
                return bad(file, COUNT, problem);
            }
            let (map, mut header) = opened(name)?;
            if int(&header.metadata, COUNT) != Some(n_parts)
                || int(&header.metadata, NUMBER) != i64::try_from(part).ok()
            {
                let problem =
                    format!("this is not {n_th}, as its name has it; give it its own name, or download it again");
                return bad(name, NUMBER, problem);
            }
            header.tensors.values_mut().for_each(|info| info.part = part);
            maps.push(map);
            let Some(whole) = &mut whole else {
                whole = Some(header);
                continue;
            };
            for (tensor, info) in header.tensors {
                if whole.tensors.contains_key(&tensor) {
                    let problem = format!("tensor {tensor:?} stands in another part as well; download all parts again");
                    return Err(LoadError::BadHeader { file: name.clone(), problem });
                }
                whole.tensors.insert(tensor, info);
            }
        }
        let whole = whole.unwrap_or(header);
        match int(&whole.metadata, N_TENSORS) {
            Some(n_tensors) if i64::try_from(whole.tensors.len()) != Ok(n_tensors) => {
                let problem =
                    format!("{n_tensors}, but the parts have {} together; download them again", whole.tensors.len());
                bad(file, N_TENSORS, problem)
            }
            _ => Ok((Self(maps), whole)),
        }
    }

    /// The first file.
    pub(super) fn first(&self) -> &Path {
        self.0[0].path()
    }

    /// The file that holds a tensor.
    pub(super) fn of(&self, info: &TensorInfo) -> &Path {
        self.0[info.part].path()
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.0.iter().map(|map| map.bytes().len() as u64).sum()
    }

    /// The bytes of a tensor of a known type; none of another.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub(super) fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>, LoadError> {
        match &info.stored {
            Stored::Known(_, range) => self.0[info.part].read(range.clone()),
            Stored::Unknown(_) => Ok(Vec::new()),
        }
    }

    /// The values of a tensor in slices of `len`, as they are stored.
    ///
    /// # Errors
    /// A type that is not read, or a file that no longer can be, at once or with a slice.
    pub(super) fn slices<'a>(&'a self, name: &str, info: &'a TensorInfo, len: usize) -> Result<Slices<'a>, LoadError> {
        let file = &self.0[info.part];
        match &info.stored {
            Stored::Known(ggml_type, range) if len.is_multiple_of(ggml_type.block_len()) => {
                let ggml_type = *ggml_type;
                if let Some(float) = ggml_type.float() {
                    return Ok(floats::slices(float, file, range.clone(), len));
                }
                let n_bytes = (len / ggml_type.block_len()).saturating_mul(ggml_type.block_bytes());
                let of_slice = move |start: usize| {
                    let bytes = file.read(start..range.end.min(start.saturating_add(n_bytes)))?;
                    Ok(dequantize(ggml_type, &bytes))
                };
                Ok(Box::new(range.clone().step_by(n_bytes).map(of_slice)))
            }
            _ => Ok(slices::in_memory(self.read(name, info)?, &info.shape)),
        }
    }

    /// The values of a tensor, as they are stored.
    ///
    /// # Errors
    /// A type that is not read, or a file that no longer can be.
    pub(super) fn read(&self, name: &str, info: &TensorInfo) -> Result<Vec<f32>, LoadError> {
        match &info.stored {
            Stored::Known(ggml_type, range) => match ggml_type.float() {
                Some(float) => floats::read_f32(float, &self.0[info.part], range.clone()),
                None => Ok(dequantize(*ggml_type, &self.bytes(info)?)),
            },
            Stored::Unknown(type_id) => Err(LoadError::UnsupportedDtype {
                file: self.of(info).to_owned(),
                name: name.to_owned(),
                dtype: type_name(*type_id),
                known: GgmlType::known(),
            }),
        }
    }
}

/// Of this part, counted from 0; and of all.
const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const N_TENSORS: &str = "split.tensors.count";

fn opened(file: &Path) -> Result<(MappedFile, Header), LoadError> {
    let map = MappedFile::open(file)?;
    let header = Header::parse(map.bytes(), file)?;
    Ok((map, header))
}

fn int(metadata: &BTreeMap<String, Value>, key: &str) -> Option<i64> {
    match metadata.get(key) {
        Some(Value::Int(int)) => Some(*int),
        _ => None,
    }
}

/// The files that belong to a GGUF file, by its name alone: all parts where that is the name of a part
/// (`NAME-00002-of-00003.gguf`), else itself.
pub fn gguf_parts(file: &Path) -> Vec<PathBuf> {
    let parts = || {
        let name = file.file_name()?.to_str()?;
        let (start, end) = name.split_at_checked(name.len().checked_sub(".gguf".len())?)?;
        let (start, n_parts) = start.rsplit_once("-of-")?;
        let (start, part) = start.rsplit_once('-')?;
        let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
        if !end.eq_ignore_ascii_case(".gguf") || !is_number(part) || !is_number(n_parts) {
            return None;
        }
        let (part, last): (usize, usize) = (part.parse().ok()?, n_parts.parse().ok()?);
        let named = |part: usize| file.with_file_name(format!("{start}-{part:05}-of-{n_parts}{end}"));
        (1..=last).contains(&part).then(|| (1..=last).map(named).collect())
    };
    parts().unwrap_or_else(|| vec![file.to_owned()])
}
