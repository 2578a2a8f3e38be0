//! What became of the rows of an import: counted while answers come, told at its end.
//!
//! Invariant: each row is in one state (committed, not committed, unknown).

use storage_protocol::{Outcome, Position, StorageError};

use crate::json::Object;

/// Rows that went into one commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Counted from 1.
    pub(crate) first_row: u64,
    pub(crate) first_line: u64,
    pub(crate) rows: u64,
}

/// What became of the rows.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) rows: u64,
    pub(crate) commits: u64,
    pub(crate) last: Option<Position>,
    pub(crate) failures: Vec<Failed>,
    /// Committed by an earlier run.
    pub(crate) rows_before: u64,
    /// Committed although an earlier commit failed.
    rows_behind: u64,
    /// Commits that are in `rows`, and may be behind one that was refused and is to come again.
    unsettled: Vec<Span>,
    /// Of all of these, rows whose key an earlier row has too.
    pub(crate) duplicates: u64,
}

pub(crate) struct Failed {
    span: Span,
    error: StorageError,
}

impl Tally {
    /// A commit that was executed; `others_wait`: some that were refused are to come again.
    pub(crate) fn add(&mut self, span: Span, position: Position, others_wait: bool) {
        self.commits += 1;
        self.last = Some(position);
        match others_wait {
            true => self.unsettled.push(span),
            false => self.unsettled.clear(),
        }
        self.settle(span);
    }

    /// Rows that are as good as committed: of their keys later ones are, or they themselves.
    pub(crate) fn settle(&mut self, span: Span) {
        match self.failures.is_empty() {
            true => self.rows += span.rows,
            false => self.rows_behind += span.rows,
        }
    }

    /// Rows that were not committed, or of which that is unknown.
    pub(crate) fn fail(&mut self, span: Span, error: StorageError) {
        for behind in self
            .unsettled
            .extract_if(.., |other| other.first_row > span.first_row)
        {
            self.rows -= behind.rows;
            self.rows_behind += behind.rows;
        }
        self.failures.push(Failed { span, error });
    }

    /// Whether a commit behind this row was executed.
    pub(crate) fn is_overtaken(&self, first_row: u64) -> bool {
        self.unsettled
            .iter()
            .any(|other| other.first_row > first_row)
    }

    pub(crate) fn committed_text(&self) -> String {
        format!("{} rows were committed", self.rows)
    }

    /// Fails if a commit did. An unknown outcome says more than one that is certain, so the first such counts.
    pub(crate) fn outcome(&self, file: &str) -> anyhow::Result<()> {
        let unknown = |failed: &Failed| failed.error.outcome() == Outcome::Unknown;
        let place = self.failures.iter().position(unknown).unwrap_or(0);
        let Some(failed) = self.failures.get(place) else {
            return Ok(());
        };
        let (first, line) = (failed.span.first_row, failed.span.first_line);
        let mut text = match unknown(failed) {
            true => format!("from row {first} on ({file}:{line}) it is unknown what was committed"),
            false => {
                let last = first + failed.span.rows - 1;
                format!("rows {first} to {last} (from {file}:{line} on) were not committed")
            }
        };
        text.push_str(&format!("; {} before", self.committed_text()));
        if self.rows_behind > 0 {
            text.push_str(&format!(
                ", and {} rows that were on their way behind the first failed commit",
                self.rows_behind
            ));
        }
        Err(anyhow::Error::new(failed.error.clone()).context(text))
    }

    pub(crate) fn summary(&self, position: Position, seconds: f64, json: bool) -> String {
        let (rows, commits) = (self.rows, self.commits);
        let before = self.rows_before;
        if !json {
            let earlier = match before {
                0 => String::new(),
                before => format!(" ({before} rows were committed before)"),
            };
            let repeated = match self.duplicates {
                0 => String::new(),
                count => format!(
                    "; {count} rows have the key of an earlier row, and the last one of each key stays"
                ),
            };
            return format!(
                "{rows} rows in {commits} commits, {seconds:.3} s, at {position}{earlier}{repeated}"
            );
        }
        let summary = Object::new()
            .number("rows", rows)
            .number("commits", commits)
            .number("duplicates", self.duplicates)
            .raw("seconds", &format!("{seconds:.3}"))
            .position(position);
        match before {
            0 => summary.finish(),
            before => summary.number("rows_before", before).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Limit, Result, Revision};

    use super::*;
    use crate::failure::exit_code;

    /// What is said after commits of two rows each came to this.
    pub(crate) fn outcome_of(answers: impl IntoIterator<Item = Result<u64>>) -> (u8, String) {
        let mut tally = Tally::default();
        for (place, answer) in (0u64..).zip(answers) {
            let span = Span {
                first_row: 2 * place + 1,
                first_line: 2 * place + 2,
                rows: 2,
            };
            let position = |revision| Position {
                revision: Revision(revision),
                ..Position::default()
            };
            match answer {
                Ok(revision) => tally.add(span, position(revision), false),
                Err(error) => tally.fail(span, error),
            }
        }
        match tally.outcome("f") {
            Ok(()) => (0, tally.committed_text()),
            Err(error) => (exit_code(&error), format!("{error}")),
        }
    }

    #[test]
    fn what_overtook_a_commit_that_never_came_is_told_as_behind_it() {
        let mut tally = Tally::default();
        let span = |first_row| Span {
            first_row,
            first_line: first_row,
            rows: 2,
        };
        let position = Position::default();
        tally.add(span(1), position, false);
        // Rows 3 and 7 were refused, and 5 and 9 overtook them; then 3 came again and was taken, but not 7.
        tally.add(span(5), position, true);
        tally.add(span(9), position, true);
        assert!(tally.is_overtaken(3) && tally.is_overtaken(7) && !tally.is_overtaken(9));
        tally.add(span(3), position, true);
        let (limit, max) = (Limit::CommitRate, 1);
        tally.fail(span(7), StorageError::Overloaded { limit, max });
        let error = tally.outcome("f").unwrap_err().to_string();
        assert_eq!(
            error,
            "rows 7 to 8 (from f:7 on) were not committed; 6 rows were committed before, and 2 rows that were on their way \
             behind the first failed commit"
        );
    }

    #[test]
    fn each_row_is_committed_not_committed_or_unknown() {
        let overloaded = || {
            let (limit, max) = (Limit::CommitQueue, 1);
            Err(StorageError::Overloaded { limit, max })
        };
        let lost = || {
            let outcome = Outcome::Unknown;
            Err(StorageError::DeadlineExceeded { outcome })
        };
        let says = |code, text: &str| (code, text.to_owned());
        assert_eq!(outcome_of([Ok(1), Ok(2)]), says(0, "4 rows were committed"));
        assert_eq!(
            outcome_of([Ok(1), overloaded(), Ok(2), overloaded(), Ok(3)]),
            says(
                3,
                "rows 3 to 4 (from f:4 on) were not committed; 2 rows were committed before, and 4 rows that were \
                     on their way behind the first failed commit"
            )
        );
        assert_eq!(
            outcome_of([Ok(1), Ok(2), lost(), lost()]),
            says(
                4,
                "from row 5 on (f:6) it is unknown what was committed; 4 rows were committed before"
            )
        );
        // What is certain about the first must not hide what is not certain about the second.
        assert_eq!(
            outcome_of([overloaded(), lost()]),
            says(
                4,
                "from row 3 on (f:4) it is unknown what was committed; 0 rows were committed before"
            )
        );
    }
}
