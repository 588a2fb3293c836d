//! [`PythonRandom`]: the draws of Python's `random.Random`, by which lm-eval chooses examples.

/// Words of the generator's state.
const N: usize = 624;
/// How far apart the words lie that are mixed.
const M: usize = 397;

/// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded and read as CPython does.
#[derive(Clone)]
pub(super) struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub(super) fn new(seed: u32) -> Self {
        // `init_by_array` of a key of one word.
        let mut state = initial(19_650_218);
        let mut at = 1;
        for _ in 0..N {
            let before = state[at - 1];
            state[at] = (state[at] ^ (before ^ (before >> 30)).wrapping_mul(1_664_525)).wrapping_add(seed);
            at = following(&mut state, at);
        }
        for _ in 1..N {
            let before = state[at - 1];
            state[at] = (state[at] ^ (before ^ (before >> 30)).wrapping_mul(1_566_083_941)).wrapping_sub(at as u32);
            at = following(&mut state, at);
        }
        state[0] = 0x8000_0000;
        Self { state, next: N }
    }

    /// `sample(range(n), k)`.
    ///
    /// # Panics
    /// If `k` is more than `n`.
    pub(super) fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "{k} of {n} cannot be drawn");
        // Python's choice between two ways, which draw differently.
        let mut set_size = 21;
        if k > 5 {
            set_size += 4_usize.pow(((k * 3) as f64).log(4.0).ceil() as u32);
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            let draw = |drawn| {
                let at = self.below(n - drawn);
                let chosen = pool[at];
                pool[at] = pool[n - drawn - 1];
                chosen
            };
            return (0..k).map(draw).collect();
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(k);
        while chosen.len() < k {
            let one = self.below(n);
            if !chosen.contains(&one) {
                chosen.push(one);
            }
        }
        chosen
    }

    /// A number below `n`, which is 1 or more.
    fn below(&mut self, n: usize) -> usize {
        let n_bits = usize::BITS - n.leading_zeros();
        loop {
            // `getrandbits`: the upper bits of a word.
            let bits = (self.word() >> (32 - n_bits)) as usize;
            if bits < n {
                return bits;
            }
        }
    }

    fn word(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for at in 0..N {
            let joined = (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % N] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[at] = self.state[(at + M) % N] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// `init_genrand`.
fn initial(seed: u32) -> [u32; N] {
    let mut state = [seed; N];
    for at in 1..N {
        let before = state[at - 1];
        state[at] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(at as u32);
    }
    state
}

/// The index behind `at`; behind the last one the first but one, after its last word took the place of the first.
fn following(state: &mut [u32; N], at: usize) -> usize {
    if at + 1 < N {
        return at + 1;
    }
    state[0] = state[N - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::fixtures::fixtures;

    #[test]
    fn draws_are_those_of_python() {
        for case in &fixtures().draws {
            let mut source = PythonRandom::new(1234);
            for expected in &case.draws {
                assert_eq!(&source.sample(case.n, case.k), expected, "{} of {}", case.k, case.n);
            }
        }
    }
}
