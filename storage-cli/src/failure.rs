//! From what went wrong to words and an exit code.
//!
//! [`storage_exit_code`] is the one mapping of [`StorageError`]; the codes are a contract that scripts rely on. The
//! code 1 stands only for what the state of the store spoke against, so that a script may conclude from it.

use std::fmt;
use std::process::ExitCode;

use storage_protocol::deliveries::DeliveryError;
use storage_protocol::{Epoch, Outcome, Revision, StorageError};

use crate::api::Refused;
use crate::{escape, tell};

/// How a command ended that did what it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
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
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    Usage(text.into()).into()
}

/// Nobody reads stdout any more (`| head`): the work is over, and nothing is wrong.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// A signal came first.
#[derive(Debug)]
pub(crate) struct Interrupted {
    pub(crate) outcome: Outcome,
    /// What there is to say about what was done.
    pub(crate) what: String,
}

impl Interrupted {
    pub(crate) fn new(outcome: Outcome) -> Self {
        let what = String::new();
        Self { outcome, what }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self.outcome {
            Outcome::Unknown => 4,
            Outcome::NotExecuted | Outcome::Refused => 130,
        }
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted{}", self.what)
    }
}

impl std::error::Error for Interrupted {}

/// The exit code of any failure.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if find::<StdoutClosed>(error).is_some() {
        return 0;
    }
    if let Some(refused) = find::<Refused>(error) {
        return refused.exit_code();
    }
    if find::<DeliveryError>(error).is_some() {
        return 1;
    }
    match (find::<Interrupted>(error), find::<StorageError>(error)) {
        (Some(interrupted), _) => interrupted.exit_code(),
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
            StorageError::Compacted { .. }
            | StorageError::EpochChanged { .. }
            | StorageError::AccessChanged,
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

/// Tells people what happened, and of a write what is certain. `wrote`: a commit of this command was handed over to be
/// sent.
pub(crate) fn report(error: &anyhow::Error, wrote: bool) {
    if find::<StdoutClosed>(error).is_some() {
        return;
    }
    tell(format_args!("error: {}", words(error)));
    if let Some(outcome) = outcome(error)
        && (outcome == Outcome::Unknown || wrote && may_come_again(error))
    {
        tell(format_args!("outcome: {}", outcome_text(outcome)));
    }
}

/// The whole chain. What a peer says is escaped; what is ours may be already.
fn words(error: &anyhow::Error) -> String {
    let causes = error.chain().map(|cause| match cause.downcast_ref() {
        Some(error) => storage_words(error),
        None => cause.to_string(),
    });
    causes.collect::<Vec<_>>().join(": ")
}

/// A failed call in words for people at a command line.
pub(crate) fn storage_words(error: &StorageError) -> String {
    match error {
        StorageError::CheckFailed { key, actual } => {
            let key = escape::text(key);
            match actual {
                Some(revision) => format!("check failed: key \"{key}\" is at revision {revision}"),
                None => format!("check failed: key \"{key}\" is absent"),
            }
        }
        StorageError::EpochChanged { epoch, fork } => history_words(*epoch, *fork),
        error => escape::text(error.to_string().as_bytes()).into_owned(),
    }
}

/// What a store's history is after a change of its epoch.
pub(crate) fn epoch_words(epoch: Epoch, fork: Revision) -> String {
    match fork {
        Revision(0) => format!("this is another store now, or it was wiped (its epoch is {epoch})"),
        fork => format!("the store's history is now epoch {epoch}, forked at revision {fork}"),
    }
}

/// Why a position is no place in this store's history.
fn history_words(epoch: Epoch, fork: Revision) -> String {
    match fork {
        Revision(0) => {
            format!("this position is from another store (the epoch of this one is {epoch})")
        }
        fork => format!(
            "this position is from a history that the store has left: its epoch is {epoch} now, forked at revision {fork}"
        ),
    }
}

/// Whether repeating it makes any difference: to say so of what is wrong as it stands would mislead.
fn may_come_again(error: &anyhow::Error) -> bool {
    !matches!(
        find::<StorageError>(error),
        Some(
            StorageError::InvalidArgument { .. }
                | StorageError::LimitExceeded { .. }
                | StorageError::Unsupported { .. }
        )
    )
}

fn outcome(error: &anyhow::Error) -> Option<Outcome> {
    let interrupted = find::<Interrupted>(error).map(|interrupted| interrupted.outcome);
    let interrupted = interrupted.or_else(|| find(error).map(Refused::outcome));
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
    use storage_protocol::Limit;

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
            (StorageError::QuotaExceeded { limit, max }, 1),
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
        let interrupted = |outcome| exit_code(&Interrupted::new(outcome).into());
        assert_eq!(interrupted(Outcome::NotExecuted), 130);
        assert_eq!(interrupted(Outcome::Unknown), 4);
    }

    #[test]
    fn what_a_peer_says_does_nothing_to_a_terminal_and_is_told_from_what_is_ours() {
        let message = "no\u{1b}[2J\nerror: \\x1b \u{202e}".to_owned();
        let error = anyhow::Error::new(StorageError::InvalidArgument { message });
        let error = error.context("rows 1 to 2");
        assert_eq!(
            words(&error),
            "rows 1 to 2: no\\x1b[2J\\nerror: \\\\x1b \\u{202e}"
        );
        let key = vec![0, b'\\'].into();
        let error = StorageError::CheckFailed { key, actual: None };
        assert_eq!(
            storage_words(&error),
            "check failed: key \"\\x00\\\\\" is absent"
        );
    }

    #[test]
    fn a_position_of_another_store_is_told_from_one_behind_a_fork() {
        let words = |fork| {
            storage_words(&StorageError::EpochChanged {
                epoch: Epoch(1),
                fork: Revision(fork),
            })
        };
        assert!(
            words(0).contains("this position is from another store"),
            "{}",
            words(0)
        );
        assert!(words(7).contains("forked at revision 7"), "{}", words(7));
    }
}
