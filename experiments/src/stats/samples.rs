//! [`Samples`]: one value an item of a text, and how much each item weighs.

use std::borrow::Cow;

use super::resample::Bootstrap;
use super::{StatsError, mean};

/// One value an item (a window, a document), in the order of the text. Their mean is `Σ w x / Σ w`: with the number of words of each
/// document as its weight, and nats per word as its value, it is the ratio of all nats to all words.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// The values.
    pub values: &'a [f64],
    /// The weights, all positive; `None` where all items weigh alike.
    pub weights: Option<&'a [f64]>,
}

impl<'a> From<&'a [f64]> for Samples<'a> {
    fn from(values: &'a [f64]) -> Self {
        Self { values, weights: None }
    }
}

impl<'a> From<&'a Vec<f64>> for Samples<'a> {
    fn from(values: &'a Vec<f64>) -> Self {
        Self::from(values.as_slice())
    }
}

impl<'a, const N: usize> From<&'a [f64; N]> for Samples<'a> {
    fn from(values: &'a [f64; N]) -> Self {
        Self::from(values.as_slice())
    }
}

impl<'a> Samples<'a> {
    /// Values and weights; without weights all items weigh alike.
    pub fn new(values: &'a [f64], weights: &'a [f64]) -> Self {
        Self { values, weights: (!weights.is_empty()).then_some(weights) }
    }

    /// Their mean.
    pub fn average(self) -> f64 {
        match self.weights {
            None => mean(self.values),
            Some(weights) => products(self.values, weights).iter().sum::<f64>() / weights.iter().sum::<f64>(),
        }
    }

    /// A series whose plain mean varies as the mean of the samples does, to first order in the deviations: what each item adds to a
    /// ratio is `w (x - mean) / mean(w)`.
    pub(super) fn influence(self) -> Cow<'a, [f64]> {
        match self.weights {
            None => Cow::Borrowed(self.values),
            Some(weights) => {
                let (center, mean_weight) = (self.average(), mean(weights));
                let of_item = |(x, w): (&f64, &f64)| w / mean_weight * (x - center);
                Cow::Owned(self.values.iter().zip(weights).map(of_item).collect())
            }
        }
    }

    /// Means over resampled items.
    pub(super) fn resampled(self, bootstrap: Bootstrap, block_len: f64) -> Vec<f64> {
        match self.weights {
            None => bootstrap.means([self.values], block_len).map(|[mean]| mean).collect(),
            Some(weights) => {
                let weighted = products(self.values, weights);
                bootstrap.means([&weighted, weights], block_len).map(|[sum, weight]| sum / weight).collect()
            }
        }
    }

    /// The means of both over the same resampled items.
    pub(super) fn resampled_pair(self, other: Self, bootstrap: Bootstrap, block_len: f64) -> Vec<[f64; 2]> {
        match self.weights {
            None => bootstrap.means([self.values, other.values], block_len).collect(),
            Some(weights) => {
                let (own, other) = (products(self.values, weights), products(other.values, weights));
                let means = bootstrap.means([&own, &other, weights], block_len);
                means.map(|[own, other, weight]| [own / weight, other / weight]).collect()
            }
        }
    }

    pub(super) fn check(self) -> Result<(), StatsError> {
        if let Some(item) = self.values.iter().position(|value| !value.is_finite()) {
            return Err(StatsError::NotFinite(item));
        }
        if let Some(weights) = self.weights
            && (weights.len() != self.values.len()
                || weights.iter().any(|weight| !(weight.is_finite() && *weight > 0.0)))
        {
            return Err(StatsError::BadWeights);
        }
        if self.values.len() < 2 { Err(StatsError::TooFewWindows(self.values.len())) } else { Ok(()) }
    }

    pub(super) fn check_pair(self, other: Self) -> Result<(), StatsError> {
        if self.values.len() != other.values.len() || self.weights != other.weights {
            return Err(StatsError::Unpaired { a: self.values.len(), b: other.values.len() });
        }
        self.check()?;
        other.check()
    }
}

fn products(values: &[f64], weights: &[f64]) -> Vec<f64> {
    values.iter().zip(weights).map(|(x, w)| x * w).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weighted_mean_is_the_ratio_of_sums() {
        let samples = Samples::new(&[2.0, 5.0], &[3.0, 1.0]);
        assert_eq!(samples.average(), 11.0 / 4.0);
        // Deviations of both sums from the ratio: 3 (2 - 2.75) and 5 - 2.75, over a mean weight of 2.
        assert_eq!(*samples.influence(), [-1.125, 1.125]);
        assert_eq!(Samples::new(&[2.0, 5.0], &[]).average(), 3.5);
    }

    #[test]
    fn weights_are_positive_and_one_an_item() {
        for weights in [&[1.0, 0.0][..], &[1.0, f64::NAN], &[1.0]] {
            assert_eq!(Samples::new(&[1.0, 2.0], weights).check(), Err(StatsError::BadWeights));
        }
        assert_eq!(Samples::new(&[1.0, 2.0], &[0.5, 2.0]).check(), Ok(()));
        let pair = |weights| Samples::new(&[1.0, 2.0], weights).check_pair(Samples::new(&[1.0, 3.0], &[1.0, 2.0]));
        assert_eq!((pair(&[1.0, 2.0]), pair(&[2.0, 1.0])), (Ok(()), Err(StatsError::Unpaired { a: 2, b: 2 })));
    }
}
