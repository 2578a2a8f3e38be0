//! What was found, for people: medians of the rounds, and ratios that are taken within each round.

use std::fmt::Write as _;

use crate::load::Figures;
use crate::run::{Measurement, Outcome};
use crate::stats::{median, median_ratio};

/// All that was measured, to be asked by task and system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Findings<'a>(pub(crate) &'a [Measurement]);

impl<'a> Findings<'a> {
    /// Names of the tasks, in the order in which they were measured first.
    pub(crate) fn tasks(self) -> Vec<&'a str> {
        distinct(self.0.iter().map(|one| one.task.as_str()))
    }

    /// Names of the systems that a task was measured on, in that order.
    pub(crate) fn systems(self, task: &str) -> Vec<&'a str> {
        let of_task = self.0.iter().filter(|one| one.task == task);
        distinct(of_task.map(|one| one.system.as_str()))
    }

    fn rounds(self, task: &str, system: &str) -> impl Iterator<Item = (usize, &'a Figures)> {
        let all = self.0.iter();
        let found = all.filter(move |one| one.task == task && one.system == system);
        let figures = found.filter_map(|one| match &one.outcome {
            Outcome::Figures(figures) => Some((one.round, figures)),
            Outcome::Failed(_) => None,
        });
        figures.collect::<Vec<_>>().into_iter()
    }

    /// The median of a figure.
    pub(crate) fn median(
        self,
        task: &str,
        system: &str,
        figure: impl Fn(&Figures) -> f64,
    ) -> Option<f64> {
        median(
            self.rounds(task, system)
                .map(|(_, figures)| figure(figures)),
        )
    }

    /// The median of the ratios of a figure of two systems (each with its task) in the same round.
    pub(crate) fn ratio(
        self,
        (task, system): (&str, &str),
        (other_task, other): (&str, &str),
        figure: impl Fn(&Figures) -> f64,
    ) -> Option<f64> {
        let others: Vec<_> = self.rounds(other_task, other).collect();
        let pairs = self.rounds(task, system).filter_map(|(round, figures)| {
            let (_, theirs) = others.iter().find(|(other, _)| *other == round)?;
            Some((figure(figures), figure(theirs)))
        });
        median_ratio(pairs)
    }

    /// Why a task failed on a system in some round, if it did.
    pub(crate) fn failure(self, task: &str, system: &str) -> Option<&'a str> {
        let mut all = self.0.iter();
        all.find_map(|one| match &one.outcome {
            Outcome::Failed(why) if one.task == task && one.system == system => Some(why.as_str()),
            _ => None,
        })
    }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}

/// A number with three digits that mean something, and no fewer before the point.
pub(crate) fn short(number: f64) -> String {
    match number.abs() {
        n if n >= 100.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// A table in Markdown of all tasks, with each system's ratio to the first of the task.
pub(crate) fn table(findings: Findings<'_>) -> String {
    table_of(findings, &findings.tasks())
}

/// The same of these tasks.
pub(crate) fn table_of(findings: Findings<'_>, tasks: &[&str]) -> String {
    let mut text = String::from(
        "| task | system | per second | p50 us | p99 us | p99.9 us | server CPU us | client CPU us | server MiB | \
         rate, first / this | CPU, first / this |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for task in tasks.iter().copied() {
        let systems = findings.systems(task);
        let Some(first) = systems.first() else {
            continue;
        };
        for system in &systems {
            let cell = |figure: fn(&Figures) -> f64| {
                let median = findings
                    .median(task, system, figure)
                    .filter(|one| *one > 0.0);
                median.map_or_else(|| "-".to_owned(), short)
            };
            let ratio = |figure: fn(&Figures) -> f64| {
                let ratio = findings.ratio((task, first), (task, system), figure);
                ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            let cells = [
                task.to_owned(),
                (*system).to_owned(),
                cell(|figures| figures.rate),
                cell(|figures| figures.latency.p50),
                cell(|figures| figures.latency.p99),
                cell(|figures| figures.latency.p999),
                cell(|figures| figures.server_cpu_us),
                cell(|figures| figures.client_cpu_us),
                memory(findings, task, system),
                ratio(|figures| figures.rate),
                ratio(|figures| figures.server_cpu_us),
            ];
            let _ = writeln!(text, "| {} |", cells.join(" | "));
            if let Some(why) = findings.failure(task, system) {
                let _ = writeln!(
                    text,
                    "| {task} | {system} | FAILED: {why} | | | | | | | | |"
                );
            }
        }
    }
    text
}

/// Of the server; or of each connection or watch, where that is what was measured.
fn memory(findings: Findings<'_>, task: &str, system: &str) -> String {
    let each = |figures: &Figures| figures.memory_each.unwrap_or(f64::NAN);
    if let Some(bytes) = findings.median(task, system, each) {
        return format!("{bytes:.0} B each");
    }
    let all = findings.median(task, system, |figures| mib(figures.server_memory));
    all.map_or_else(|| "-".to_owned(), short)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The same with columns of equal width, for a terminal.
pub(crate) fn aligned(markdown: &str) -> String {
    let rows: Vec<Vec<&str>> = markdown
        .lines()
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter(|row| !is_rule(row) && row.len() == columns);
        let lengths = cells.filter_map(|row| row.get(column).map(|cell| cell.chars().count()));
        lengths.max().unwrap_or_default().min(40)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows.iter().filter(|row| !is_rule(row)) {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, figures to the right.
            let _ = if column < 2 {
                write!(text, "{cell:<width$}  ")
            } else {
                write!(text, "{cell:>width$}  ")
            };
        }
        text.push('\n');
    }
    text
}

fn is_rule(row: &[&str]) -> bool {
    row.iter().all(|cell| cell.starts_with("--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(system: &str, round: usize, rate: f64) -> Measurement {
        Measurement {
            task: "get".to_owned(),
            system: system.to_owned(),
            round,
            at: 0.0,
            outcome: Outcome::Figures(Figures {
                rate,
                ..Figures::default()
            }),
        }
    }

    #[test]
    fn a_ratio_is_of_rounds_that_both_have() {
        let all = [
            measured("os", 0, 100.0),
            measured("redis", 0, 50.0),
            measured("os", 1, 60.0),
            measured("redis", 1, 20.0),
            measured("os", 2, 1_000.0),
        ];
        let findings = Findings(&all);
        let ratio = findings.ratio(("get", "os"), ("get", "redis"), |figures| figures.rate);
        assert_eq!(ratio, Some(2.5));
        let none = findings.ratio(("get", "os"), ("get", "etcd"), |figures| figures.rate);
        assert_eq!(none, None);
        let text = table(findings);
        assert!(text.contains("| get | redis | 35.0 |"), "{text}");
        assert!(aligned(&text).lines().count() == 3);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(short(123_456.7), "123457");
        assert_eq!(short(12.345), "12.3");
        assert_eq!(short(1.2345), "1.23");
    }
}
