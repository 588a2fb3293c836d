//! [`Estimator`]: which number a series of samples stands for.

use super::{Samples, StatsError};

/// How a number follows from samples, one an item (a window of a text), in the order of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimator {
    /// `exp` of their mean: a perplexity, of mean negative log-likelihoods in nats.
    ExpOfMean,
    /// Their mean.
    Mean,
    /// The root of their mean: of squares.
    RootOfMean,
    /// The largest of them. It has no interval: resampled texts hold the largest sample or they do not.
    Largest,
}

impl Estimator {
    /// The number that `samples` stand for.
    pub fn value<'a>(self, samples: impl Into<Samples<'a>>) -> f64 {
        let samples = samples.into();
        match self {
            Self::ExpOfMean | Self::Mean | Self::RootOfMean => self.of_mean(samples.average()),
            Self::Largest => samples.values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// Whether there is an interval at all.
    pub(super) fn check(self) -> Result<(), StatsError> {
        if self == Self::Largest { Err(StatsError::NoInterval) } else { Ok(()) }
    }

    /// The number of samples of this mean.
    pub fn of_mean(self, mean: f64) -> f64 {
        match self {
            Self::ExpOfMean => mean.exp(),
            Self::Mean | Self::Largest => mean,
            Self::RootOfMean => mean.max(0.0).sqrt(),
        }
    }

    /// The mean of samples that stand for `value`: inverse of [`Self::of_mean`].
    pub fn mean_of(self, value: f64) -> f64 {
        match self {
            Self::ExpOfMean => value.ln(),
            Self::Mean | Self::Largest => value,
            Self::RootOfMean => value * value,
        }
    }

    /// By how much `value` grows with the mean, for the delta method.
    pub fn slope_at(self, value: f64) -> f64 {
        match self {
            Self::ExpOfMean => value,
            Self::Mean | Self::Largest => 1.0,
            // Squares are all 0 where their mean is: nothing varies.
            Self::RootOfMean if value == 0.0 => 0.0,
            Self::RootOfMean => 0.5 / value,
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
        assert_eq!(Estimator::RootOfMean.value(&samples), 3.0_f64.sqrt());
        assert_eq!(Estimator::Largest.value(&samples), 6.0);
        assert_eq!((Estimator::RootOfMean.value(&[0.0, 0.0]), Estimator::RootOfMean.slope_at(0.0)), (0.0, 0.0));
    }

    #[test]
    fn slopes_are_derivatives_and_means_come_back() {
        for estimator in [Estimator::ExpOfMean, Estimator::Mean, Estimator::RootOfMean] {
            let (mean, step) = (1.3, 1e-6);
            let value = estimator.of_mean(mean);
            let derivative = (estimator.of_mean(mean + step) - estimator.of_mean(mean - step)) / (2.0 * step);
            assert!((estimator.slope_at(value) - derivative).abs() < 1e-6, "{estimator:?}");
            assert!((estimator.mean_of(value) - mean).abs() < 1e-12, "{estimator:?}");
        }
    }
}
