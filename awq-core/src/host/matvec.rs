//! The product of a dense matrix with one vector: bound by the bytes of the matrix.

use rayon::prelude::*;

use super::elementwise::dot;

/// Weights of one task: long enough to hide the hand-over (about a microsecond), short enough that two threads balance.
const WEIGHTS_PER_TASK: usize = 1 << 16;

/// `out = w x` for a row-major `w: [out.len(), x.len()]`. Rows are shared out, never a sum: threads do not change a bit.
pub fn matvec(w: &[f32], x: &[f32], out: &mut [f32]) {
    assert_eq!(w.len(), x.len() * out.len(), "a matrix of {} weights maps {} to {}", w.len(), x.len(), out.len());
    let n_in = x.len();
    let rows_per_task = (WEIGHTS_PER_TASK / n_in).max(1);
    if out.len() <= rows_per_task {
        return matvec_rows(w, x, out);
    }
    let tasks = w.par_chunks(rows_per_task * n_in).zip(out.par_chunks_mut(rows_per_task));
    tasks.for_each(|(w, out)| matvec_rows(w, x, out));
}

vectorized! {
    fn matvec_rows<'a>(w: &'a [f32], x: &'a [f32], out: &'a mut [f32]) -> () {
        for (row, y) in w.chunks_exact(x.len()).zip(out) {
            *y = dot(row, x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_sum_of_products_at_any_thread_count() {
        for (n_out, n_in) in [(1, 3), (7, 33), (192, 576), (700, 576)] {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
            let w: Vec<f32> = (0..n_out * n_in).map(value).collect();
            let x: Vec<f32> = (0..n_in).map(|i| value(i + 5)).collect();
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
                let mut out = vec![0.0; n_out];
                pool.install(|| matvec(&w, &x, &mut out));
                out
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3), "{n_out}x{n_in}: threads change the product");
            for (row, y) in w.chunks(n_in).zip(&one) {
                let exact: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                assert!((f64::from(*y) - exact).abs() < 1e-4, "{n_out}x{n_in}: {y} is not {exact}");
            }
        }
    }
}
