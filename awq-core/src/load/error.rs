//! What can be wrong with a checkpoint, each message with the file, the place in it and the remedy.

use std::path::PathBuf;

/// Why a model could not be read. Every variant names the file; messages end with what to do next.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened or mapped into memory.
    #[error("cannot open {}; check the path and its permissions, or download the file again", .file.display())]
    Open {
        /// The file or folder that was asked for.
        file: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The file was opened and cannot be read to its end.
    #[error("cannot read {}, which may have changed since it was opened; download it again", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Hidden states that cannot be put aside in a temporary file, or read back.
    #[error(
        "{}: hidden states that do not fit in memory cannot be kept here; free space, or give the run more memory", .folder.display()
    )]
    HiddenStates {
        /// The folder of the file.
        folder: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The path is neither a folder with a `config.json` nor a `.gguf` file.
    #[error(
        "{}: not a model; expected a folder with config.json, tokenizer.json and model.safetensors, or a file ending in .gguf",
        .path.display()
    )]
    UnknownFormat {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The path holds something else than a model.
    #[error("{}: {problem}", .path.display())]
    NotAModel {
        /// The folder or file.
        path: PathBuf,
        /// What it is, and the remedy.
        problem: String,
    },
    /// The model was quantized by another tool.
    #[error(
        "{}: already quantized by {method}; such checkpoints are not read: give the model that it was made from",
        .file.display()
    )]
    QuantizedByOthers {
        /// The file that says so.
        file: PathBuf,
        /// Method, settings and tool, as far as the file tells.
        method: String,
    },
    /// A text file in another encoding than UTF-8.
    #[error("{}: the text is {encoding}, expected UTF-8; convert it", .file.display())]
    Encoding {
        /// The file.
        file: PathBuf,
        /// What its first bytes say.
        encoding: &'static str,
    },
    /// The file ends before its own header says it should.
    #[error("{}: truncated: at least {expected} bytes are needed, the file has {found}; download it again", .file.display())]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes that the part read so far calls for (a lower bound).
        expected: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// The file may be whole, but PyTorch has pickled something else in it than plain tensors.
    #[error(
        "{}: {problem}; convert it to safetensors: python -c \"import transformers as t; \
         t.AutoModelForCausalLM.from_pretrained('{}').save_pretrained('converted')\"",
        .file.display(), .file.parent().unwrap_or(.file).display()
    )]
    Pickled {
        /// The file.
        file: PathBuf,
        /// What it holds, with the name or tensor it concerns.
        problem: String,
    },
    /// The header contradicts the format.
    #[error("{}: bad header: {problem}; download the file again, or convert the model again", .file.display())]
    BadHeader {
        /// The file.
        file: PathBuf,
        /// The contradiction, with the key or tensor it concerns.
        problem: String,
    },
    /// A JSON file does not parse.
    #[error("{}: not valid JSON; download it again", .file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The shard index names a file that is not there.
    #[error(
        "{}: shard {shard:?}, which holds {tensor:?}, is not in the folder; download the missing shard",
        .file.display()
    )]
    MissingShard {
        /// The index file.
        file: PathBuf,
        /// The shard's file name as the index gives it.
        shard: String,
        /// One tensor that the index places in it.
        tensor: String,
    },
    /// The checkpoint has no tensor of this name.
    #[error(
        "{}: no tensor named {name:?} (nearest: {}); check that the checkpoint belongs to this architecture, or download it again",
        .file.display(), .nearest.join(", ")
    )]
    MissingTensor {
        /// The file that was to hold the tensor.
        file: PathBuf,
        /// The Hugging Face name.
        name: String,
        /// Up to three names that the checkpoint does have.
        nearest: Vec<String>,
    },
    /// The checkpoint has a tensor that no known layer reads.
    #[error(
        "{}: tensor {name:?} belongs to no known layer of architecture {architecture:?}; use a plain decoder checkpoint (no experts, no adapters)",
        .file.display()
    )]
    UnknownTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name as it stands in the file.
        name: String,
        /// The architecture that the file declares.
        architecture: String,
    },
    /// The checkpoint has weights that nothing would read: it is another model than its configuration says.
    #[error(
        "{}: {n_tensors} tensor(s) would not be read as {architecture}: {}{}; the model computes something else with them: check \
         `architectures` and the number of blocks in its configuration, or choose another checkpoint",
        .file.display(), .names.join(", "), if *n_tensors > .names.len() { ", ..." } else { "" }
    )]
    UnreadTensors {
        /// The file.
        file: PathBuf,
        /// Up to three of them, by their Hugging Face names.
        names: Vec<String>,
        /// All of them.
        n_tensors: usize,
        /// The architecture that the configuration declares.
        architecture: String,
    },
    /// Several tensors have one fault.
    #[error("{first} ({n_more} more tensor(s) {fault})")]
    Several {
        /// What is wrong with the first.
        first: Box<LoadError>,
        /// The others.
        n_more: usize,
        /// Their fault, as the end of a sentence.
        fault: &'static str,
    },
    /// A token whose row of the embedding is not finite.
    #[error(
        "{}: row {id} of {name:?} holds NaN or infinity, and a text has the token of that id; download the file again, or choose \
         another checkpoint",
        .file.display()
    )]
    NonFiniteRow {
        /// The file.
        file: PathBuf,
        /// The embedding's tensor.
        name: String,
        /// The token's id.
        id: u32,
    },
    /// A tensor's shape differs from what the configuration implies.
    #[error(
        "{}: tensor {name:?} has shape {found:?}, expected {expected:?}; check that configuration and weights belong to the same model",
        .file.display()
    )]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// The Hugging Face name.
        name: String,
        /// Row-major, `[out, in]`.
        expected: Vec<usize>,
        /// Row-major, `[out, in]`.
        found: Vec<usize>,
    },
    /// The tensor is stored in a type that this loader does not convert.
    #[error("{}: tensor {name:?} is stored as {dtype}, expected one of {known}; convert the checkpoint to one of these", .file.display())]
    UnsupportedDtype {
        /// The file.
        file: PathBuf,
        /// The Hugging Face name.
        name: String,
        /// The stored type.
        dtype: String,
        /// The types that can be read.
        known: String,
    },
    /// A weight is NaN or infinite.
    #[error(
        "{}: checkpoint holds NaN or infinity in tensor {name:?} at element {index}; download the file again, or choose another checkpoint",
        .file.display()
    )]
    NonFinite {
        /// The file.
        file: PathBuf,
        /// The Hugging Face name.
        name: String,
        /// Flat row-major index of the first such element.
        index: usize,
    },
    /// The file declares an architecture that the loader cannot map.
    #[error("{}: unknown architecture {architecture:?}, expected one of {}; use a model of a known family", .file.display(), .known.join(", "))]
    UnknownArchitecture {
        /// The file.
        file: PathBuf,
        /// The architecture as the file spells it.
        architecture: String,
        /// The spellings that are known.
        known: Vec<String>,
    },
    /// A required key is absent.
    #[error("{}: key {key:?} is missing; add it, or download the file again", .file.display())]
    MissingKey {
        /// The file.
        file: PathBuf,
        /// The key, with its parents.
        key: String,
    },
    /// A key has a value of the wrong type or one that the loader cannot honour.
    #[error("{}: key {key:?}: {problem}", .file.display())]
    BadKey {
        /// The file.
        file: PathBuf,
        /// The key, with its parents.
        key: String,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// The tokenizer cannot be built, or it refused a text.
    #[error("{}: tokenizer: {problem}; download the tokenizer again, or convert the model again", .file.display())]
    Tokenizer {
        /// The file that describes the tokenizer.
        file: PathBuf,
        /// What the tokenizer library or the loader objects to.
        problem: String,
    },
    /// The tokenizer can emit ids that the embedding does not have.
    #[error(
        "{}: the tokenizer has {tokenizer} tokens but the model's vocabulary has {model}; use the tokenizer that came with this model",
        .file.display()
    )]
    VocabularyMismatch {
        /// The file that describes the tokenizer.
        file: PathBuf,
        /// Highest token id + 1.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
}

/// The up to three of `names` with the smallest edit distance to `wanted`, nearest first.
pub(super) fn nearest_names<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut ranked: Vec<(usize, &str)> = names.map(|name| (edit_distance(wanted, name), name)).collect();
    ranked.sort_unstable();
    ranked.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, byte_a) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, byte_b) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(byte_a != byte_b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_matches_hand_counts() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }

    #[test]
    fn nearest_names_puts_the_typo_first() {
        let names = ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"];
        let nearest = nearest_names("model.norms.weight", names.into_iter());
        assert_eq!(nearest[0], "model.norm.weight");
        assert_eq!(nearest.len(), 3);
    }

    #[test]
    fn messages_name_file_place_and_remedy() {
        let error = LoadError::NonFinite { file: "m.gguf".into(), name: "lm_head.weight".into(), index: 7 };
        assert_eq!(
            error.to_string(),
            "m.gguf: checkpoint holds NaN or infinity in tensor \"lm_head.weight\" at element 7; \
             download the file again, or choose another checkpoint"
        );
    }
}
