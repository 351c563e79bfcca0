//! Rotary position embedding in the Hugging Face convention: element i of a head pairs with element i + D/2.

/// Rotates every head of every row of `x [m, heads * d]`; `table(r)` gives row r's `[cos D/2, sin D/2]`. `inverse`
/// rotates back, which is the gradient.
pub fn rope<'t>(
    x: &[f32],
    heads: usize,
    d: usize,
    table: impl Fn(usize) -> &'t [f32] + Sync,
    inverse: bool,
    y: &mut [f32],
) {
    let half = d / 2;
    for (r, (row, out)) in x.chunks_exact(heads * d).zip(y.chunks_exact_mut(heads * d)).enumerate() {
        let (cos, sin) = table(r).split_at(half);
        for (row, out) in row.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            for i in 0..half {
                let s = if inverse { -sin[i] } else { sin[i] };
                out[i] = row[i] * cos[i] - row[i + half] * s;
                out[i + half] = row[i + half] * cos[i] + row[i] * s;
            }
        }
    }
}
