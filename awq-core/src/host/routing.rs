//! Which experts a token goes through, and with what weights.

/// The tokens that one expert gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Share {
    /// Row indices, ascending.
    pub tokens: Vec<usize>,
    /// The weight of the expert's output for each of them.
    pub weights: Vec<f32>,
}

/// Which logits a softmax makes weights of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// Those of the experts that a token goes through: its weights add up to 1.
    OfActive,
    /// All of them: the weights of the experts that a token goes through are what they are.
    OfAll,
}

/// What each of `n_experts` gets where a token goes through the `n_active` experts of its largest logits, with a softmax of
/// logits as weights. Of equal logits the earlier expert's counts as larger. `logits: [n_tokens, n_experts]`.
pub fn route(logits: &[f32], n_experts: usize, n_active: usize, weighting: Weighting) -> Vec<Share> {
    let mut shares = vec![Share::default(); n_experts];
    let mut ranked: Vec<usize> = Vec::with_capacity(n_experts);
    for (token, logits) in logits.chunks_exact(n_experts).enumerate() {
        ranked.clear();
        ranked.extend(0..n_experts);
        // A stable sort: ties stay in the order of the experts.
        ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let active = &ranked[..n_active];
        let exponentials: Vec<f32> = active.iter().map(|&expert| (logits[expert] - logits[active[0]]).exp()).collect();
        let total: f32 = match weighting {
            Weighting::OfActive => exponentials.iter().sum(),
            Weighting::OfAll => ranked.iter().map(|&expert| (logits[expert] - logits[active[0]]).exp()).sum(),
        };
        for (&expert, exponential) in active.iter().zip(exponentials) {
            shares[expert].tokens.push(token);
            shares[expert].weights.push(exponential / total);
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_through_its_largest_experts_with_weights_that_add_up() {
        let ln = f32::ln;
        let shares = route(&[ln(1.0), ln(3.0), ln(2.0), ln(6.0), ln(1.0), ln(2.0)], 3, 2, Weighting::OfActive);
        let tokens: Vec<&[usize]> = shares.iter().map(|share| share.tokens.as_slice()).collect();
        assert_eq!(tokens, [&[1][..], &[0], &[0, 1]]);
        for (share, expected) in shares.iter().zip([&[0.75_f32][..], &[0.6], &[0.4, 0.25]]) {
            assert!(share.weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{share:?}");
        }
    }

    #[test]
    fn weights_may_be_shares_of_all_experts() {
        let ln = f32::ln;
        let shares = route(&[ln(1.0), ln(3.0), ln(6.0)], 3, 2, Weighting::OfAll);
        assert!(shares[0].tokens.is_empty());
        for (share, expected) in shares[1..].iter().zip([0.3, 0.6]) {
            assert!((share.weights[0] - expected).abs() < 1e-6, "{share:?}");
        }
    }

    #[test]
    fn of_equal_logits_the_earlier_expert_is_taken() {
        let shares = route(&[0.0; 4], 4, 2, Weighting::OfActive);
        let n_tokens: Vec<usize> = shares.iter().map(|share| share.tokens.len()).collect();
        assert_eq!(n_tokens, [1, 1, 0, 0]);
    }
}
