//! What a method did and found, block by block: written into every record, drawn as the per-block loss curve.

use serde::{Deserialize, Serialize};

/// One decoder block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockLog {
    /// Index of the block.
    pub block_idx: usize,
    /// Mean squared error of the block's output on the calibration sequences, quantized against full precision on the
    /// same input. `None` where the run had no calibration.
    pub output_mse: Option<f64>,
    /// Mean square of the full-precision output: divides `output_mse` into a relative error.
    pub output_mean_square: Option<f64>,
    /// Scale searches, one a scale group.
    pub scale_searches: Vec<ScaleSearchLog>,
    /// One entry a quantized linear.
    pub linears: Vec<LinearLog>,
    /// Wall time of the method on this block.
    pub seconds: f64,
}

/// One scale search (AWQ).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScaleSearchLog {
    /// Linears that share the scale, joined by `+`.
    pub group: String,
    /// The exponent that won.
    pub ratio: f64,
    /// Loss of every candidate in order of its ratio. On a CPU the smallest is f32's and the others are by differences in bf16, mostly within a
    /// thousandth of it; a hundredth was seen.
    pub losses: Vec<f64>,
    /// Which of the losses are lower bounds of what differences would give: a candidate is given up once its sum is 1.002 times the smallest
    /// of another exponent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bounds: Vec<usize>,
    /// Loss without scaling.
    pub loss_before: f64,
    /// Loss of the winner.
    pub loss_after: f64,
}

/// One quantized linear.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinearLog {
    /// Hugging Face name inside the block, e.g. `self_attn.q_proj`.
    pub linear: String,
    /// Mean squared error of the weight itself.
    pub weight_mse: f64,
    /// The rounding step's own objective for this linear, of the weight that it was given, when that is rounded to the
    /// nearest code; `None` where it has none, as plain rounding itself.
    pub loss_before: Option<f64>,
    /// The same of the codes that it chose.
    pub loss_after: Option<f64>,
    /// What a clip search before the rounding step found; `None` where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipLog>,
    /// How scaling changed the steps of this linear's groups; `None` for methods that scale no channel by a fixed factor.
    pub step_change: Option<StepChange>,
    /// Numeric fall-backs, in words: a raised damping, a dead column.
    pub notes: Vec<String>,
}

/// The clip search of one linear (AWQ). Losses are means over rows and tokens of the squared output error, groups taken alone
/// and added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClipLog {
    /// Without clipping.
    pub loss_before: f64,
    /// With the bounds found.
    pub loss_after: f64,
}

/// What a scale on some input channels did to the quantization steps of the groups that hold them (AWQ paper, Table 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepChange {
    /// Groups of the linear.
    pub n_groups: u64,
    /// Groups whose step is another one after scaling.
    pub n_changed: u64,
    /// Mean over all groups of the step after scaling divided by the step before.
    pub mean_ratio: f64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_record_of_before_clip_losses_had_a_field_reads_as_it_was() {
        let old = r#"{"linear":"mlp.up_proj","weight_mse":0.5,"loss_before":2.0,"loss_after":1.0,"step_change":null,"notes":[]}"#;
        let log: LinearLog = serde_json::from_str(old).unwrap();
        assert_eq!((log.loss_after, log.clip), (Some(1.0), None));
        assert_eq!(serde_json::to_string(&log).unwrap(), old);
        let clip = Some(ClipLog { loss_before: 4.0, loss_after: 3.0 });
        let new = LinearLog { clip, ..log };
        assert_eq!(serde_json::from_str::<LinearLog>(&serde_json::to_string(&new).unwrap()).unwrap(), new);
    }

    #[test]
    fn a_search_of_before_candidates_were_given_up_has_no_bounds() {
        let old = r#"{"group":"mlp.down_proj","ratio":0.5,"losses":[3.0,2.0],"loss_before":3.0,"loss_after":2.0}"#;
        let log: ScaleSearchLog = serde_json::from_str(old).unwrap();
        assert_eq!((&log.losses[..], &log.bounds[..]), (&[3.0, 2.0][..], &[][..]));
        assert_eq!(serde_json::to_string(&log).unwrap(), old);
        let new = ScaleSearchLog { bounds: vec![0], ..log };
        assert_eq!(serde_json::from_str::<ScaleSearchLog>(&serde_json::to_string(&new).unwrap()).unwrap(), new);
    }
}
