//! What came of a run, and the table that sets implementations side by side.

use std::fmt;

use tokio::task::JoinError;

/// What came of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaseOutcome {
    /// The promise was kept.
    Held,
    /// It was not; what was seen instead.
    Failed(String),
    /// The store cannot be tested for it; why.
    NotApplicable(String),
}

impl CaseOutcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Held => "ok",
            Self::Failed(_) => "FAILED",
            Self::NotApplicable(_) => "n/a",
        }
    }

    fn detail(&self) -> Option<&str> {
        match self {
            Self::Held => None,
            Self::Failed(text) | Self::NotApplicable(text) => Some(text),
        }
    }
}

impl fmt::Display for CaseOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("ok"),
            Self::Failed(text) => write!(f, "FAILED: {text}"),
            Self::NotApplicable(text) => write!(f, "not applicable: {text}"),
        }
    }
}

/// One case and what came of it.
#[derive(Clone, Debug)]
pub struct CaseReport {
    /// The case: `file::promise`.
    pub name: &'static str,
    /// What came of it.
    pub outcome: CaseOutcome,
}

/// What came of a run, in the suite's order.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the random cases began with (`CONFORMANCE_SEED` repeats them).
    pub seed: u64,
    /// All cases that were run.
    pub cases: Vec<CaseReport>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        let cases = Vec::new();
        Self { seed, cases }
    }

    pub(super) fn push(&mut self, name: &'static str, outcome: CaseOutcome) {
        self.cases.push(CaseReport { name, outcome });
    }

    /// The names of the promises that were not kept.
    #[must_use]
    pub fn failed(&self) -> Vec<&'static str> {
        let failed = self
            .cases
            .iter()
            .filter(|case| matches!(case.outcome, CaseOutcome::Failed(_)));
        failed.map(|case| case.name).collect()
    }

    /// Demands that every promise was kept and that there was one at all.
    ///
    /// # Panics
    /// Else, with the failures.
    pub fn assert_ok(&self) {
        assert!(!self.cases.is_empty(), "no case was run");
        let failed = self.failed();
        assert!(
            failed.is_empty(),
            "{} of {} promises were broken (seed {}):\n{self}",
            failed.len(),
            self.cases.len(),
            self.seed
        );
    }

    fn outcome(&self, name: &str) -> Option<&CaseOutcome> {
        let case = self.cases.iter().find(|case| case.name == name)?;
        Some(&case.outcome)
    }
}

/// The cases that were not kept or not applicable, one a line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            if case.outcome != CaseOutcome::Held {
                writeln!(f, "{}: {}", case.name, case.outcome)?;
            }
        }
        Ok(())
    }
}

/// Prints one table of all reports, then the reasons, then where the implementations differ.
pub fn print_table(reports: &[(&str, Report)]) {
    print!("{}", table(reports));
}

fn table(reports: &[(&str, Report)]) -> String {
    let names = case_names(reports);
    let first = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let widths: Vec<usize> = reports.iter().map(|(who, _)| who.len().max(6)).collect();
    let mut text = row("case", first, reports.iter().map(|(who, _)| *who), &widths);
    let rule = widths.iter().map(|width| "-".repeat(*width));
    let rule: Vec<String> = rule.collect();
    let dashes = rule.iter().map(String::as_str);
    text += &row(&"-".repeat(first), first, dashes, &widths);
    for name in &names {
        let words = reports
            .iter()
            .map(|(_, report)| report.outcome(name).map_or("-", CaseOutcome::word));
        text += &row(name, first, words, &widths);
    }
    text += &totals(reports);
    text += &reasons(reports);
    text += &differences(reports, &names);
    text
}

/// All cases in the order of the first report that has them.
fn case_names(reports: &[(&str, Report)]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for case in reports.iter().flat_map(|(_, report)| &report.cases) {
        if !names.contains(&case.name) {
            names.push(case.name);
        }
    }
    names
}

fn row<'a>(
    name: &str,
    first: usize,
    cells: impl Iterator<Item = &'a str>,
    widths: &[usize],
) -> String {
    let cells = cells
        .zip(widths)
        .map(|(cell, width)| format!(" | {cell:width$}"));
    format!("{name:first$}{}\n", cells.collect::<String>())
}

fn totals(reports: &[(&str, Report)]) -> String {
    let mut text = String::new();
    for (who, report) in reports {
        let count = |word| {
            let counted = report.cases.iter().filter(|c| c.outcome.word() == word);
            counted.count()
        };
        text += &format!(
            "{who}: {} ok, {} failed, {} not applicable (seed {})\n",
            count("ok"),
            count("FAILED"),
            count("n/a"),
            report.seed
        );
    }
    text
}

fn reasons(reports: &[(&str, Report)]) -> String {
    let mut text = String::new();
    for (who, report) in reports {
        for case in &report.cases {
            if case.outcome.detail().is_some() {
                text += &format!("{who}: {}: {}\n", case.name, case.outcome);
            }
        }
    }
    text
}

fn differences(reports: &[(&str, Report)], names: &[&str]) -> String {
    if reports.len() < 2 {
        return String::new();
    }
    let mut text = String::new();
    for name in names {
        let words: Vec<&str> = reports
            .iter()
            .map(|(_, report)| report.outcome(name).map_or("not run", CaseOutcome::word))
            .collect();
        if words.iter().any(|word| Some(word) != words.first()) {
            let each = reports.iter().zip(&words);
            let each = each.map(|((who, _), word)| format!("{who} {word}"));
            text += &format!("  {name}: {}\n", each.collect::<Vec<_>>().join(", "));
        }
    }
    if text.is_empty() {
        return "no differences\n".to_owned();
    }
    format!("differences:\n{text}")
}

pub(super) fn panic_message(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_owned(),
            (None, None) => "panicked without a text".to_owned(),
        },
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[(&'static str, CaseOutcome)]) -> Report {
        let mut report = Report::new(7);
        for (name, outcome) in outcomes {
            report.push(name, outcome.clone());
        }
        report
    }

    #[test]
    fn differences_are_listed() {
        let failed = CaseOutcome::Failed("saw 1".to_owned());
        let one = report(&[("a::x", CaseOutcome::Held), ("a::y", CaseOutcome::Held)]);
        let other = report(&[("a::x", CaseOutcome::Held), ("a::y", failed)]);
        let text = table(&[("one", one), ("other", other.clone())]);
        assert!(text.contains("a::y | ok     | FAILED"), "{text}");
        assert!(text.contains("other: a::y: FAILED: saw 1"), "{text}");
        assert!(text.ends_with("differences:\n  a::y: one ok, other FAILED\n"));
        assert_eq!(other.failed(), ["a::y"]);
    }
}
