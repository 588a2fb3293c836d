//! [`Scores`]: what one metric gave on the windows of a text.

use anyhow::ensure;

use super::metric::Per;
use super::windows::Items;
use crate::stats::{Estimator, Samples};

/// One value a scored token, item by item: of each window, or of each document.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The values, in the order of the text.
    pub per_item: Vec<Vec<f32>>,
    /// What the values of each item are divided by: tokens, words or bytes of documents. Empty where it is the tokens of windows, which
    /// all have the same.
    pub weights: Vec<f64>,
    /// What samples stand for.
    pub estimator: Estimator,
}

impl Scores {
    /// Of the values of each window.
    ///
    /// # Errors
    /// Words or bytes asked of windows, which have none.
    pub fn of_windows(
        per_window: Vec<Vec<f32>>,
        items: &Items,
        per: Per,
        estimator: Estimator,
    ) -> anyhow::Result<Self> {
        let Items::Documents { n_windows, n_words, n_bytes } = items else {
            ensure!(
                per == Per::Token,
                "windows of a joined text have no words and bytes of their own; use protocol lm-eval"
            );
            return Ok(Self { per_item: per_window, weights: Vec::new(), estimator });
        };
        let mut windows = per_window.into_iter();
        let per_item: Vec<Vec<f32>> = n_windows.iter().map(|&n| windows.by_ref().take(n).flatten().collect()).collect();
        let weights = match per {
            Per::Token => per_item.iter().map(|values| values.len() as f64).collect(),
            Per::Word => n_words.iter().map(|&n| n as f64).collect(),
            Per::Byte => n_bytes.iter().map(|&n| n as f64).collect(),
        };
        Ok(Self { per_item, weights, estimator })
    }

    /// The mean over what each item is divided by.
    pub fn samples(&self) -> Vec<f64> {
        let of_item = |(index, values): (usize, &Vec<f32>)| {
            let divisor = self.weights.get(index).copied().unwrap_or(values.len() as f64);
            values.iter().map(|&v| f64::from(v)).sum::<f64>() / divisor
        };
        self.per_item.iter().enumerate().map(of_item).collect()
    }

    /// Tokens scored.
    pub fn n_tokens(&self) -> u64 {
        self.per_item.iter().map(|item| item.len() as u64).sum()
    }

    /// The number that the samples stand for: with windows of one length also that of the mean over tokens.
    pub fn value(&self) -> f64 {
        self.estimator.value(Samples::new(&self.samples(), &self.weights))
    }

    /// Standard error of the value when windows are taken as independent; `None` for a single window.
    pub fn window_standard_error(&self) -> Option<f64> {
        let samples = self.samples();
        let (n, center) = (samples.len() as f64, samples.iter().sum::<f64>() / samples.len() as f64);
        let variance = samples.iter().map(|sample| (sample - center).powi(2)).sum::<f64>() / (n - 1.0);
        (samples.len() > 1).then(|| self.estimator.slope_at(self.value()) * (variance / n).sqrt())
    }

    /// Standard error of the value when tokens are taken as independent, as llama.cpp prints it.
    pub fn token_standard_error(&self) -> f64 {
        let n = self.n_tokens() as f64;
        let values = || self.per_item.iter().flatten().map(|&v| f64::from(v));
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        (variance / (n - 1.0).max(1.0)).sqrt() * self.estimator.slope_at(self.value())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn two_windows_by_hand() {
        let per_window = vec![vec![1.0, 3.0], vec![2.0, 6.0]];
        let scores = |estimator| Scores { per_item: per_window.clone(), weights: Vec::new(), estimator };
        let (mean, perplexity) = (scores(Estimator::Mean), scores(Estimator::ExpOfMean));
        assert_eq!((mean.samples(), mean.n_tokens(), mean.value()), (vec![2.0, 4.0], 4, 3.0));
        // Samples 2 and 4: variance 2, of two windows. Tokens 1, 3, 2, 6: variance 3.5, of three degrees of freedom.
        assert_eq!(mean.window_standard_error(), Some(1.0));
        assert!((mean.token_standard_error() - (3.5_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(perplexity.value(), 3.0_f64.exp());
        assert!((perplexity.window_standard_error().unwrap() / 3.0_f64.exp() - 1.0).abs() < 1e-12);
        let single = Scores { per_item: vec![vec![1.0]], weights: Vec::new(), estimator: Estimator::Mean };
        assert_eq!(single.window_standard_error(), None);
    }

    #[test]
    fn documents_are_their_windows_together_over_their_words() {
        let items = Items::Documents { n_windows: vec![2, 1], n_words: vec![3, 2], n_bytes: vec![12, 8] };
        let windows = vec![vec![1.0, 2.0], vec![3.0], vec![4.0]];
        let of = |per| Scores::of_windows(windows.clone(), &items, per, Estimator::Mean).unwrap();
        assert_eq!((of(Per::Word).samples(), of(Per::Word).value()), (vec![2.0, 2.0], 2.0));
        assert_eq!((of(Per::Token).samples(), of(Per::Token).value()), (vec![2.0, 4.0], 2.5));
        assert_eq!((of(Per::Byte).value(), of(Per::Byte).n_tokens()), (0.5, 4));
        let refused = Scores::of_windows(windows, &Items::Windows, Per::Byte, Estimator::Mean).unwrap_err();
        assert!(refused.to_string().ends_with("use protocol lm-eval"), "{refused}");
    }
}
