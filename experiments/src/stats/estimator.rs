//! [`Estimator`]: which number a series of samples stands for.

use super::Samples;

/// How a number follows from samples, one an item (a window of a text), in the order of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimator {
    /// `exp` of their mean: a perplexity, of mean negative log-likelihoods in nats.
    ExpOfMean,
    /// Their mean.
    Mean,
}

impl Estimator {
    /// The number that `samples` stand for.
    pub fn value<'a>(self, samples: impl Into<Samples<'a>>) -> f64 {
        self.of_mean(samples.into().average())
    }

    /// The number of samples of this mean.
    pub fn of_mean(self, mean: f64) -> f64 {
        match self {
            Self::ExpOfMean => mean.exp(),
            Self::Mean => mean,
        }
    }

    /// The mean of samples that stand for `value`: inverse of [`Self::of_mean`].
    pub fn mean_of(self, value: f64) -> f64 {
        match self {
            Self::ExpOfMean => value.ln(),
            Self::Mean => value,
        }
    }

    /// By how much `value` grows with the mean, for the delta method.
    pub fn slope_at(self, value: f64) -> f64 {
        match self {
            Self::ExpOfMean => value,
            Self::Mean => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let samples = [1.0, 2.0, 6.0];
        assert_eq!(Estimator::Mean.value(&samples), 3.0);
        assert_eq!(Estimator::ExpOfMean.value(&samples), 3.0_f64.exp());
    }

    #[test]
    fn slopes_are_derivatives_and_means_come_back() {
        for estimator in [Estimator::ExpOfMean, Estimator::Mean] {
            let (mean, step) = (1.3, 1e-6);
            let value = estimator.of_mean(mean);
            let derivative = (estimator.of_mean(mean + step) - estimator.of_mean(mean - step)) / (2.0 * step);
            assert!((estimator.slope_at(value) - derivative).abs() < 1e-6, "{estimator:?}");
            assert!((estimator.mean_of(value) - mean).abs() < 1e-12, "{estimator:?}");
        }
    }
}
