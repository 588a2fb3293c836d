//! [`HostMatrix`]: a dense matrix in host memory, in 16 bits where these hold its values exactly.
//!
//! A decode step is bound by the bytes of the weights that it reads, and most files store 16 bits a weight. Values are widened to f32
//! as they are read: not a bit of a product depends on how they are stored.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt as _;
use rayon::prelude::*;

use super::dots::{dot_products, rows_of_run};
use super::matmul::{matmul_transposed, runs_of_columns};

/// Rows of activations up to which each is multiplied by itself: all read the weights once, and none depends on the others.
pub const MOST_ROWS_BY_DOTS: usize = 16;

/// Weights of one task: long enough to hide the hand-over (about a microsecond), short enough that two threads balance.
const WEIGHTS_PER_TASK: usize = 1 << 16;

/// Weights that are widened at a time, so that they stay in the first-level cache, but a run of rows at least.
const WIDENED_AT_ONCE: usize = 1 << 12;

/// `[n_out, n_in]`, row-major.
pub struct HostMatrix {
    values: Values,
    n_in: usize,
}

enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// The upper halves of f32.
    Bf16(Vec<u16>),
}

impl HostMatrix {
    /// Of rows of `n_in` values, stored in bf16 or f16 where all of them are numbers of that type.
    ///
    /// # Panics
    /// If the length is not a positive number of rows.
    pub fn new(values: Vec<f32>, n_in: usize) -> Self {
        let is_bf16 = |value: &f32| value.to_bits() & 0xffff == 0;
        let is_f16 = |value: &f32| f16::from_f32(*value).to_f32().to_bits() == value.to_bits();
        if values.par_iter().all(is_bf16) {
            let halves = values.par_iter().map(|value| (value.to_bits() >> 16) as u16).collect();
            return Self::of(Values::Bf16(halves), n_in);
        }
        if values.par_iter().all(is_f16) {
            let halves = values.par_iter().map(|value| f16::from_f32(*value)).collect();
            return Self::of(Values::F16(halves), n_in);
        }
        Self::of_f32(values, n_in)
    }

    /// Of rows of `n_in` values, stored in f32 whatever they are.
    ///
    /// # Panics
    /// If the length is not a positive number of rows.
    pub fn of_f32(values: Vec<f32>, n_in: usize) -> Self {
        Self::of(Values::F32(values), n_in)
    }

    fn of(values: Values, n_in: usize) -> Self {
        let matrix = Self { values, n_in };
        let n_values = matrix.n_values();
        assert!(n_values > 0 && n_values.is_multiple_of(n_in), "{n_values} weights in rows of {n_in}");
        matrix
    }

    fn n_values(&self) -> usize {
        match &self.values {
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::Bf16(values) => values.len(),
        }
    }

    /// Columns.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Rows.
    pub fn n_out(&self) -> usize {
        self.n_values() / self.n_in
    }

    /// Bits of a value.
    pub fn bits(&self) -> u8 {
        match &self.values {
            Values::F32(_) => 32,
            Values::F16(_) | Values::Bf16(_) => 16,
        }
    }

    /// Bytes, all of which a product reads.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => size_of_val(values.as_slice()),
            Values::F16(values) => size_of_val(values.as_slice()),
            Values::Bf16(values) => size_of_val(values.as_slice()),
        }
    }

    /// Appends one of its rows to `out`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn append_row(&self, row: usize, out: &mut Vec<f32>) {
        let first = out.len();
        out.resize(first + self.n_in, 0.0);
        self.widen(row * self.n_in, &mut out[first..]);
    }

    /// `out = x w^T` for `x: [n, n_in]` and `out: [n, n_out]`. Threads share out rows, never a sum, so that their number does not
    /// change a bit; up to [`MOST_ROWS_BY_DOTS`] rows, no row of `x` changes a bit of another's products.
    ///
    /// # Panics
    /// If the lengths are not those of the same number of rows.
    pub fn multiply(&self, x: &[f32], out: &mut [f32]) {
        let (n_in, n_out) = (self.n_in, self.n_out());
        let n = x.len() / n_in;
        assert!(x.len() == n * n_in && out.len() == n * n_out, "a [{n_out}, {n_in}] matrix and {} values", x.len());
        if n > MOST_ROWS_BY_DOTS {
            return self.multiply_many(x, out);
        }
        let rows_per_task = (WEIGHTS_PER_TASK / n_in).max(1);
        if n == 1 {
            let tasks = out.par_chunks_mut(rows_per_task).enumerate();
            return tasks.for_each(|(task, out)| self.multiply_rows(task * rows_per_task, x, out));
        }
        let first_rows: Vec<usize> = (0..n_out).step_by(rows_per_task).collect();
        let products = first_rows.par_iter().map(|&first| {
            let mut products = vec![0.0; rows_per_task.min(n_out - first) * n];
            self.multiply_rows(first, x, &mut products);
            products
        });
        for (first, products) in first_rows.iter().zip(products.collect::<Vec<_>>()) {
            for (row, products) in products.chunks_exact(n).enumerate() {
                products.iter().zip(out[first + row..].iter_mut().step_by(n_out)).for_each(|(y, out)| *out = *y);
            }
        }
    }

    /// Products of the rows from `first` on with each row of `x`: `out[row][row of x]`.
    fn multiply_rows(&self, first: usize, x: &[f32], out: &mut [f32]) {
        let n = x.len() / self.n_in;
        let rows_at_once = match &self.values {
            Values::F32(_) => out.len() / n,
            Values::F16(_) | Values::Bf16(_) => {
                let run = rows_of_run(n);
                (WIDENED_AT_ONCE / self.n_in / run).max(1) * run
            }
        };
        let mut widened = Vec::new();
        for (at, out) in out.chunks_mut(rows_at_once * n).enumerate() {
            let start = (first + at * rows_at_once) * self.n_in;
            let rows = self.floats(start..start + out.len() / n * self.n_in, &mut widened);
            dot_products(rows, x, self.n_in, out);
        }
    }

    /// The same as one product of matrices, whose sums are added up in another order.
    pub(crate) fn multiply_many(&self, x: &[f32], out: &mut [f32]) {
        let (n_in, n_out) = (self.n_in, self.n_out());
        if let Values::F32(values) = &self.values {
            return out.copy_from_slice(&matmul_transposed(x, values, n_in));
        }
        let mut widened = Vec::new();
        for run in runs_of_columns(n_out) {
            let (first, n_rows) = (run.start, run.len());
            widened.resize(n_rows * n_in, 0.0);
            let parts = widened.par_chunks_mut(WEIGHTS_PER_TASK).enumerate();
            parts.for_each(|(part, out)| self.widen(first * n_in + part * WEIGHTS_PER_TASK, out));
            let product = matmul_transposed(x, &widened, n_in);
            for (out, row) in out.chunks_exact_mut(n_out).zip(product.chunks_exact(n_rows)) {
                out[run.clone()].copy_from_slice(row);
            }
        }
    }

    /// Values as f32: where they are, or in `widened`.
    fn floats<'a>(&'a self, range: Range<usize>, widened: &'a mut Vec<f32>) -> &'a [f32] {
        if let Values::F32(values) = &self.values {
            return &values[range];
        }
        widened.resize(range.len(), 0.0);
        self.widen(range.start, widened);
        widened
    }

    /// The values from `first` on, as many as `out` holds.
    fn widen(&self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match &self.values {
            Values::F32(values) => out.copy_from_slice(&values[range]),
            Values::F16(values) => values[range].convert_to_f32_slice(out),
            Values::Bf16(values) => widen_bf16(&values[range], out),
        }
    }
}

vectorized! {
    fn widen_bf16<'a>(halves: &'a [u16], out: &'a mut [f32]) -> () {
        let halves = &halves[..out.len()];
        for i in 0..out.len() {
            out[i] = f32::from_bits(u32::from(halves[i]) << 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::elementwise::dot_chunk;

    fn value(i: usize) -> f32 {
        ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5
    }

    fn with_threads<R: Send>(n: usize, run: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a thread pool").install(run)
    }

    /// Values of each type, and how many bytes one takes.
    fn matrices(n_out: usize, n_in: usize) -> [(Vec<f32>, usize); 3] {
        let of = |round: fn(f32) -> f32| (0..n_out * n_in).map(|i| round(value(i))).collect::<Vec<_>>();
        let f16_and_bf16 = [of(|v| f16::from_f32(v).to_f32()), of(|v| half::bf16::from_f32(v).to_f32())];
        let [of_f16, of_bf16] = f16_and_bf16.map(|values| (values, 2));
        [(of(|v| v), 4), of_f16, of_bf16]
    }

    #[test]
    fn a_few_rows_are_multiplied_each_by_itself_in_any_type_and_at_any_number_of_threads() {
        for (n_out, n_in) in [(1, 3), (7, 33), (192, 576), (700, 576), (9, 640), (5, 9000)] {
            for (values, bytes) in matrices(n_out, n_in) {
                let matrix = HostMatrix::new(values.clone(), n_in);
                assert_eq!((matrix.n_out(), matrix.n_in(), matrix.bytes()), (n_out, n_in, bytes * n_out * n_in));
                for n in [1, 2, 3, 4, 5, 9, MOST_ROWS_BY_DOTS] {
                    let x: Vec<f32> = (0..n * n_in).map(|i| value(i + 5)).collect();
                    let run = |threads| {
                        let mut out = vec![f32::NAN; n * n_out];
                        with_threads(threads, || matrix.multiply(&x, &mut out));
                        out
                    };
                    let found = run(1);
                    assert!(found == run(2) && found == run(3), "{n_out}x{n_in}, {n} rows: threads change a bit");
                    let expected: Vec<f32> =
                        x.chunks(n_in).flat_map(|x| values.chunks(n_in).map(|row| dot_chunk(row, x))).collect();
                    assert_eq!(found, expected, "{n_out}x{n_in} of {bytes} bytes, {n} rows");
                }
            }
        }
    }

    #[test]
    fn many_rows_are_multiplied_as_a_matrix_in_any_type() {
        for (n_out, n_in) in [(33, 64), (2 * 1024 + 5, 70), (1025, 70)] {
            for (values, bytes) in matrices(n_out, n_in) {
                for n in [MOST_ROWS_BY_DOTS + 1, 130] {
                    let x: Vec<f32> = (0..n * n_in).map(|i| value(i + 5)).collect();
                    let mut found = vec![f32::NAN; n * n_out];
                    HostMatrix::new(values.clone(), n_in).multiply(&x, &mut found);
                    assert_eq!(found, matmul_transposed(&x, &values, n_in), "{n_out}x{n_in} of {bytes} bytes");
                }
            }
        }
    }

    #[test]
    fn rows_come_back_bit_for_bit() {
        let special = [0.0, -0.0, 1.0e-7, 65504.0, -6.1e-5, f32::INFINITY, 1.0e30, f32::MIN_POSITIVE / 8.0];
        for (values, bytes) in [
            (special.map(|v| half::bf16::from_f32(v).to_f32()).to_vec(), 2),
            (special[..5].iter().map(|v| f16::from_f32(*v).to_f32()).collect(), 2),
            (special.to_vec(), 4),
            (vec![1.0, f32::from_bits(0x7fc0_0001)], 4),
        ] {
            let matrix = HostMatrix::new(values.clone(), 1);
            assert_eq!(matrix.bytes(), bytes * values.len(), "{values:?}");
            let mut rows = Vec::new();
            (0..values.len()).for_each(|row| matrix.append_row(row, &mut rows));
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&rows), bits(&values));
        }
    }
}
