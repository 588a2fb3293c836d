//! [`Activation`]: the functions of single values that feed-forward modules have.

/// A function of single values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The Gaussian error linear unit (Hendrycks and Gimpel 2016): `x` times the normal distribution's share below `x`.
    Gelu,
    /// The same by its formula with a hyperbolic tangent of the paper.
    GeluTanh,
}

impl Activation {
    /// Of [`Self::GeluTanh`]: `sqrt(2 / pi)`, the factor of `x + 0.044715 x^3`.
    pub(crate) const GELU_FACTOR: f32 = 0.797_884_6;
    /// Of [`Self::GeluTanh`]: the factor of `x^3`.
    pub(crate) const GELU_CUBE: f32 = 0.044_715;
}
