//! Candidates that race for the smallest loss. A loss is a sum over parts of the calibration, none of them below zero: a candidate whose
//! sum is above the smallest loss before all parts are in it is out, and its sum is a lower bound of its loss.

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

/// Who races.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Candidates of which one is chosen: the first ones, in order of their exponent.
    pub(super) n_rivals: usize,
    /// Whose loss is wanted whole, whatever it is: a rival, or one more behind them.
    pub(super) stays: usize,
}

/// The sums of all candidates, added up in rounds: each round has some of the parts.
pub(super) struct Race {
    field: Field,
    sums: Vec<f64>,
    /// Parts that are in each sum.
    n_added: Vec<usize>,
    /// Parts of all rounds so far.
    n_parts: usize,
    /// Who has yet to run in this round.
    waiting: Vec<usize>,
    is_last_round: bool,
    /// The rival with the smallest of their whole sums, and that sum.
    best: Option<(usize, f64)>,
}

impl Field {
    /// Rivals and who is none.
    pub(super) fn n_candidates(self) -> usize {
        self.n_rivals.max(self.stays + 1)
    }
}

impl Race {
    pub(super) fn new(field: Field) -> Self {
        let n = field.n_candidates();
        let (sums, n_added) = (vec![0.0; n], vec![0; n]);
        Self { field, sums, n_added, n_parts: 0, waiting: Vec::new(), is_last_round: false, best: None }
    }

    pub(super) fn n_candidates(&self) -> usize {
        self.sums.len()
    }

    /// All run again, over so many parts. Sums are whole at the end of the last round, and only there is anyone out.
    pub(super) fn start_round(&mut self, n_parts: usize, is_last: bool) {
        self.n_parts += n_parts;
        self.waiting = (0..self.sums.len()).collect();
        self.is_last_round = is_last;
    }

    /// Who runs next: who stays, the one in the middle, and then outwards from the best so far. Losses mostly grow with the distance
    /// from the smallest, so that a small one is known soon. Those whose sum is too large already do not run.
    pub(super) fn next(&mut self) -> Option<usize> {
        loop {
            let from = match (self.sums.len() - self.waiting.len(), self.best) {
                (0, _) => self.field.stays,
                (1, _) | (_, None) => self.field.n_rivals / 2,
                (_, Some((best, _))) => best,
            };
            let place = (0..self.waiting.len()).min_by_key(|&place| self.waiting[place].abs_diff(from))?;
            let idx = self.waiting.remove(place);
            if !self.is_out(idx) {
                return Some(idx);
            }
        }
    }

    /// Adds up a candidate's squares over the parts of this round. `of_parts` gives those of some, one a part, and is asked for as many as
    /// there are threads. Sums are looked at part by part, so that bounds do not depend on that.
    pub(super) fn run<T>(&mut self, idx: usize, parts: &[T], of_parts: impl Fn(&[T]) -> Vec<f64>) {
        'parts: for some in parts.chunks(rayon::current_num_threads().max(1)) {
            for squares in of_parts(some) {
                if self.is_out(idx) {
                    break 'parts;
                }
                self.sums[idx] += squares;
                self.n_added[idx] += 1;
            }
        }
        let is_better = self.best.is_none_or(|(_, smallest)| self.sums[idx] < smallest);
        if self.is_last_round && idx < self.field.n_rivals && self.is_whole(idx) && is_better {
            self.best = Some((idx, self.sums[idx]));
        }
    }

    /// Whether a candidate's sum is too large already. Who stays runs before anyone can be out.
    fn is_out(&self, idx: usize) -> bool {
        self.best.is_some_and(|(_, smallest)| self.sums[idx] > OUT_ABOVE * smallest)
    }

    fn is_whole(&self, idx: usize) -> bool {
        self.n_added[idx] == self.n_parts
    }

    /// Each candidate's mean over `n_values`.
    pub(super) fn losses(&self, n_values: usize) -> Vec<Loss> {
        let mean = |idx: usize| match self.is_whole(idx) {
            true => Loss::Nearly(self.sums[idx] / n_values as f64),
            false => Loss::AtLeast(self.sums[idx] / n_values as f64),
        };
        (0..self.sums.len()).map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// Runs all candidates, whose squares are given part by part, in rounds of so many parts. Who ran, in order, and what is known.
    fn race(squares: &[Vec<f64>], field: Field, round: usize, n_threads: usize) -> (Vec<usize>, Vec<Loss>) {
        let n_parts = squares[0].len();
        let parts: Vec<usize> = (0..n_parts).collect();
        let (mut race, mut ran) = (Race::new(field), Vec::new());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| {
            for parts in parts.chunks(round) {
                race.start_round(parts.len(), parts.contains(&(n_parts - 1)));
                ran.clear();
                while let Some(idx) = race.next() {
                    race.run(idx, parts, |some| some.iter().map(|&part| squares[idx][part]).collect());
                    ran.push(idx);
                }
            }
            (ran, race.losses(1))
        })
    }

    const NEAR: f64 = 1.0 + 1.0 / 1024.0;

    fn eight_parts(losses: &[f64]) -> Vec<Vec<f64>> {
        losses.iter().map(|loss| vec![loss / 8.0; 8]).collect()
    }

    #[test]
    fn who_is_far_from_the_best_is_out_after_some_parts() {
        let squares = eight_parts(&[8.0, 4.0, 2.0, 1.0, NEAR, 3.0]);
        for n_threads in [1, 2, 5] {
            let (ran, losses) = race(&squares, Field { n_rivals: 6, stays: 0 }, 8, n_threads);
            assert_eq!(ran, [0, 3, 2, 4, 1, 5]);
            let [first, second, third, best, near, last] = losses[..] else { unreachable!() };
            assert_eq!([first, best, near], [Loss::Nearly(8.0), Loss::Nearly(1.0), Loss::Nearly(NEAR)]);
            // After three parts of eight, five and three.
            assert_eq!([second, third, last], [Loss::AtLeast(1.5), Loss::AtLeast(1.25), Loss::AtLeast(1.125)]);
        }
        // In a round of its own the last part finds them out.
        let (ran, losses) = race(&squares, Field { n_rivals: 6, stays: 0 }, 7, 2);
        assert_eq!(ran, [0, 3, 4]);
        assert_eq!(losses[1], Loss::AtLeast(3.5));
    }

    #[test]
    fn nobody_is_out_beside_what_is_no_number() {
        let squares = [vec![f64::NAN; 3], vec![1.0; 3], vec![2.0; 3], vec![1.0, f64::INFINITY, 0.0]];
        let (_, losses) = race(&squares, Field { n_rivals: 4, stays: 0 }, 3, 1);
        assert_eq!(losses[1..], [Loss::Nearly(3.0), Loss::Nearly(6.0), Loss::Nearly(f64::INFINITY)]);
        assert!(matches!(losses[0], Loss::Nearly(loss) if loss.is_nan()));
    }

    /// One who is no rival, whose loss is the smallest: the others race among themselves.
    #[test]
    fn who_is_no_rival_puts_nobody_out() {
        let (ran, losses) = race(&eight_parts(&[8.0, 2.0, 4.0, 0.5]), Field { n_rivals: 3, stays: 3 }, 8, 2);
        assert_eq!(ran, [3, 1, 0, 2]);
        assert_eq!(losses, [Loss::AtLeast(3.0), Loss::Nearly(2.0), Loss::AtLeast(2.5), Loss::Nearly(0.5)]);
    }

    proptest! {
        /// The smallest of the rivals is whole, and so is who stays; bounds are above the smallest and none is above its loss.
        #[test]
        fn the_smallest_is_never_out(
            squares in (1..9_usize).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(0.0..1.0_f64, n), 2..12)),
            stays in any::<prop::sample::Index>(),
            is_rival in any::<bool>(),
            round in 1..9_usize,
        ) {
            let n = squares.len();
            let field = match is_rival {
                true => Field { n_rivals: n, stays: stays.index(n) },
                false => Field { n_rivals: n - 1, stays: n - 1 },
            };
            let (ran, losses) = race(&squares, field, round, 3);
            let wholes: Vec<f64> = squares.iter().map(|squares| squares.iter().sum()).collect();
            let smallest = wholes[..field.n_rivals].iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert_eq!(ran[0], field.stays);
            prop_assert!(!losses[field.stays].is_bound());
            prop_assert_eq!(&losses, &race(&squares, field, round, 1).1);
            for (loss, whole) in losses.iter().zip(&wholes) {
                match loss.is_bound() {
                    true => prop_assert!(loss.value() > OUT_ABOVE * smallest && loss.value() <= *whole),
                    false => prop_assert_eq!(loss.value(), *whole),
                }
            }
        }
    }
}
