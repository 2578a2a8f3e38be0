//! From what went wrong to words and an exit code.
//!
//! [`storage_exit_code`] is the one mapping of [`StorageError`]; the codes are a contract that scripts rely on. The
//! code 1 stands only for what the state of the store spoke against, so that a script may conclude from it.

use std::fmt;
use std::process::ExitCode;

use storage_protocol::{Outcome, StorageError};

use super::tell;

/// How a command ended that did what it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Done,
    /// Something that was asked for is not there; it has been told.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Refused => Self::from(1),
        }
    }
}

/// Wrong arguments, configuration or input.
#[derive(Debug)]
pub(super) struct Usage(pub(super) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

pub(super) fn usage(text: impl Into<String>) -> anyhow::Error {
    Usage(text.into()).into()
}

/// Nobody reads stdout any more (`| head`): the work is over, and nothing is wrong.
#[derive(Debug)]
pub(super) struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// A signal came first.
#[derive(Debug)]
pub(super) struct Interrupted {
    pub(super) outcome: Outcome,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The exit code of any failure.
pub(super) fn exit_code(error: &anyhow::Error) -> u8 {
    if find::<StdoutClosed>(error).is_some() {
        return 0;
    }
    match (find::<Interrupted>(error), find::<StorageError>(error)) {
        (Some(interrupted), _) if interrupted.outcome == Outcome::Unknown => 4,
        (Some(_), _) => 130,
        (None, Some(error)) => storage_exit_code(error),
        (None, None) => 2,
    }
}

/// The exit code of a failed call.
fn storage_exit_code(error: &StorageError) -> u8 {
    match (error.outcome(), error) {
        (Outcome::Unknown, _) => 4,
        (Outcome::Refused, _) => 1,
        // The store moved on from the position that was asked for. Only a watch gives one.
        (
            Outcome::NotExecuted,
            StorageError::Compacted { .. } | StorageError::EpochChanged { .. },
        ) => 1,
        (
            Outcome::NotExecuted,
            StorageError::InvalidArgument { .. }
            | StorageError::LimitExceeded { .. }
            | StorageError::Unsupported { .. },
        ) => 2,
        // Not reached, not let in, or not served now. A new variant, too, is better tried again than believed.
        (Outcome::NotExecuted, _) => 3,
    }
}

/// Tells people what happened, and what is certain.
pub(super) fn report(error: &anyhow::Error) {
    if find::<StdoutClosed>(error).is_some() {
        return;
    }
    tell(format_args!("error: {error:#}"));
    if let Some(outcome) = outcome(error) {
        tell(format_args!("outcome: {}", outcome_text(outcome)));
    }
}

fn outcome(error: &anyhow::Error) -> Option<Outcome> {
    let interrupted = find::<Interrupted>(error).map(|interrupted| interrupted.outcome);
    interrupted.or_else(|| find::<StorageError>(error).map(StorageError::outcome))
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotExecuted => "not executed; it had no effect and is safe to repeat",
        Outcome::Refused => {
            "refused; nothing was written, and repeating gives the same until the state changes"
        }
        Outcome::Unknown => {
            "unknown; it may have been carried out or not, so read before you repeat it"
        }
    }
}

fn find<E: std::error::Error + 'static>(error: &anyhow::Error) -> Option<&E> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Epoch, Limit, Revision};

    use super::*;

    /// Every variant with every outcome it can have.
    fn all() -> Vec<(StorageError, u8)> {
        let text = || "x".to_owned();
        let (limit, max, actual) = (Limit::Key, 1, 2);
        let mut all = vec![
            (
                StorageError::CheckFailed {
                    key: "k".into(),
                    actual: None,
                },
                1,
            ),
            (StorageError::LimitExceeded { limit, max, actual }, 2),
            (StorageError::InvalidArgument { message: text() }, 2),
            (
                StorageError::Compacted {
                    oldest: Revision(1),
                },
                1,
            ),
            (
                StorageError::EpochChanged {
                    epoch: Epoch(1),
                    fork: Revision(1),
                },
                1,
            ),
            (StorageError::SnapshotExpired, 3),
            (StorageError::Overloaded { limit, max }, 3),
            (
                StorageError::StorageFull {
                    available: 1,
                    reserve: 2,
                },
                3,
            ),
            (StorageError::ReadOnly { reason: text() }, 3),
            (StorageError::AccessDenied { message: text() }, 3),
            (StorageError::Cancelled, 3),
            (StorageError::ConnectFailed { message: text() }, 3),
            (StorageError::Unsupported { what: text() }, 2),
            (StorageError::NumberReused { number: 7 }, 3),
        ];
        for (outcome, code) in [
            (Outcome::NotExecuted, 3),
            (Outcome::Refused, 1),
            (Outcome::Unknown, 4),
        ] {
            all.push((StorageError::DeadlineExceeded { outcome }, code));
            all.push((
                StorageError::Closed {
                    reason: text(),
                    outcome,
                },
                code,
            ));
            all.push((
                StorageError::PeerMisbehaved {
                    message: text(),
                    outcome,
                },
                code,
            ));
            all.push((
                StorageError::Internal {
                    message: text(),
                    outcome,
                },
                code,
            ));
        }
        all
    }

    #[test]
    fn each_storage_error_has_its_code() {
        for (error, code) in all() {
            assert_eq!(storage_exit_code(&error), code, "{error:?}");
            let wrapped = anyhow::Error::new(error.clone()).context("rows 1 to 2");
            assert_eq!(exit_code(&wrapped), code, "{error:?} with a context");
            assert_eq!(outcome(&wrapped), Some(error.outcome()), "{error:?}");
        }
    }

    #[test]
    fn other_failures_have_theirs() {
        assert_eq!(exit_code(&usage("no such column")), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("disk full")), 2);
        assert_eq!(
            exit_code(&anyhow::Error::new(StdoutClosed).context("scan")),
            0
        );
        let interrupted = |outcome| exit_code(&Interrupted { outcome }.into());
        assert_eq!(interrupted(Outcome::NotExecuted), 130);
        assert_eq!(interrupted(Outcome::Unknown), 4);
    }
}
