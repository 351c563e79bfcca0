//! Sharing rows of outputs among threads: each piece is some whole rows of every output.
#![allow(unsafe_code)] // one slice shared by disjoint parts

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// Values of one output in one piece of work.
const GRAIN: usize = 1 << 14;

/// An output: the values and the width of a row.
type Out<'a> = (&'a mut [f32], usize);

/// Rows in one piece of outputs with these widths, or none when the work is not worth sharing.
fn rows_per_piece(rows: usize, widths: &[usize]) -> Option<usize> {
    let widest = widths.iter().copied().max().unwrap_or(0);
    let piece = (GRAIN / widest.max(1)).max(1);
    (rows > piece && !widths.contains(&0) && rayon::current_num_threads() > 1).then_some(piece)
}

fn range(piece: usize, per_piece: usize, rows: usize) -> Range<usize> {
    piece * per_piece..((piece + 1) * per_piece).min(rows)
}

/// Calls `f(rows, part of a)` for pieces of the `rows` rows of `a`.
pub(crate) fn rows1(rows: usize, (a, width): Out, f: impl Fn(Range<usize>, &mut [f32]) + Sync + Send) {
    let a = &mut a[..rows * width];
    match rows_per_piece(rows, &[width]) {
        None if rows > 0 => f(0..rows, a),
        None => {}
        Some(n) => a.par_chunks_mut(n * width).enumerate().for_each(|(i, a)| f(range(i, n, rows), a)),
    }
}

/// [`rows1`] with two outputs.
pub(crate) fn rows2(
    rows: usize,
    (a, a_width): Out,
    (b, b_width): Out,
    f: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync + Send,
) {
    let (a, b) = (&mut a[..rows * a_width], &mut b[..rows * b_width]);
    match rows_per_piece(rows, &[a_width, b_width]) {
        None if rows > 0 => f(0..rows, a, b),
        None => {}
        Some(n) => {
            let pieces = a.par_chunks_mut(n * a_width).zip(b.par_chunks_mut(n * b_width));
            pieces.enumerate().for_each(|(i, (a, b))| f(range(i, n, rows), a, b));
        }
    }
}

/// Three outputs of `len` single values.
pub(crate) fn values3(
    a: &mut [f32],
    b: &mut [f32],
    c: &mut [f32],
    f: impl Fn(Range<usize>, &mut [f32], &mut [f32], &mut [f32]) + Sync + Send,
) {
    let len = a.len();
    assert!(b.len() == len && c.len() == len, "three outputs of {len} values");
    match rows_per_piece(len, &[1]) {
        None => f(0..len, a, b, c),
        Some(n) => {
            let pieces = a.par_chunks_mut(n).zip(b.par_chunks_mut(n)).zip(c.par_chunks_mut(n));
            pieces.enumerate().for_each(|(i, ((a, b), c))| f(range(i, n, len), a, b, c));
        }
    }
}

/// Calls `f(columns)` for pieces of `0..width` of at least 64 columns, for kernels that run over all `rows` rows in
/// order.
pub(crate) fn columns(rows: usize, width: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    const LEAST: usize = 64;
    let threads = rayon::current_num_threads();
    if rows * width <= GRAIN || threads == 1 || width <= LEAST {
        return f(0..width);
    }
    let piece = width.div_ceil(2 * threads).next_multiple_of(16).max(LEAST);
    (0..width.div_ceil(piece)).into_par_iter().with_max_len(1).for_each(|i| f(range(i, piece, width)));
}

/// A slice whose disjoint parts several tasks write.
pub(crate) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    _life: PhantomData<&'a mut [f32]>,
}

// SAFETY: `part` hands out disjoint parts of an exclusively borrowed slice.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _life: PhantomData }
    }

    /// The values in `range`.
    ///
    /// # Safety
    /// No other part that is alive overlaps the range.
    #[allow(clippy::mut_from_ref)] // exclusive by the caller's promise
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} values", self.len);
        // SAFETY: inside the slice; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
