//! A figure, what it is compared with, and what it should be.

use comfy_table::{Table, presets};
use serde::Serialize;

/// What the ratio of a figure to its baseline should be: what must hold, and what is aimed for.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64, f64),
    AtLeast(f64, f64),
    /// It is only shown.
    None,
}

/// One figure and what it is compared with.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) row: String,
    name: String,
    value: f64,
    unit: &'static str,
    /// What the baseline is.
    beside: &'static str,
    baseline: f64,
    /// `value / baseline`.
    ratio: f64,
    must: Option<String>,
    aim: Option<String>,
    /// Whether what must hold does.
    holds: Option<bool>,
}

impl Row {
    /// The medians of several runs, taken in turns.
    pub(crate) fn new(
        row: impl Into<String>,
        name: impl Into<String>,
        unit: &'static str,
        ours: &[f64],
        (beside, theirs): (&'static str, &[f64]),
        bound: Bound,
    ) -> Self {
        let (value, baseline) = (median(ours), median(theirs));
        let ratio = value / baseline;
        let (must, aim, holds) = match bound {
            Bound::AtMost(must, aim) => (Some(format!("<= {must:.3}")), Some(format!("<= {aim}")), Some(ratio <= must)),
            Bound::AtLeast(must, aim) => (Some(format!(">= {must}")), Some(format!(">= {aim}")), Some(ratio >= must)),
            Bound::None => (None, None, None),
        };
        Self { row: row.into(), name: name.into(), value, unit, beside, baseline, ratio, must, aim, holds }
    }

    /// A row whose limit is an absolute figure: the ratio is to what must hold.
    pub(crate) fn absolute(
        row: impl Into<String>,
        name: impl Into<String>,
        unit: &'static str,
        ours: &[f64],
        must: f64,
        aim: f64,
    ) -> Self {
        Self::new(row, name, unit, ours, ("what must hold", &[must]), Bound::AtMost(1.0, aim / must))
    }
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints rows as a table, or one JSON line each.
pub(crate) fn print(rows: &[Row], json: bool) -> anyhow::Result<()> {
    if json {
        for row in rows {
            println!("{}", serde_json::to_string(row)?);
        }
        return Ok(());
    }
    let mut table = Table::new();
    let header = ["ROW", "WHAT", "QUILT", "BASELINE", "UNIT", "RATIO", "MUST", "AIM", "HOLDS"];
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        let holds = row.holds.map_or("", |holds| if holds { "yes" } else { "NO" });
        table.add_row([
            row.row.clone(),
            format!("{}; beside: {}", row.name, row.beside),
            figure(row.value),
            figure(row.baseline),
            row.unit.to_owned(),
            format!("{:.2}x", row.ratio),
            row.must.clone().unwrap_or_default(),
            row.aim.clone().unwrap_or_default(),
            holds.to_owned(),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn figure(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
