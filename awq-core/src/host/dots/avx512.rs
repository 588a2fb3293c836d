//! Four rows of a matrix and four of activations at a time, so that what is loaded is used four times.

use std::arch::x86_64::*;

use super::{ROWS, W_ROWS};
use crate::host::avx512::transposed;
use crate::host::elementwise::LANES;

/// Weights from which a single row of activations is multiplied so: several rows of weights come faster from memory than one, but not from the
/// first-level cache, where weights are that are widened a few at a time.
const ALONE_FROM: usize = 1 << 13;

/// Computes what `dot_products` says, and says so; not where single rows are faster, nor on a CPU without AVX-512.
pub(super) fn dot_products(w: &[f32], x: &[f32], n_in: usize, out: &mut [f32]) -> bool {
    let n = x.len() / n_in;
    let are_few = w.len() < ALONE_FROM.max(2 * n_in);
    if (n == 1 && are_few) || !is_x86_feature_detected!("avx512f") {
        return false;
    }
    for (w, out) in w.chunks(W_ROWS * n_in).zip(out.chunks_mut(W_ROWS * n)) {
        for (tile, x) in x.chunks(ROWS * n_in).enumerate() {
            let n_rows = x.len() / n_in;
            // SAFETY: AVX-512 was found above.
            let products = unsafe {
                match n_rows {
                    1 => tile_of::<1>(w, x, n_in),
                    2 => tile_of::<2>(w, x, n_in),
                    _ => tile_of::<ROWS>(w, x, n_in),
                }
            };
            for (out, products) in out.chunks_exact_mut(n).zip(&products) {
                out[tile * ROWS..][..n_rows].copy_from_slice(&products[..n_rows]);
            }
        }
    }
    true
}

/// Products of up to four rows of `w` with up to `N` of `x`; the last rows stand for those that are missing.
#[target_feature(enable = "avx512f")]
fn tile_of<const N: usize>(w: &[f32], x: &[f32], n_in: usize) -> [[f32; ROWS]; W_ROWS] {
    let (mut w_rows, mut x_rows) = ([&w[..0]; W_ROWS], [&x[..0]; N]);
    for row in 0..W_ROWS {
        w_rows[row] = &w[row.min(w.len() / n_in - 1) * n_in..][..n_in];
    }
    for row in 0..N {
        x_rows[row] = &x[row.min(x.len() / n_in - 1) * n_in..][..n_in];
    }
    let mut sums = [[_mm512_setzero_ps(); N]; W_ROWS];
    for start in (0..n_in / LANES * LANES).step_by(LANES) {
        let mut x = [_mm512_setzero_ps(); N];
        for row in 0..N {
            x[row] = load(x_rows[row], start);
        }
        for w_row in 0..W_ROWS {
            let w = load(w_rows[w_row], start);
            for row in 0..N {
                // Two roundings, as where each row is multiplied by itself.
                sums[w_row][row] = _mm512_add_ps(sums[w_row][row], _mm512_mul_ps(w, x[row]));
            }
        }
    }
    // Sums of lanes in their order, those of all products side by side.
    let mut by_product = [_mm512_setzero_si512(); LANES];
    for w_row in 0..W_ROWS {
        for row in 0..N {
            by_product[w_row * ROWS + row] = _mm512_castps_si512(sums[w_row][row]);
        }
    }
    let (by_lane, mut total) = (transposed(by_product), _mm512_setzero_ps());
    for lane in 0..LANES {
        total = _mm512_add_ps(total, _mm512_castsi512_ps(by_lane[lane]));
    }
    let mut products = [[0.0_f32; ROWS]; W_ROWS];
    // SAFETY: there are 16 products.
    unsafe { _mm512_storeu_ps(products.as_mut_ptr().cast(), total) };
    for w_row in 0..W_ROWS {
        for row in 0..N {
            let mut rest = 0.0;
            for input in n_in / LANES * LANES..n_in {
                rest += w_rows[w_row][input] * x_rows[row][input];
            }
            products[w_row][row] += rest;
        }
    }
    products
}

/// 16 values from `start` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32], start: usize) -> __m512 {
    let values = &values[start..][..LANES];
    // SAFETY: there are 16 values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}
