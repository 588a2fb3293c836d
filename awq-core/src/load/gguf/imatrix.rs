//! llama.cpp's importance matrix as a GGUF file: what `llama-quantize --imatrix` reads.
//!
//! Of each tensor `NAME.in_sum2` [n_matrices, in] has the sums of the squares of its inputs, and `NAME.counts` [n_matrices, 1] over how
//! many tokens; a tensor of experts has as many matrices. Source: `tools/imatrix/imatrix.cpp`, `tools/quantize/quantize.cpp` of b10605.

use super::bytes::{self, ALIGNMENT, Row};
use super::header::Value;
use crate::formats::gguf::GgmlType;

/// What is known of the inputs of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// Its name in the file of the model.
    pub name: String,
    /// Of each matrix: sums of squares, `[in]`, and tokens.
    pub matrices: Vec<(Vec<f64>, usize)>,
}

/// The whole file. `dataset` names the text, of which `n_chunks` of `chunk_size` tokens were seen.
pub fn imatrix_file(tensors: &[Importance], dataset: &str, n_chunks: usize, chunk_size: usize) -> Vec<u8> {
    let metadata = [
        ("general.type", Value::Text("imatrix".into())),
        ("imatrix.datasets", Value::Texts(vec![dataset.into()])),
        ("imatrix.chunk_count", Value::Int(n_chunks as i64)),
        ("imatrix.chunk_size", Value::Int(chunk_size as i64)),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let (mut stored, mut data) = (Vec::new(), Vec::new());
    let mut add = |name: String, shape: [usize; 2], values: Vec<f32>| {
        stored.push((name, shape, data.len() as u64));
        data.extend(values.into_iter().flat_map(f32::to_le_bytes));
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    };
    for Importance { name, matrices } in tensors {
        let sums: Vec<f32> = matrices.iter().flat_map(|(sums, _)| sums.iter().map(|&sum| sum as f32)).collect();
        let counts = matrices.iter().map(|(_, n_tokens)| *n_tokens as f32).collect();
        add(format!("{name}.in_sum2"), [matrices.len(), sums.len() / matrices.len().max(1)], sums);
        add(format!("{name}.counts"), [matrices.len(), 1], counts);
    }
    let rows: Vec<Row<'_>> = stored
        .iter()
        .map(|(name, shape, offset)| Row { name, shape, type_id: GgmlType::F32.id(), offset: *offset })
        .collect();
    [bytes::header(&metadata, &rows), data].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::super::header::{Header, Stored};
    use super::*;

    #[test]
    fn sums_and_counts_stand_under_the_names_of_their_tensors() {
        let tensors = [
            Importance { name: "blk.0.attn_q.weight".into(), matrices: vec![(vec![1.0, 2.5, 3.0], 7)] },
            Importance { name: "blk.0.ffn_up_exps.weight".into(), matrices: vec![(vec![4.0], 2), (vec![0.0], 0)] },
        ];
        let file = imatrix_file(&tensors, "a text", 3, 512);
        let header = Header::parse(&file, Path::new("m.gguf")).unwrap();
        assert_eq!(header.metadata["general.type"], Value::Text("imatrix".into()));
        assert_eq!(header.metadata["imatrix.datasets"], Value::Texts(vec!["a text".into()]));
        assert_eq!(header.metadata["imatrix.chunk_size"], Value::Int(512));
        let values = |name: &str| {
            let info = &header.tensors[name];
            let Stored::Known(GgmlType::F32, range) = &info.stored else { panic!("{name}") };
            let bytes = file[range.clone()].as_chunks::<4>().0;
            (info.shape.clone(), bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>())
        };
        assert_eq!(values("blk.0.attn_q.weight.in_sum2"), (vec![1, 3], vec![1.0, 2.5, 3.0]));
        assert_eq!(values("blk.0.attn_q.weight.counts"), (vec![1, 1], vec![7.0]));
        assert_eq!(values("blk.0.ffn_up_exps.weight.in_sum2"), (vec![2, 1], vec![4.0, 0.0]));
        assert_eq!(values("blk.0.ffn_up_exps.weight.counts"), (vec![2, 1], vec![2.0, 0.0]));
    }
}
