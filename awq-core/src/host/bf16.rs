//! The matrix product of linears with bf16 inputs and f32 sums: twice the arithmetic of f32 on CPUs that have the
//! instruction (AVX-512 BF16), the same numbers up to the order of addition on those that have not.
//!
//! Inputs are rounded half to even to 8 bits of mantissa. Products of two such numbers are exact in f32.

use rayon::prelude::*;

use super::matmul::matmul_transposed;

/// Rows of `x` whose products one task computes: the bf16 copy of what is multiplied at a time stays in the second-level cache.
const ROWS_PER_TASK: usize = 96;

/// A `[n, k]` matrix rounded to bf16, in the order in which this CPU multiplies with it.
pub enum Bf16Matrix {
    /// For the CPU's own instruction.
    #[cfg(target_arch = "x86_64")]
    Panels(Panels),
    /// Where it has none: the rounded values as f32, row-major.
    Rows {
        /// `[n, k]`.
        values: Vec<f32>,
        /// Values of a row.
        k: usize,
    },
}

impl Bf16Matrix {
    /// Of row-major `[n, k]`.
    pub fn new(w: &[f32], k: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(panels) = Panels::pack(w, k) {
            return Self::Panels(panels);
        }
        Self::Rows { values: rounded(w), k }
    }

    /// `x w^T` for row-major `x: [m, k]`, rounded to bf16; returns `[m, n]` in f32.
    pub fn matmul(&self, x: &[f32]) -> Vec<f32> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Panels(panels) => panels.matmul(x),
            Self::Rows { values, k } => matmul_transposed(&rounded(x), values, *k),
        }
    }

    /// Rows.
    pub fn n(&self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Panels(panels) => panels.n(),
            Self::Rows { values, k } => values.len() / k,
        }
    }
}

impl std::fmt::Debug for Bf16Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bf16Matrix of {} rows", self.n())
    }
}

/// `x w^T` for row-major `x: [m, k]` and `w: [n, k]`, both rounded to bf16; returns `[m, n]` in f32.
pub fn matmul_transposed_bf16(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    Bf16Matrix::new(w, k).matmul(x)
}

/// Values rounded to bf16, as f32.
fn rounded(values: &[f32]) -> Vec<f32> {
    values.par_iter().with_min_len(1 << 12).map(|&v| f32::from_bits(bf16_bits(v) << 16)).collect()
}

/// The upper half of the bits of a finite `v`, rounded half to even.
#[inline(always)]
fn bf16_bits(v: f32) -> u32 {
    let bits = v.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
}

#[cfg(target_arch = "x86_64")]
pub use avx512::Panels;

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vector instructions beyond the baseline are unsafe to call until their presence is known"
)]
mod avx512 {
    use std::arch::x86_64::*;

    use rayon::prelude::*;

    use super::ROWS_PER_TASK;

    /// Rows of a tile of the result in registers: 6 of 4 vectors leave 8 of the 32 registers for the inputs.
    const ROWS: usize = 6;
    const VECTORS: usize = 4;
    const COLS: usize = 16 * VECTORS;

    /// One vector of pairs of a panel.
    #[derive(Clone, Copy)]
    #[repr(C, align(64))]
    struct Line([u32; 16]);

    /// Values that become one vector of pairs.
    const PACKED: usize = 32;

    /// Pairs of inputs that are multiplied at a time, sums going to memory between: a panel's share of 128 KiB stays in the second-level
    /// cache while all rows of a task are multiplied with it. No bit depends on it.
    const PAIRS: usize = 512;

    /// A `[n, k]` weight rounded to bf16, in the order in which products read it: for 64 rows of the weight at a time,
    /// pairs of neighbouring inputs, `[k / 2][VECTORS]` lines.
    pub struct Panels {
        lines: Vec<Line>,
        n: usize,
        k: usize,
    }

    impl Panels {
        /// Packs a weight; `None` where the CPU lacks AVX-512 F, BW or BF16.
        pub fn pack(w: &[f32], k: usize) -> Option<Self> {
            let available = is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512f");
            if !available {
                return None;
            }
            let (n, pairs) = (w.len() / k, k.div_ceil(2));
            let mut lines = vec![Line([0; 16]); n.div_ceil(COLS) * pairs * VECTORS];
            lines.par_chunks_mut(pairs * VECTORS).zip(w.par_chunks(COLS * k)).for_each(|(panel, rows)| {
                // SAFETY: all three instruction sets were found on this CPU.
                unsafe { pack_panel(panel, rows, k) };
            });
            Some(Self { lines, n, k })
        }

        /// Rows of the weight.
        pub fn n(&self) -> usize {
            self.n
        }

        /// Bytes of the packed weight.
        pub fn bytes(&self) -> usize {
            size_of_val(self.lines.as_slice())
        }

        /// `x w^T` for `x: [m, k]`, rounded to bf16; returns `[m, n]` in f32.
        pub fn matmul(&self, x: &[f32]) -> Vec<f32> {
            let (m, n, k, pairs) = (x.len() / self.k, self.n, self.k, self.k.div_ceil(2));
            let mut rows = vec![0_u32; m * pairs];
            rows.par_chunks_mut(pairs).zip(x.par_chunks(k)).with_min_len(16).for_each(|(packed, row)| {
                // SAFETY: a weight is packed only where all three instruction sets are.
                unsafe { pack_row(packed, row) };
            });
            let mut out = vec![0.0_f32; m * n];
            let panels = || self.lines.chunks_exact(pairs * VECTORS).zip((0..n).step_by(COLS));
            if m > ROWS_PER_TASK {
                let tasks = out.par_chunks_mut(ROWS_PER_TASK * n).zip(rows.par_chunks(ROWS_PER_TASK * pairs));
                tasks.for_each(|(out, rows)| {
                    for start in (0..pairs).step_by(PAIRS) {
                        for (panel, first) in panels() {
                            multiply(&mut out[first..], n, COLS.min(n - first), rows, panel, start);
                        }
                    }
                });
                return out;
            }
            // Too few rows to share out: columns are, each task's in a buffer of its own.
            let columns = self.lines.par_chunks_exact(pairs * VECTORS).map(|panel| {
                let mut columns = vec![0.0_f32; m * COLS];
                for start in (0..pairs).step_by(PAIRS) {
                    multiply(&mut columns, COLS, COLS, &rows, panel, start);
                }
                columns
            });
            for (columns, (_, first)) in columns.collect::<Vec<_>>().iter().zip(panels()) {
                let width = COLS.min(n - first);
                for (out, columns) in out.chunks_exact_mut(n).zip(columns.chunks_exact(COLS)) {
                    out[first..first + width].copy_from_slice(&columns[..width]);
                }
            }
            out
        }
    }

    /// Adds the products of packed rows with one panel, of the [`PAIRS`] from `start` on, to the first `n_cols` of each `stride` values
    /// of `out`.
    fn multiply(out: &mut [f32], stride: usize, n_cols: usize, rows: &[u32], panel: &[Line], start: usize) {
        let (panel, _) = panel.as_chunks::<VECTORS>();
        let pairs = panel.len();
        let panel = &panel[start..pairs.min(start + PAIRS)];
        for (out, rows) in out.chunks_mut(ROWS * stride).zip(rows.chunks(ROWS * pairs)) {
            let n_rows = rows.len() / pairs;
            let row = |row: usize| &rows[row.min(n_rows - 1) * pairs + start..][..panel.len()];
            // SAFETY: a panel is packed only where all three instruction sets are.
            unsafe {
                match n_rows {
                    1 => tile(out, stride, n_cols, n_rows, [row(0)], panel),
                    2 => tile(out, stride, n_cols, n_rows, [row(0), row(1)], panel),
                    3 | 4 => tile(out, stride, n_cols, n_rows, [row(0), row(1), row(2), row(3)], panel),
                    _ => tile(out, stride, n_cols, n_rows, [row(0), row(1), row(2), row(3), row(4), row(5)], panel),
                }
            }
        }
    }

    /// Packs neighbouring values, the first in the low half; an odd last value gets a zero beside it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pack_row(packed: &mut [u32], row: &[f32]) {
        for (packed, start) in packed.chunks_mut(PACKED / 2).zip((0..row.len()).step_by(PACKED)) {
            store(packed, pairs(row, start));
        }
    }

    /// Up to [`COLS`] rows of `k` values as a panel `[k / 2][VECTORS]` of pairs; columns of missing rows are zero.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pack_panel(panel: &mut [Line], rows: &[f32], k: usize) {
        for (block, start) in panel.chunks_mut(PACKED / 2 * VECTORS).zip((0..k).step_by(PACKED)) {
            for (vector, rows) in rows.chunks(16 * k).enumerate() {
                // Not `array::from_fn`: compiled for the baseline, it would call its closure instead of containing it.
                let mut by_row = [_mm512_setzero_si512(); 16];
                for (vector, row) in by_row.iter_mut().zip(rows.chunks_exact(k)) {
                    *vector = pairs(row, start);
                }
                for (lines, by_pair) in block.chunks_exact_mut(VECTORS).zip(transposed(by_row)) {
                    store(&mut lines[vector].0, by_pair);
                }
            }
        }
    }

    /// The [`PACKED`] values of `row` from `start` on, zeros beyond its end, rounded to 16 pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pairs(row: &[f32], start: usize) -> __m512i {
        let left = (row.len() - start).min(PACKED);
        let row = &row[start..];
        // SAFETY: the masks admit only the `left` values that `row` has from here on.
        let (low, high) = unsafe {
            (
                _mm512_maskz_loadu_ps(mask_of(left), row.as_ptr()),
                _mm512_maskz_loadu_ps(mask_of(left.saturating_sub(16)), row.as_ptr().wrapping_add(16)),
            )
        };
        // SAFETY: both types are 512 bits without a meaning of their own.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// Stores the first words of a vector, as many as there is room for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn store(to: &mut [u32], vector: __m512i) {
        // SAFETY: the mask admits only the words that `to` has.
        unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask_of(to.len()), vector) };
    }

    /// A 16 x 16 matrix of words, transposed: first inside quarters of four rows, then the quarters.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
        let mut quarters = rows;
        for (out, rows) in quarters.as_chunks_mut::<4>().0.iter_mut().zip(rows.as_chunks::<4>().0) {
            let [a, b, c, d] = *rows;
            let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            *out = [
                _mm512_unpacklo_epi64(ab_low, cd_low),
                _mm512_unpackhi_epi64(ab_low, cd_low),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ];
        }
        // Vector `j` of each quarter now holds columns j, 4 + j, 8 + j and 12 + j, four words each.
        let mut columns = rows;
        for j in 0..4 {
            let [a, b, c, d] = [0, 4, 8, 12].map(|quarter| quarters[quarter + j]);
            let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
            let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
            columns[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
            columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
            columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
            columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
        }
        columns
    }

    /// A vector of 16 pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn load(line: &Line) -> __m512bh {
        // SAFETY: a line is 64 bytes, aligned to 64.
        as_bf16(unsafe { _mm512_load_si512(line.0.as_ptr().cast()) })
    }

    /// 16 pairs under the name that the product wants.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn as_bf16(pairs: __m512i) -> __m512bh {
        // SAFETY: both types are 512 bits without a meaning of their own.
        unsafe { std::mem::transmute(pairs) }
    }

    /// Adds the products of packed rows with a part of a panel to the first `n_cols` of each `stride` values of `out`. The first
    /// `n_rows` of `rows` are stored.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn tile<const ROWS: usize>(
        out: &mut [f32],
        stride: usize,
        n_cols: usize,
        n_rows: usize,
        rows: [&[u32]; ROWS],
        panel: &[[Line; VECTORS]],
    ) {
        // Indices here and below, not iterators: where those are called and not contained, sums leave their registers: a build
        // without optimisation across units took twelve times as long.
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for row in 0..ROWS.min(n_rows) {
            let out = &out[row * stride..][..n_cols];
            for vector in 0..VECTORS {
                let out = &out[n_cols.min(16 * vector)..];
                // SAFETY: the mask admits only the values that are left.
                sums[row][vector] = unsafe { _mm512_maskz_loadu_ps(mask_of(out.len()), out.as_ptr()) };
            }
        }
        for pair_idx in 0..panel.len() {
            let lines = &panel[pair_idx];
            let columns = [load(&lines[0]), load(&lines[1]), load(&lines[2]), load(&lines[3])];
            for row in 0..ROWS {
                let pair = as_bf16(_mm512_set1_epi32(rows[row][pair_idx].cast_signed()));
                for vector in 0..VECTORS {
                    sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], pair, columns[vector]);
                }
            }
        }
        for row in 0..ROWS.min(n_rows) {
            let out = &mut out[row * stride..][..n_cols];
            for vector in 0..VECTORS {
                let out = &mut out[n_cols.min(16 * vector)..];
                // SAFETY: the mask admits only the values that are left.
                unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask_of(out.len()), sums[row][vector]) };
            }
        }
    }

    /// The first lanes of a vector, as many as there are values.
    #[inline(always)]
    fn mask_of(n: usize) -> u16 {
        ((1_u32 << n.min(16)) - 1) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_product_of_rounded_inputs() {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 130, 64),
            (2, 65, 64),
            (4, 64, 33),
            (7, 65, 33),
            (97, 130, 64),
            (200, 64, 576),
            (5, 70, 2500),
            (103, 70, 2051),
        ] {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
            let x: Vec<f32> = (0..m * k).map(value).collect();
            let w: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
            let expected = matmul_transposed(&rounded(&x), &rounded(&w), k);
            let found = matmul_transposed_bf16(&x, &w, k);
            assert_eq!(found.len(), expected.len());
            for (a, b) in found.iter().zip(&expected) {
                // Sums are rounded as they grow.
                assert!((a - b).abs() < 1e-5 * ((k as f32).sqrt() + b.abs()), "{m}x{k}x{n}: {a} against {b}");
            }
        }
    }

    #[test]
    fn rounding_is_half_to_even() {
        for v in [1.0_f32, 1.003_906_2, 1.011_718_8, -2.7391, 1e-30, 65_504.0] {
            assert_eq!(f32::from_bits(bf16_bits(v) << 16), half::bf16::from_f32(v).to_f32(), "{v}");
        }
    }
}
