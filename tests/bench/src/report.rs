//! The table: medians, spread, and ratios to direct TCP.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The path without a mesh.
pub(crate) const DIRECT: &str = "direct";

/// What was measured of one row on one path, a value a round.
#[derive(Default)]
pub(crate) struct Samples {
    values: BTreeMap<(usize, String), Vec<f64>>,
    /// Beside each value of a path, what direct TCP was just before.
    direct: BTreeMap<(usize, String), Vec<f64>>,
    rows: Vec<Row>,
}

/// One line of the table.
#[derive(Clone, PartialEq)]
pub(crate) struct Row {
    /// What is measured, with its unit.
    pub(crate) name: String,
    /// Larger is better.
    pub(crate) more_is_better: bool,
}

impl Row {
    /// Less is better.
    pub(crate) fn less(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            more_is_better: false,
        }
    }

    /// More is better.
    pub(crate) fn more(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            more_is_better: true,
        }
    }
}

impl Samples {
    /// Adds one round's value.
    pub(crate) fn add(&mut self, row: &Row, path: &str, value: f64) {
        let index = self.index(row);
        self.values
            .entry((index, path.to_owned()))
            .or_default()
            .push(value);
    }

    /// Adds one round's value and the one of direct TCP that it is to be compared with.
    pub(crate) fn add_beside(&mut self, row: &Row, path: &str, value: f64, direct: f64) {
        self.add(row, DIRECT, direct);
        self.add(row, path, value);
        let index = self.index(row);
        self.direct
            .entry((index, path.to_owned()))
            .or_default()
            .push(direct);
    }

    fn index(&mut self, row: &Row) -> usize {
        self.rows
            .iter()
            .position(|known| known == row)
            .unwrap_or_else(|| {
                self.rows.push(row.clone());
                self.rows.len() - 1
            })
    }

    /// The table as Markdown: for each path median and spread (min to max), and the median of the paired ratios of one path
    /// to another, with the word "ahead" or "behind" where the other is not direct TCP.
    pub(crate) fn table(&self, paths: &[&str], ratios: &[(&str, &str)]) -> String {
        let mut out = String::from("| row |");
        for path in paths {
            let _ = write!(out, " {path} |");
        }
        for (of, to) in ratios {
            let verdict = if *to == DIRECT { "" } else { "  |" };
            let _ = write!(out, " {of} / {to} |{verdict}");
        }
        let columns = out.matches('|').count() - 1;
        let _ = writeln!(out, "\n|{}", "---|".repeat(columns));
        for (index, row) in self.rows.iter().enumerate() {
            let of = |path: &str| self.values.get(&(index, path.to_owned()));
            let _ = write!(out, "| {} |", row.name);
            for path in paths {
                let _ = write!(out, " {} |", of(path).map_or("–".to_owned(), |v| spread(v)));
            }
            for (path, to) in ratios {
                let beside = match *to {
                    DIRECT => self.direct.get(&(index, (*path).to_owned())),
                    other => of(other),
                };
                let ratio = median_ratio(of(path), beside);
                let shown = ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
                let _ = write!(out, " {shown} |");
                if *to != DIRECT {
                    let verdict = match ratio {
                        Some(ratio) if (ratio > 1.0) == row.more_is_better => "ahead",
                        Some(_) => "behind",
                        None => "",
                    };
                    let _ = write!(out, " {verdict} |");
                }
            }
            out.push('\n');
        }
        out
    }
}

/// The median of the ratios of the same round: the machine's drift falls out.
fn median_ratio(of: Option<&Vec<f64>>, to: Option<&Vec<f64>>) -> Option<f64> {
    let ratios: Vec<f64> = of?
        .iter()
        .zip(to?)
        .filter(|(_, to)| **to > 0.0)
        .map(|(of, to)| of / to)
        .collect();
    (!ratios.is_empty()).then(|| median(&ratios))
}

pub(crate) fn spread(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        1 => short(values[0]),
        _ => format!("{} ({}–{})", short(median(values)), short(low), short(high)),
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_paired_by_round_so_that_drift_falls_out() {
        let mut samples = Samples::default();
        let row = Row {
            name: "round trips/s".into(),
            more_is_better: true,
        };
        for (direct, ours, peer) in [
            (100.0, 50.0, 25.0),
            (200.0, 100.0, 50.0),
            (50.0, 25.0, 12.5),
        ] {
            samples.add_beside(&row, "seine", ours, direct);
            // The machine is slower a moment later, for both.
            samples.add_beside(&row, "peer", peer, direct / 2.0);
        }
        let table = samples.table(
            &[DIRECT, "seine", "peer"],
            &[("seine", DIRECT), ("peer", DIRECT), ("seine", "peer")],
        );
        let line = table.lines().last().unwrap();
        assert!(line.contains("| 0.50 | 0.50 | 2.00 | ahead |"), "{table}");
    }
}
