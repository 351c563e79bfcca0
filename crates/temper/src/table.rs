//! Plain tables: columns line up, nothing depends on colour.

/// Which side of a column its cells lean to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header.
#[derive(Debug)]
pub(crate) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new<S: Into<String>>(columns: impl IntoIterator<Item = (S, Side)>) -> Self {
        let (header, sides) = columns.into_iter().map(|(name, side)| (name.into(), side)).unzip();
        Self { sides, rows: vec![header] }
    }

    /// Adds a row; cells that are missing stay empty.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The lines, each with its end; two spaces between columns, none at the end of a line.
    pub(crate) fn text(&self) -> String {
        let cell = |row: &[String], at: usize| row.get(at).cloned().unwrap_or_default();
        let widths: Vec<usize> = (0..self.sides.len())
            .map(|at| self.rows.iter().map(|row| width(&cell(row, at))).max().unwrap_or(0))
            .collect();
        let line = |row: &Vec<String>| {
            let cells = (0..widths.len()).map(|at| pad(&cell(row, at), widths[at], self.sides[at]));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        self.rows.iter().map(line).collect()
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn pad(text: &str, to: usize, side: Side) -> String {
    let blank = " ".repeat(to.saturating_sub(width(text)));
    if side == Side::Left { format!("{text}{blank}") } else { format!("{blank}{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new([("task", Side::Left), ("n", Side::Right), ("note", Side::Left)]);
        table.row(["chains", "1200", ""]);
        table.row(["\u{e9}t\u{e9}", "7", "x"]);
        assert_eq!(table.text(), "task       n  note\nchains  1200\n\u{e9}t\u{e9}        7  x\n");
    }
}
