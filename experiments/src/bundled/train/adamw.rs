//! AdamW on plain numbers (Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2).
//!
//! One pass over each tensor instead of a dozen tensor operations, and state that a checkpoint stores as it is.

use std::collections::BTreeMap;

use super::weights::HostTensor;

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.95;
const EPSILON: f32 = 1e-8;

/// Moments of every tensor and the number of steps they have seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AdamW {
    pub(super) n_steps: u32,
    /// First and second moment by tensor name.
    pub(super) moments: BTreeMap<String, [Vec<f32>; 2]>,
}

/// Gradients by tensor name, each in the order of its tensor's values.
pub(super) type Gradients = BTreeMap<String, Vec<f32>>;

/// Scales all gradients together so that their common norm is at most `max_norm`; returns the norm before.
pub(super) fn clip_norm(gradients: &mut Gradients, max_norm: f64) -> f64 {
    let square: f64 = gradients.values().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum();
    let norm = square.sqrt();
    if norm > max_norm {
        let factor = (max_norm / norm) as f32;
        gradients.values_mut().flatten().for_each(|g| *g *= factor);
    }
    norm
}

impl AdamW {
    /// Moves `tensors` one step against `gradients`. Matrices decay towards zero, norms do not.
    pub(super) fn step(
        &mut self,
        tensors: &mut BTreeMap<String, HostTensor>,
        gradients: &Gradients,
        learning_rate: f32,
        weight_decay: f32,
    ) {
        self.n_steps += 1;
        let n = self.n_steps as i32;
        let (unbias_1, unbias_2) = (1.0 / (1.0 - BETA_1.powi(n)), 1.0 / (1.0 - BETA_2.powi(n)));
        for (name, gradient) in gradients {
            let Some(tensor) = tensors.get_mut(name) else {
                continue;
            };
            let decay = if tensor.shape.len() == 1 { 0.0 } else { weight_decay };
            let zeros = || [vec![0.0; gradient.len()], vec![0.0; gradient.len()]];
            let [first, second] = self.moments.entry(name.clone()).or_insert_with(zeros);
            for (((w, g), m), v) in tensor.values.iter_mut().zip(gradient).zip(first).zip(second) {
                *m = BETA_1 * *m + (1.0 - BETA_1) * g;
                *v = BETA_2 * *v + (1.0 - BETA_2) * g * g;
                let direction = *m * unbias_1 / ((*v * unbias_2).sqrt() + EPSILON);
                *w -= learning_rate * (direction + decay * *w);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(values: &[f32], shape: &[usize]) -> BTreeMap<String, HostTensor> {
        BTreeMap::from([("w".to_owned(), HostTensor { shape: shape.to_vec(), values: values.to_vec() })])
    }

    fn gradients(values: &[f32]) -> Gradients {
        BTreeMap::from([("w".to_owned(), values.to_vec())])
    }

    #[track_caller]
    fn check_first_step(shape: &[usize], expected: [f32; 2]) {
        let mut tensors = tensors(&[1.0, -2.0], shape);
        AdamW::default().step(&mut tensors, &gradients(&[0.3, -0.004]), 0.1, 0.5);
        for (value, expected) in tensors["w"].values.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{value} against {expected}");
        }
    }

    // The first unbiased step has length 1 in each coordinate whatever the gradient's size: w - 0.1 (sign g + decay w).
    #[test]
    fn first_step_is_the_sign_and_decays_matrices() {
        check_first_step(&[1, 2], [1.0 - 0.1 * 1.5, -2.0 + 0.1 * 2.0]);
    }

    #[test]
    fn norms_do_not_decay() {
        check_first_step(&[2], [0.9, -1.9]);
    }

    #[test]
    fn long_gradients_are_shortened_to_the_norm_and_short_ones_kept() {
        let mut long = gradients(&[3.0, 4.0]);
        assert_eq!(clip_norm(&mut long, 1.0), 5.0);
        assert!((long["w"][0] - 0.6).abs() < 1e-6 && (long["w"][1] - 0.8).abs() < 1e-6);
        let mut short = gradients(&[0.3, 0.4]);
        clip_norm(&mut short, 1.0);
        assert_eq!(short, gradients(&[0.3, 0.4]));
    }
}
