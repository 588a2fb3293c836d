//! Facts as text for the terminal.

use super::linears::{GridFacts, LinearRow};
use super::memory::Stage;
use super::model::{ModelFacts, PackedFacts, Shapes, TokenizerFacts};
use super::parameters::StoredAs;
use super::records::RecordsFacts;
use super::sheet::{Align, Sheet, bytes};
use super::unreadable::UnreadableFacts;
use crate::report::tables::grouped;

/// Where a table of linears has their grids.
const GRID_COLUMN: usize = 4;

impl ModelFacts {
    pub(super) fn text(&self) -> String {
        let mut sheet = Sheet::titled(&format!("{}: {}, {}", self.name, self.files, bytes(self.bytes_on_disk)));
        let family = self.family.map_or_else(String::new, |family| format!(" ({family})"));
        sheet.entry("architecture", [format!("{}{family}", self.architecture)]);
        sheet.entry("shapes", self.shapes.lines());
        sheet.table("parameters", &self.parameter_rows(), &[Align::Right, Align::Left]);
        sheet.table("stored as", &self.stored_rows(), &[Align::Left, Align::Right, Align::Right, Align::Right]);
        if let Some(packed) = &self.packed {
            sheet.gap();
            sheet.entry("quantized", packed.lines());
        }
        if self.quantized_by.is_some() {
            sheet.gap();
            sheet.entry("quantized by", &self.quantized_by);
        }
        sheet.gap();
        self.quantization.show(&mut sheet, self.packed.as_ref().map(|packed| packed.bits_per_weight));
        sheet.gap();
        sheet.entry("memory", ["about, on a CPU; buffers of kernels are not counted"]);
        let row = |stage: &Stage| vec![stage.work.clone(), bytes(stage.bytes), stage.holds.clone()];
        let rows: Vec<Vec<String>> = self.memory.iter().map(row).collect();
        sheet.table("", &rows, &[Align::Left, Align::Right, Align::Left]);
        sheet.gap();
        sheet.entry("tokenizer", self.tokenizer.lines());
        sheet.entry("chat template", [if self.has_chat_template { "yes" } else { "no" }]);
        sheet.entry("notes", &self.notes);
        sheet.entry("unsupported", &self.unsupported);
        sheet.finish()
    }

    fn parameter_rows(&self) -> Vec<Vec<String>> {
        let parameters = self.parameters;
        let head = if self.shapes.has_tied_head { "head: the embedding again" } else { "head" };
        let rows = [
            (parameters.total, "all"),
            (parameters.quantized, "linears that methods quantize"),
            (parameters.embedding, "embedding"),
            (parameters.head, head),
            (parameters.other, "norms, biases and the rest"),
        ];
        rows.map(|(n, what)| vec![grouped(n), what.to_owned()]).to_vec()
    }

    fn stored_rows(&self) -> Vec<Vec<String>> {
        let row = |stored: &StoredAs| {
            let bits = stored.bits_per_value.map_or_else(String::new, |bits| format!("{bits:.2} bits each"));
            vec![
                stored.name.clone(),
                format!("{} tensors", grouped(stored.n_tensors as u64)),
                format!("{} values", grouped(stored.n_values)),
                bits,
            ]
        };
        self.stored.iter().map(row).collect()
    }
}

impl Shapes {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{} blocks of {} channels, {} inside the feed-forward module",
                self.n_blocks,
                grouped(self.hidden_size as u64),
                grouped(self.intermediate_size as u64)
            ),
            format!("{} heads of {} channels, {} of keys and values", self.n_heads, self.head_dim, self.n_kv_heads),
            format!("vocabulary {}, context {}", grouped(self.vocab_size as u64), grouped(self.context as u64)),
        ];
        if self.n_experts > 0 {
            let active = self.n_active_experts.map_or_else(String::new, |n| format!(", {n} for each token"));
            lines.push(format!("{} experts a block{active}", self.n_experts));
        }
        lines
    }
}

impl PackedFacts {
    fn lines(&self) -> Vec<String> {
        let calibration = match &self.calibration {
            Some(calibration) => format!("calibrated on {calibration}"),
            None => "without calibration".to_owned(),
        };
        vec![
            format!("{} {}", self.method, self.grids),
            format!("settings {}", self.settings),
            calibration,
            format!("by commit {}", self.commit),
            format!("codes {}", self.codes_sha256),
        ]
    }
}

impl GridFacts {
    /// `bits`: what a packed folder says of itself.
    fn show(&self, sheet: &mut Sheet, packed: Option<f64>) {
        let heading = ["linear", "out", "in", "how many", "grid", "groups a row"].map(str::to_owned).to_vec();
        let mut rows: Vec<Vec<String>> =
            std::iter::once(heading).chain(self.linears.iter().map(LinearRow::cells)).collect();
        let mut align = vec![Align::Left, Align::Right, Align::Right, Align::Right, Align::Left, Align::Left];
        // The grid stands at the left where it is that of all.
        if self.linears.iter().all(|row| row.grid.as_ref() == Some(&self.grid)) {
            rows.iter_mut().for_each(|row| drop(row.remove(GRID_COLUMN)));
            align.remove(GRID_COLUMN);
        }
        sheet.table(&self.grid, &rows, &align);
        let bits = packed.unwrap_or(self.bits_per_weight);
        let packed_bytes = match packed {
            Some(_) => String::new(),
            None => format!(", about {} packed on disk", bytes(self.packed_bytes)),
        };
        sheet.entry("", [format!("{bits:.3} bits a weight with scales and zero points{packed_bytes}")]);
        sheet.entry("AWQ scales", &self.scale_groups);
        if !self.unscaled.is_empty() {
            sheet.entry("", [format!("none for {}", self.unscaled.join(", "))]);
        }
    }
}

impl LinearRow {
    fn cells(&self) -> Vec<String> {
        let groups = match self.ragged {
            None if self.grid.is_none() => "-".to_owned(),
            None => self.n_groups.to_string(),
            Some(last) if self.n_groups == 1 => format!("1, ragged: {last} weights"),
            Some(last) => format!("{}, ragged: the last has {last} weights", self.n_groups),
        };
        let [n_out, n_in] = self.shape;
        let grid = self.grid.clone().unwrap_or_else(|| "FP".to_owned());
        vec![self.name.clone(), n_out.to_string(), n_in.to_string(), self.count.to_string(), grid, groups]
    }
}

impl TokenizerFacts {
    fn lines(&self) -> Vec<String> {
        let named = |name: &str, token: &Option<String>| match token {
            Some(token) => format!("{name} {token:?}"),
            None => format!("no {name}"),
        };
        let adds = match (self.adds_bos, self.adds_suffix) {
            (true, true) => "puts BOS before a text and tokens after it",
            (true, false) => "puts BOS before a text",
            (false, true) => "puts tokens after a text",
            (false, false) => "puts nothing around a text",
        };
        vec![
            format!("{}, {} tokens, {} of them special", self.kind, grouped(self.vocab_size as u64), self.n_special),
            format!("{}, {}; {adds}", named("BOS", &self.bos), named("EOS", &self.eos)),
        ]
    }
}

impl UnreadableFacts {
    pub(super) fn text(&self) -> String {
        let mut sheet = Sheet::titled(&format!("{}: does not open", self.name));
        sheet.entry("architecture", &self.architecture);
        sheet.entry("model_type", &self.model_type);
        sheet.entry("quantized by", &self.quantized_by);
        sheet.entry("unsupported", [&self.error]);
        sheet.finish()
    }
}

impl RecordsFacts {
    pub(super) fn text(&self) -> String {
        let mut sheet = Sheet::titled(&format!("{}: results of an experiment", self.name));
        sheet.entry("question", &self.question);
        let asked = self.n_asked.map(|n| format!("{n} asked, "));
        let others = (self.n_others > 0).then(|| format!(", {} on record that are not asked for", self.n_others));
        let cells = format!("{} finished, {} failed", self.n_finished, self.failed.len());
        sheet.entry("cells", [asked.unwrap_or_default() + &cells + &others.unwrap_or_default()]);
        sheet.entry("models", [self.models.join(", ")].iter().filter(|it| !it.is_empty()));
        sheet.entry("methods", [self.methods.join(", ")].iter().filter(|it| !it.is_empty()));
        sheet.entry("measured", &self.measured);
        sheet.entry("commits", &self.commits);
        sheet.entry("devices", [self.devices.join(", ")].iter().filter(|it| !it.is_empty()));
        sheet.entry("made", self.unix_times.map(|(first, last)| format!("{} to {}", minute(first), minute(last))));
        sheet.entry(
            "failed",
            self.failed.iter().map(|failed| format!("{}, {}: {}", failed.cell, failed.stage, failed.error)),
        );
        sheet.entry("notes", &self.notes);
        sheet.finish()
    }
}

/// `2026-01-31 14:05 UTC`.
fn minute(unix_time: u64) -> String {
    let time = i64::try_from(unix_time).ok().and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0));
    time.map_or_else(|| "at an unknown time".to_owned(), |time| time.format("%Y-%m-%d %H:%M UTC").to_string())
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
