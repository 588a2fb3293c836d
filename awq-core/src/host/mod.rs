//! Single-pass CPU loops behind [`crate::backend::QuantBackend`], over plain row-major f32 slices.
//!
//! `pulp` compiles each loop for AVX-512, AVX2 and the portable baseline and picks at run time. Work is split into chunks
//! whose bounds depend on the shape alone and sums stay inside a chunk, so thread count never changes a bit.

/// Defines functions whose bodies are compiled for every instruction set and dispatched at run time.
///
/// The body becomes a function of its own, called with the arguments by value: a closure would reach them through its
/// environment, and the compiler, unsure whether they overlap, would leave loops scalar (three to ten times slower).
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident<$lt:lifetime>($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name<$lt>($($arg: $ty),*) -> $ret {
            struct Call<$lt>($($ty,)* std::marker::PhantomData<&$lt ()>);
            impl<$lt> pulp::NullaryFnOnce for Call<$lt> {
                type Output = $ret;

                #[inline(always)]
                fn call(self) -> $ret {
                    #[inline(always)]
                    fn body<$lt>($($arg: $ty),*) -> $ret $body
                    let Self($($arg,)* _) = self;
                    body($($arg),*)
                }
            }
            pulp::Arch::new().dispatch(Call($($arg,)* std::marker::PhantomData))
        }
    )*};
}
pub(crate) use vectorized;

pub mod attention;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "storing vectors")]
mod avx512;
pub mod bf16;
pub mod clip;
mod dots;
pub mod elementwise;
pub mod exp;
pub mod gram;
pub mod grid;
pub mod matmul;
pub mod matrix;
pub mod routing;
