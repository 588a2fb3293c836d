//! [`Memory`]: an amount of memory in a file or on the command line.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An amount of memory as SLURM writes it: a number of MiB, or of KiB, MiB, GiB or TiB with `K`, `M`, `G` or `T`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Memory(String);

impl Memory {
    /// As it was written.
    pub fn get(&self) -> &str {
        &self.0
    }

    /// In bytes.
    pub fn bytes(&self) -> f64 {
        bytes(&self.0).unwrap_or(f64::NAN)
    }
}

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match bytes(&text) {
            Some(n) if n > 0.0 => Ok(Self(text)),
            _ => {
                Err(format!("{text:?} is no amount of memory; give a whole number with K, M, G or T, such as \"32G\""))
            }
        }
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.to_owned().try_into()
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        memory.0
    }
}

fn bytes(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let exponent = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "K" => 1,
        "" | "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return None,
    };
    Some(super::whole_number(digits)? * 1024_f64.powi(exponent))
}
/// Digits alone: no sign, no point.
pub(super) fn whole_number(digits: &str) -> Option<f64> {
    let is_number = (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}
