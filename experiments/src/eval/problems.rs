//! Problems as lm-eval puts them: a prompt that leaves room for what is written. Right values: `generate_until` of the Hugging Face
//! model of lm-eval 0.4.13.

use anyhow::{Context, ensure};
use awq_core::load::Tokenizer;

use super::windows::{Items, Windows};
use crate::config::LmEvalGenerationProtocol;
use crate::tasks::Problem;

impl Windows {
    /// A window for the prompt of each of `problems`, of which nothing is scored.
    ///
    /// # Errors
    /// No problems, a prompt that has no token, or a protocol that leaves none.
    pub fn of_problems(
        problems: &[Problem],
        tokenizer: &Tokenizer,
        protocol: &LmEvalGenerationProtocol,
        max_problems: Option<usize>,
    ) -> anyhow::Result<Self> {
        let n_total = problems.len();
        ensure!(n_total > 0, "the task has no problems");
        let problems = &problems[..max_problems.map_or(n_total, |max| max.min(n_total))];
        let window = |(index, problem): (usize, &Problem)| {
            let ids = tokenizer.encode_with_special(&problem.prompt)?;
            last(ids, protocol.max_len.get().into(), problem.max_new_tokens).with_context(|| format!("problem {index}"))
        };
        let windows: Vec<Vec<u32>> = problems.iter().enumerate().map(window).collect::<anyhow::Result<_>>()?;
        let first_targets = windows.iter().map(Vec::len).collect();
        Ok(Self { windows, n_total, first_targets, items: Items::Problems(problems.to_vec()) })
    }
}

/// The end of a prompt that leaves room for `n_new` tokens: what is too long loses its beginning.
fn last(ids: Vec<u32>, max_len: usize, n_new: usize) -> anyhow::Result<Vec<u32>> {
    ensure!(!ids.is_empty(), "the prompt has no token");
    ensure!(
        max_len > n_new,
        "no token of the prompt is left before {n_new} new ones; raise `max_len`, which is {max_len}"
    );
    Ok(ids[ids.len().saturating_sub(max_len - n_new)..].to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_too_long_loses_its_beginning() {
        let cut = |max_len, n_new| last((0..6).collect(), max_len, n_new);
        assert_eq!(cut(10, 4).unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(cut(10, 7).unwrap(), [3, 4, 5]);
        let error = cut(7, 7).unwrap_err().to_string();
        assert_eq!(error, "no token of the prompt is left before 7 new ones; raise `max_len`, which is 7");
        assert_eq!(last(vec![], 7, 1).unwrap_err().to_string(), "the prompt has no token");
    }
}
