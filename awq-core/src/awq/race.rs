//! Candidates that race for the smallest loss. A loss is a sum over parts of the calibration, none of them below zero: a candidate whose
//! sum is above the smallest loss before all parts are in it is out, and its sum is a lower bound of its loss.

/// Parts that are computed side by side before their sum is looked at. Bounds must not depend on the number of threads.
const PARTS_AT_ONCE: usize = 2;
/// A candidate is out with more than this times the smallest loss. Both are by differences, which are mostly within a thousandth of
/// what f32 gives.
const OUT_ABOVE: f64 = 1.002;

/// What is known of a candidate's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Loss {
    /// By differences it is this or more.
    AtLeast(f64),
    /// By differences.
    Nearly(f64),
    /// From outputs in f32.
    InF32(f64),
}

impl Loss {
    pub(super) fn value(self) -> f64 {
        match self {
            Self::AtLeast(loss) | Self::Nearly(loss) | Self::InF32(loss) => loss,
        }
    }

    pub(super) fn is_bound(self) -> bool {
        matches!(self, Self::AtLeast(_))
    }

    pub(super) fn is_in_f32(self) -> bool {
        matches!(self, Self::InF32(_))
    }
}

/// The sums of all candidates, added up in rounds: each round has some of the parts.
pub(super) struct Race {
    sums: Vec<f64>,
    is_out: Vec<bool>,
    /// The candidate that stays in, whatever its sum.
    stays: usize,
    /// Who has yet to run in this round.
    waiting: Vec<usize>,
    is_last_round: bool,
    /// The candidate with the smallest of all whole sums, and that sum.
    best: Option<(usize, f64)>,
}

impl Race {
    /// Of `n` candidates in order of their exponent.
    pub(super) fn new(n: usize, stays: usize) -> Self {
        let (sums, is_out) = (vec![0.0; n], vec![false; n]);
        Self { sums, is_out, stays, waiting: Vec::new(), is_last_round: false, best: None }
    }

    /// All run again. Sums are whole at the end of the last round, and only there is anyone out.
    pub(super) fn start_round(&mut self, is_last: bool) {
        self.waiting = (0..self.sums.len()).collect();
        self.is_last_round = is_last;
    }

    /// Who runs next: who stays, the one in the middle, and then outwards from the best so far. Losses mostly grow with the distance
    /// from the smallest, so that a small one is known soon.
    pub(super) fn next(&mut self) -> Option<usize> {
        let n_run = self.sums.len() - self.waiting.len();
        let from = match (n_run, self.best) {
            (0, _) => self.stays,
            (1, _) | (_, None) => self.sums.len() / 2,
            (_, Some((best, _))) => best,
        };
        let place = (0..self.waiting.len()).min_by_key(|&place| self.waiting[place].abs_diff(from))?;
        Some(self.waiting.remove(place))
    }

    /// Adds up a candidate's squares over the parts of this round. `of_parts` gives those of some, one a part.
    pub(super) fn run<T>(&mut self, idx: usize, parts: &[T], of_parts: impl Fn(&[T]) -> Vec<f64>) {
        let limit = match self.best {
            Some((_, smallest)) if idx != self.stays => OUT_ABOVE * smallest,
            _ => f64::INFINITY,
        };
        let mut n_added = 0;
        for some in parts.chunks(PARTS_AT_ONCE) {
            if self.sums[idx] > limit {
                break;
            }
            of_parts(some).into_iter().for_each(|squares| self.sums[idx] += squares);
            n_added += some.len();
        }
        self.is_out[idx] = n_added < parts.len();
        let is_better = self.best.is_none_or(|(_, smallest)| self.sums[idx] < smallest);
        if self.is_last_round && !self.is_out[idx] && is_better {
            self.best = Some((idx, self.sums[idx]));
        }
    }

    /// Each candidate's mean over `n_values`.
    pub(super) fn losses(self, n_values: usize) -> Vec<Loss> {
        let mean = |(sum, is_out): (f64, bool)| match is_out {
            true => Loss::AtLeast(sum / n_values as f64),
            false => Loss::Nearly(sum / n_values as f64),
        };
        self.sums.into_iter().zip(self.is_out).map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// Runs all candidates, whose squares are given part by part, in rounds of so many parts. Who ran, in order, and what is known.
    fn race(squares: &[Vec<f64>], stays: usize, round: usize) -> (Vec<usize>, Vec<Loss>) {
        let n_parts = squares[0].len();
        let parts: Vec<usize> = (0..n_parts).collect();
        let (mut race, mut ran) = (Race::new(squares.len(), stays), Vec::new());
        for parts in parts.chunks(round) {
            race.start_round(parts.contains(&(n_parts - 1)));
            ran.clear();
            while let Some(idx) = race.next() {
                race.run(idx, parts, |some| some.iter().map(|&part| squares[idx][part]).collect());
                ran.push(idx);
            }
        }
        (ran, race.losses(1))
    }

    #[test]
    fn who_is_far_from_the_best_is_out_after_some_parts() {
        const NEAR: f64 = 1.0 + 1.0 / 1024.0;
        let of = |loss: f64| vec![loss / 8.0; 8];
        let squares: Vec<Vec<f64>> = [8.0, 4.0, 2.0, 1.0, NEAR, 3.0].into_iter().map(of).collect();
        let (ran, losses) = race(&squares, 0, 8);
        assert_eq!(ran, [0, 3, 2, 4, 1, 5]);
        let [first, second, third, best, near, last] = losses[..] else { unreachable!() };
        assert_eq!([first, best, near], [Loss::Nearly(8.0), Loss::Nearly(1.0), Loss::Nearly(NEAR)]);
        // After six parts of eight, four and four.
        assert_eq!([third, second, last], [Loss::AtLeast(1.5), Loss::AtLeast(2.0), Loss::AtLeast(1.5)]);
    }

    proptest! {
        /// The smallest is whole, and so is who stays; bounds are above the smallest and none is above its loss.
        #[test]
        fn the_smallest_is_never_out(
            squares in (1..9_usize).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(0.0..1.0_f64, n), 1..12)),
            stays in any::<prop::sample::Index>(),
            round in 1..9_usize,
        ) {
            let stays = stays.index(squares.len());
            let (mut ran, losses) = race(&squares, stays, round);
            let wholes: Vec<f64> = squares.iter().map(|squares| squares.iter().sum()).collect();
            let smallest = wholes.iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert_eq!(ran[0], stays);
            ran.sort_unstable();
            prop_assert_eq!(ran, (0..squares.len()).collect::<Vec<_>>());
            prop_assert!(!losses[stays].is_bound());
            for (loss, whole) in losses.iter().zip(&wholes) {
                match loss.is_bound() {
                    true => prop_assert!(loss.value() > OUT_ABOVE * smallest && loss.value() <= *whole),
                    false => prop_assert_eq!(loss.value(), *whole),
                }
            }
        }
    }
}
