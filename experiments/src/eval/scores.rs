//! [`Scores`]: what one metric gave on the windows of a text.

use crate::stats::Estimator;

/// One value a scored token, window by window.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The values, in the order of the text.
    pub per_window: Vec<Vec<f32>>,
    /// What samples stand for.
    pub estimator: Estimator,
}

impl Scores {
    /// The mean over the scored tokens of each window.
    pub fn samples(&self) -> Vec<f64> {
        let mean = |values: &Vec<f32>| values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        self.per_window.iter().map(mean).collect()
    }

    /// Tokens scored.
    pub fn n_tokens(&self) -> u64 {
        self.per_window.iter().map(|window| window.len() as u64).sum()
    }

    /// The number that the samples stand for: with windows of one length also that of the mean over tokens.
    pub fn value(&self) -> f64 {
        self.estimator.value(&self.samples())
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
        let values = || self.per_window.iter().flatten().map(|&v| f64::from(v));
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
        let scores = |estimator| Scores { per_window: per_window.clone(), estimator };
        let (mean, perplexity) = (scores(Estimator::Mean), scores(Estimator::ExpOfMean));
        assert_eq!((mean.samples(), mean.n_tokens(), mean.value()), (vec![2.0, 4.0], 4, 3.0));
        // Samples 2 and 4: variance 2, of two windows. Tokens 1, 3, 2, 6: variance 3.5, of three degrees of freedom.
        assert_eq!(mean.window_standard_error(), Some(1.0));
        assert!((mean.token_standard_error() - (3.5_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(perplexity.value(), 3.0_f64.exp());
        assert!((perplexity.window_standard_error().unwrap() / 3.0_f64.exp() - 1.0).abs() < 1e-12);
        let single = Scores { per_window: vec![vec![1.0]], estimator: Estimator::Mean };
        assert_eq!(single.window_standard_error(), None);
    }
}
