//! [`Scores`]: what one metric gave on the windows of a text.

use anyhow::{bail, ensure};
use sha2::{Digest, Sha256};

use super::metric::{Answers, OfItem, Per, Written};
use super::windows::Items;
use crate::stats::{Estimator, Samples, quantile};

/// What a metric gave, item by item: of each window, document, question or problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// One value a scored token, in the order of the text; empty of problems.
    pub per_item: Vec<Vec<f32>>,
    /// What the values of each item come to.
    pub samples: Vec<f64>,
    /// What samples weigh: the tokens, words or bytes of documents. Empty where all weigh alike.
    pub weights: Vec<f64>,
    /// What samples stand for.
    pub estimator: Estimator,
    /// Tokens scored, or written.
    pub n_tokens: u64,
}

/// What a model wrote on the problems of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writings {
    /// The texts on each problem, each before the first stop.
    pub texts: Vec<Vec<String>>,
    /// Which of them make programs that run to their end; empty of a problem whose texts make none.
    pub passes: Vec<Vec<bool>>,
    /// Tokens written, over all texts.
    pub n_tokens: u64,
}

impl Writings {
    /// See [`crate::record::Measurement::written`]. A text is hashed behind its length.
    pub fn digests(&self) -> Vec<String> {
        let digest = |texts: &Vec<String>| {
            let mut hasher = Sha256::new();
            for text in texts {
                hasher.update((text.len() as u64).to_le_bytes());
                hasher.update(text);
            }
            hasher.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
        };
        self.texts.iter().map(digest).collect()
    }
}

impl Scores {
    /// Of the values of each window.
    ///
    /// # Errors
    /// A metric of other items than these: words or bytes of windows, or answers to what is no question.
    pub fn of_windows(
        per_window: Vec<Vec<f32>>,
        items: &Items,
        of_item: OfItem,
        estimator: Estimator,
    ) -> anyhow::Result<Self> {
        let per_item = joined(per_window, items);
        let n_tokens = || per_item.iter().map(|values| values.len() as f64).collect::<Vec<f64>>();
        let as_numbers = |counts: &[usize]| counts.iter().map(|&n| n as f64).collect::<Vec<f64>>();
        let over = |divisors: &[f64]| per_item.iter().zip(divisors).map(|(values, n)| sum(values) / n).collect();
        let (samples, weights): (Vec<f64>, Vec<f64>) = match (items, of_item) {
            (Items::Windows, OfItem::Sum(Per::Token)) => (over(&n_tokens()), Vec::new()),
            (Items::Documents { n_words, n_bytes, .. }, OfItem::Sum(per)) => {
                let weights = match per {
                    Per::Token => n_tokens(),
                    Per::Word => as_numbers(n_words),
                    Per::Byte => as_numbers(n_bytes),
                };
                (over(&weights), weights)
            }
            (Items::Questions { n_chars, targets }, OfItem::Question(of_answers)) => {
                let mut answers = per_item.iter().map(|values| sum(values));
                let of_question = |(n_chars, &target): (&Vec<usize>, &usize)| {
                    let sums: Vec<f64> = answers.by_ref().take(n_chars.len()).collect();
                    of_answers(&Answers { sums: &sums, n_chars, target })
                };
                (n_chars.iter().zip(targets).map(of_question).collect(), Vec::new())
            }
            (Items::Windows, OfItem::Quantile(share)) => (quantile::samples(&per_item, share), Vec::new()),
            (Items::Documents { .. }, OfItem::Quantile(share)) => (quantile::samples(&per_item, share), n_tokens()),
            (Items::Windows | Items::Documents { .. }, OfItem::Largest) => {
                let largest = |values: &Vec<f32>| values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                (per_item.iter().map(|values| f64::from(largest(values))).collect(), Vec::new())
            }
            (Items::Windows, OfItem::Sum(_)) => {
                bail!("windows of a joined text have no words and bytes of their own; use protocol lm-eval")
            }
            (Items::Windows | Items::Documents { .. }, OfItem::Question(_)) => {
                bail!("this metric is of the questions of a task; use protocol lm-eval-task")
            }
            (Items::Questions { .. }, OfItem::Sum(_) | OfItem::Quantile(_) | OfItem::Largest) => {
                bail!("this metric is of a text, not of the questions of a task")
            }
            (_, OfItem::Written { .. }) | (Items::Problems(_), _) => {
                bail!("metrics of texts, and no others, are of the problems of a task; use protocol lm-eval-generation")
            }
        };
        let n_tokens = per_item.iter().map(|item| item.len() as u64).sum::<u64>();
        Ok(Self { per_item, samples, weights, estimator, n_tokens })
    }

    /// Of what was written on each problem.
    ///
    /// # Errors
    /// A metric of other items than problems, or one that takes more texts than there are.
    pub fn of_writings(
        writings: &Writings,
        items: &Items,
        of_item: OfItem,
        estimator: Estimator,
    ) -> anyhow::Result<Self> {
        let (Items::Problems(problems), OfItem::Written { n_texts, of }) = (items, of_item) else {
            bail!("metrics of texts, and no others, are of the problems of a task; use protocol lm-eval-generation")
        };
        let Writings { texts, passes, n_tokens } = writings;
        let mut samples = Vec::with_capacity(problems.len());
        for ((problem, texts), passes) in problems.iter().zip(texts).zip(passes) {
            ensure!(
                texts.len() >= n_texts,
                "this metric takes {n_texts} texts on a problem, and there are {}",
                texts.len()
            );
            samples.push(of(&Written { texts, judge: &problem.judge, passes }));
        }
        Ok(Self { per_item: Vec::new(), samples, weights: Vec::new(), estimator, n_tokens: *n_tokens })
    }

    /// The number that the samples stand for: with windows of one length also that of the mean over tokens.
    pub fn value(&self) -> f64 {
        self.estimator.value(Samples::new(&self.samples, &self.weights))
    }

    /// Standard error of the value when windows are taken as independent; `None` for a single window.
    pub fn window_standard_error(&self) -> Option<f64> {
        let samples = &self.samples;
        let (n, center) = (samples.len() as f64, samples.iter().sum::<f64>() / samples.len() as f64);
        let variance = samples.iter().map(|sample| (sample - center).powi(2)).sum::<f64>() / (n - 1.0);
        (samples.len() > 1).then(|| self.estimator.slope_at(self.value()) * (variance / n).sqrt())
    }

    /// Standard error of the value when tokens are taken as independent, as llama.cpp prints it.
    pub fn token_standard_error(&self) -> f64 {
        let n = self.n_tokens as f64;
        let values = || self.per_item.iter().flatten().map(|&v| f64::from(v));
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        (variance / (n - 1.0).max(1.0)).sqrt() * self.estimator.slope_at(self.value())
    }
}

/// The values of each document together; those of each answer stay apart.
fn joined(per_window: Vec<Vec<f32>>, items: &Items) -> Vec<Vec<f32>> {
    match items {
        Items::Windows | Items::Questions { .. } | Items::Problems(_) => per_window,
        Items::Documents { n_windows, .. } => {
            let mut windows = per_window.into_iter();
            n_windows.iter().map(|&n| windows.by_ref().take(n).flatten().collect()).collect()
        }
    }
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::eval::accuracy::Accuracy;
    use crate::eval::greedy_accuracy::GreedyAccuracy;
    use crate::eval::metric::Metric;
    use crate::eval::normalized_accuracy::NormalizedAccuracy;
    use crate::eval::target_perplexity::TargetPerplexity;

    #[test]
    fn two_windows_by_hand() {
        let per_window = vec![vec![1.0, 3.0], vec![2.0, 6.0]];
        let token = OfItem::Sum(Per::Token);
        let scores = |estimator| Scores::of_windows(per_window.clone(), &Items::Windows, token, estimator).unwrap();
        let (mean, perplexity) = (scores(Estimator::Mean), scores(Estimator::ExpOfMean));
        assert_eq!((mean.samples.clone(), mean.n_tokens, mean.value()), (vec![2.0, 4.0], 4, 3.0));
        // Samples 2 and 4: variance 2, of two windows. Tokens 1, 3, 2, 6: variance 3.5, of three degrees of freedom.
        assert_eq!(mean.window_standard_error(), Some(1.0));
        assert!((mean.token_standard_error() - (3.5_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(perplexity.value(), 3.0_f64.exp());
        assert!((perplexity.window_standard_error().unwrap() / 3.0_f64.exp() - 1.0).abs() < 1e-12);
        let single = Scores::of_windows(vec![vec![1.0]], &Items::Windows, token, Estimator::Mean).unwrap();
        assert_eq!(single.window_standard_error(), None);
    }

    #[test]
    fn documents_are_their_windows_together_over_their_words() {
        let items = Items::Documents { n_windows: vec![2, 1], n_words: vec![3, 2], n_bytes: vec![12, 8] };
        let windows = vec![vec![1.0, 2.0], vec![3.0], vec![4.0]];
        let of = |per| Scores::of_windows(windows.clone(), &items, OfItem::Sum(per), Estimator::Mean).unwrap();
        assert_eq!((of(Per::Word).samples.clone(), of(Per::Word).value()), (vec![2.0, 2.0], 2.0));
        assert_eq!((of(Per::Token).samples.clone(), of(Per::Token).value()), (vec![2.0, 4.0], 2.5));
        assert_eq!((of(Per::Byte).value(), of(Per::Byte).n_tokens), (0.5, 4));
        let refused =
            Scores::of_windows(windows, &Items::Windows, OfItem::Sum(Per::Byte), Estimator::Mean).unwrap_err();
        assert!(refused.to_string().ends_with("use protocol lm-eval"), "{refused}");
    }

    #[test]
    fn texts_have_digests() {
        let of = |texts: &[&[&str]]| {
            let texts = texts.iter().map(|texts| texts.iter().map(|&text| text.to_owned()).collect()).collect();
            Writings { texts, passes: vec![], n_tokens: 0 }.digests()
        };
        // sha256 of 1, 0, 0, 0, 0, 0, 0, 0 and `a`.
        assert_eq!(of(&[&["a"]]), ["ae6121c8"]);
        let digests = of(&[&["ab", "c"], &["a", "bc"], &["abc"], &["ab", "c"]]);
        assert!(digests[0] == digests[3] && digests[0] != digests[1] && digests[1] != digests[2], "{digests:?}");
    }

    #[test]
    fn questions_are_decided_between_their_answers() {
        // Losses 3 and 4 of the first question, 2, 2 and 5 of the second.
        let windows = vec![vec![1.0, 2.0], vec![4.0], vec![2.0], vec![1.0, 1.0], vec![5.0]];
        let items = |targets: [usize; 2]| Items::Questions {
            n_chars: vec![vec![1, 4], vec![1, 2, 9]],
            targets: targets.into(),
        };
        let of = |metric: &dyn Metric, targets| {
            let scores =
                Scores::of_windows(windows.clone(), &items(targets), metric.of_item(), metric.quantity().estimator);
            scores.unwrap()
        };
        // Of the two that are equal the first counts.
        assert_eq!(of(&Accuracy, [0, 0]).samples, [1.0, 1.0]);
        assert_eq!(of(&Accuracy, [1, 1]).samples, [0.0, 0.0]);
        // A character: 3 and 1; 2, 1 and 5/9.
        assert_eq!(of(&NormalizedAccuracy, [1, 2]).samples, [1.0, 1.0]);
        assert_eq!(of(&NormalizedAccuracy, [0, 1]).value(), 0.0);
        let right = of(&TargetPerplexity, [0, 1]);
        assert_eq!((right.samples.clone(), right.value(), right.n_tokens), (vec![3.0, 2.0], 2.5_f64.exp(), 7));
        assert_eq!(of(&GreedyAccuracy, [0, 1]).samples, [0.0, 0.0]);
        let refused =
            Scores::of_windows(windows, &items([0, 0]), OfItem::Sum(Per::Token), Estimator::Mean).unwrap_err();
        assert!(refused.to_string().contains("of a text"), "{refused}");
    }
}
