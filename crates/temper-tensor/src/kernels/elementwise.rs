//! Elementwise chains and row movement.

/// `y = a + b`.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
    for i in 0..y.len() {
        y[i] = a[i] + b[i];
    }
}

/// `acc += x`.
pub fn add_into(acc: &mut [f32], x: &[f32]) {
    for (a, x) in acc.iter_mut().zip(x) {
        *a += x;
    }
}

/// `acc += factor * x`.
pub fn add_scaled(acc: &mut [f32], x: &[f32], factor: f32) {
    for (a, x) in acc.iter_mut().zip(x) {
        *a += factor * x;
    }
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    for v in x {
        *v *= factor;
    }
}

/// Sets every value.
pub fn fill(x: &mut [f32], value: f32) {
    x.fill(value);
}

/// `y[r] = x[r] + bias` for rows of `bias.len()` values.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        add_into(row, bias);
    }
}

/// `db += sum over rows of dy`, rows in ascending order; rows have `db.len()` values.
pub fn bias_db(dy: &[f32], db: &mut [f32]) {
    for row in dy.chunks_exact(db.len()) {
        add_into(db, row);
    }
}

/// `y[i] = x[rows[i]]` for rows of `width` values.
pub fn gather_rows(x: &[f32], width: usize, rows: &[u32], y: &mut [f32]) {
    for (r, out) in rows.iter().zip(y.chunks_exact_mut(width)) {
        out.copy_from_slice(&x[*r as usize * width..][..width]);
    }
}

/// `acc[rows[i]] += x[i]`, in order of i.
pub fn scatter_add_rows(acc: &mut [f32], width: usize, x: &[f32], rows: &[u32]) {
    for (r, row) in rows.iter().zip(x.chunks_exact(width)) {
        add_into(&mut acc[*r as usize * width..][..width], row);
    }
}
