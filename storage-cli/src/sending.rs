//! Sends the batches of an import, and takes what becomes of them.
//!
//! They are sent in the file's order, several at a time, and answers are taken in that order too. After the first failure
//! nothing more is sent, and what is certain covers the commits that were on their way by then; so it does after a signal,
//! which waits for them a little, and where the journal cannot be written.
//!
//! A commit that the server had no room for (a quota's, mostly) is no failure yet: nothing else is sent until all that is on
//! its way is answered, then what was refused comes again, one by one, in the file's order. Those behind it may have been
//! executed meanwhile: what they wrote is left out of it, as of rows with equal keys the last one stays. With a journal it
//! would then have other contents than the same rows have in another run, so there that ends the import.
//!
//! Manifests of objects wait until all before them is committed: their parts are then, and no reader finds an object that
//! cannot be read.
//!
//! Invariant: each row is in one state (committed, not committed, unknown) when this ends.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending};
use indicatif::ProgressBar;
use storage_protocol::{CommitOptions, Key, Outcome, Position, Result, Storage, StorageError};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::app::{App, END_TIMEOUT};
use crate::batches::Prepared;
use crate::failure::{Interrupted, storage_words, usage};
use crate::journal::Journal;
use crate::tally::{Span, Tally};
use crate::tell;
use storage_client::RemoteStorage;

/// Commits on their way: enough to cover the way to the server and its disk; with the bytes of a batch it bounds memory.
const IN_FLIGHT_MAX: usize = 8;

/// How long what was refused waits at first, and at most: each further refusal doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// After so many commits that were taken without a refusal twice as many are on their way at a time.
const CALM_COMMITS: u32 = 64;

/// Why no more is sent. After a failed commit it is `End` too; the tally knows.
pub(crate) enum Stopped {
    End,
    Interrupted,
    /// Nothing more can be sent: the journal cannot be written, or does not fit.
    Failed(anyhow::Error),
}

/// A commit on its way.
struct InFlight {
    /// To be sent again, should it be refused for a while.
    prepared: Prepared,
    /// Of its session, where there is a journal.
    number: Option<u64>,
    answer: BoxFuture<'static, Result<Position>>,
}

/// Sends batches, and keeps the journal if there is one.
pub(crate) struct Sender {
    pub(crate) storage: RemoteStorage,
    pub(crate) journal: Option<Journal>,
}

impl Sender {
    /// Notes the session's incarnation, if it has come back since.
    fn note_session(&mut self) -> anyhow::Result<()> {
        let Some(journal) = &mut self.journal else {
            return Ok(());
        };
        let info = *self.storage.session_info().borrow();
        journal.came_back(info.id, info.incarnation)
    }

    /// Sends a batch; `None` where the journal says that it is committed. `again`: it was refused in this run.
    fn send(&mut self, prepared: Prepared, again: bool) -> anyhow::Result<Option<InFlight>> {
        let (rows, first_row) = (prepared.rows, prepared.first_row);
        let options = CommitOptions::labelled("import");
        self.note_session()?;
        let mut number = None;
        if let Some(journal) = &mut self.journal {
            if journal.is_done(first_row, rows) {
                return Ok(None);
            }
            if journal.contradicts(first_row, rows) {
                return Err(usage(format!(
                    "rows {first_row} to {} do not make the commits that the session file tells of; have the server's \
                     limits changed?",
                    first_row + rows - 1
                )));
            }
            number = Some(match journal.unanswered_number(first_row, rows) {
                Some(number) => number,
                None => {
                    // Again in this run it has no key of what overtook it: see `Waiting::make_way`.
                    if !again && journal.is_overtaken(first_row) {
                        let last = first_row + rows - 1;
                        tell(format!(
                            "rows {first_row} to {last} were refused before and go in now, behind later rows: of a key \
                             that stands in both, this older row stays"
                        ));
                    }
                    let sent = self.storage.session_info().borrow().sent;
                    journal.send(first_row, rows, sent)?
                }
            });
        }
        let (storage, batch) = (self.storage.clone(), prepared.batch.clone());
        let mut commit = async move {
            match number {
                Some(number) => storage.commit_as(number, batch, options).await,
                None => storage.commit(batch, options).await,
            }
        }
        .boxed();
        // Ordering: commits are applied in the order in which they are first polled.
        let first = commit.poll_unpin(&mut Context::from_waker(Waker::noop()));
        let answer = match first {
            Poll::Ready(answer) => futures_util::future::ready(answer).boxed(),
            Poll::Pending => commit,
        };
        Ok(Some(InFlight {
            prepared,
            number,
            answer,
        }))
    }

    fn answered(&mut self, number: Option<u64>, answer: &Result<Position>) -> anyhow::Result<()> {
        self.note_session()?;
        let (Some(journal), Some(number)) = (&mut self.journal, number) else {
            return Ok(());
        };
        match answer {
            Ok(position) => journal.executed(number, position.revision),
            Err(error) if error.outcome() != Outcome::Unknown => journal.refused(number),
            Err(_) => Ok(()),
        }
    }

    /// The import stops before its end.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if self.journal.is_none() {
            return error;
        }
        error.context("the session file knows; the same command goes on from there")
    }

    /// A signal came, and everything that was on its way has been answered.
    pub(crate) fn interrupted(&self, tally: &Tally) -> Interrupted {
        let rows = tally.rows + tally.rows_before;
        let next = match self.journal {
            Some(_) => "run the same command again to continue",
            None => {
                "the same command again begins with the first row (with --session-file it would continue)"
            }
        };
        Interrupted {
            what: format!(" after {rows} rows (kept); {next}"),
            ..Interrupted::new(Outcome::NotExecuted)
        }
    }
}

/// Commits that the server had no room for, in the file's order. All of them come before what was not sent yet.
struct Waiting {
    commits: VecDeque<(Prepared, StorageError)>,
    /// So many are on their way at most.
    window: usize,
    /// Taken since the last refusal.
    calm: u32,
    /// The first refusal since something was taken.
    since: Option<Instant>,
    pause: Duration,
    was_told: bool,
}

impl Waiting {
    fn new() -> Self {
        Self {
            commits: VecDeque::new(),
            window: IN_FLIGHT_MAX,
            calm: 0,
            since: None,
            pause: PAUSE_MIN,
            was_told: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.commits.is_empty()
    }

    /// One that was refused is to come again; `false`: nothing was taken for so long that it is not.
    fn add(&mut self, prepared: Prepared, error: StorageError, patience: Duration) -> bool {
        if !self.was_told {
            tell(format_args!(
                "slowed down by the server: {}; what it refuses so is sent again, one commit at a time",
                storage_words(&error)
            ));
            self.was_told = true;
        }
        let row = prepared.first_row;
        let place = self
            .commits
            .partition_point(|(other, _)| other.first_row < row);
        self.commits.insert(place, (prepared, error));
        (self.window, self.calm) = (1, 0);
        self.since.get_or_insert_with(Instant::now).elapsed() < patience
    }

    /// How long to wait before the first of them is sent again.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
    }

    /// One was taken: what it wrote is left out of those that come before it in the file, but are executed behind it.
    /// Gives those of which nothing is left then. Fails where nothing may be left out.
    fn make_way(&mut self, taken: &Prepared, may_leave_out: bool) -> Result<Vec<Span>, Overtaken> {
        self.since = None;
        self.pause = PAUSE_MIN;
        self.calm += 1;
        if self.calm == CALM_COMMITS {
            (self.window, self.calm) = ((self.window * 2).min(IN_FLIGHT_MAX), 0);
        }
        let row = taken.first_row;
        let is_before = |(waits, _): &(Prepared, StorageError)| waits.first_row < row;
        if !self.commits.iter().any(is_before) {
            return Ok(Vec::new());
        }
        let operations = taken.batch.operations.iter();
        let written: HashSet<&Key> = operations.map(|operation| operation.key()).collect();
        let mut settled = Vec::new();
        for (waits, _) in self
            .commits
            .iter_mut()
            .filter(|waits| waits.0.first_row < row)
        {
            let before = waits.batch.operations.len();
            let stays = |key: &Key| !written.contains(key);
            if may_leave_out {
                waits
                    .batch
                    .operations
                    .retain(|operation| stays(operation.key()));
            } else if !waits
                .batch
                .operations
                .iter()
                .all(|operation| stays(operation.key()))
            {
                return Err(Overtaken);
            }
            if before > 0 && waits.batch.operations.is_empty() {
                settled.push(waits.span());
            }
        }
        self.commits
            .retain(|(waits, _)| !waits.batch.operations.is_empty());
        Ok(settled)
    }

    /// They do not come again.
    fn give_up(&mut self, tally: &mut Tally) {
        for (prepared, error) in self.commits.drain(..) {
            tally.fail(prepared.span(), error);
        }
    }
}

/// A later commit with a key of one that waits was executed.
#[derive(Debug)]
struct Overtaken;

/// What goes on while an import sends.
struct Sending<'a> {
    sender: &'a mut Sender,
    tally: &'a mut Tally,
    in_flight: VecDeque<InFlight>,
    /// It is sent when nothing else is on its way, or waits.
    behind_all: Option<Prepared>,
    waiting: Waiting,
    /// How long nothing may be taken until what waits does not come again.
    patience: Duration,
    stopped: Option<Stopped>,
    interrupted: bool,
    /// The journal; behind a line that was not written whole, none could be read.
    writable: bool,
}

pub(crate) async fn send_all(
    sender: &mut Sender,
    batches: &mut mpsc::Receiver<Prepared>,
    tally: &mut Tally,
    app: &App,
    bar: &ProgressBar,
) -> Stopped {
    let mut sending = Sending {
        sender,
        tally,
        in_flight: VecDeque::new(),
        behind_all: None,
        waiting: Waiting::new(),
        patience: app.timeout(),
        stopped: None,
        interrupted: false,
        writable: true,
    };
    let mut end = pin!(sleep(Duration::ZERO));
    let mut pause = pin!(sleep(Duration::ZERO));
    loop {
        if sending.may_send()
            && sending.in_flight.is_empty()
            && let Some(prepared) = sending.behind_all.take()
        {
            sending.send(prepared, false);
        }
        app.changing(!sending.in_flight.is_empty());
        if let Some(stopped) = sending.ended() {
            return stopped;
        }
        let (sends_again, sends_more) = (sending.sends_again(), sending.sends_more());
        tokio::select! {
            biased;
            // At the end of the file and after a failure, too, a signal bounds the wait for answers.
            () = app.interrupt.cancelled(), if !sending.interrupted => {
                sending.interrupted = true;
                sending.stopped.get_or_insert(Stopped::Interrupted);
                end.as_mut().reset(tokio::time::Instant::now() + END_TIMEOUT);
            }
            answer = front(&mut sending.in_flight) => {
                if sending.answered(answer) {
                    let next = tokio::time::Instant::now() + sending.waiting.next_pause();
                    pause.as_mut().reset(next);
                }
                bar.set_message(sending.tally.committed_text());
            }
            () = end.as_mut(), if sending.interrupted => {
                sending.waiting.give_up(sending.tally);
                for commit in sending.in_flight.drain(..) {
                    sending.tally.fail(commit.prepared.span(), no_answer());
                }
            }
            () = pause.as_mut(), if sends_again => {
                if let Some((prepared, _)) = sending.waiting.commits.pop_front() {
                    sending.send(prepared, true);
                }
            }
            prepared = batches.recv(), if sends_more => match prepared {
                Some(prepared) => {
                    sending.tally.duplicates += prepared.duplicates;
                    match prepared.behind_all {
                        true => sending.behind_all = Some(prepared),
                        false => sending.send(prepared, false),
                    }
                }
                None => sending.stopped = Some(Stopped::End),
            }
        }
    }
}

impl Sending<'_> {
    /// Why no more is sent, once nothing is on its way.
    fn ended(&mut self) -> Option<Stopped> {
        let goes_on = match self.stopped {
            None => true,
            Some(Stopped::End) => !self.waiting.is_empty() && !self.interrupted,
            Some(Stopped::Interrupted | Stopped::Failed(_)) => false,
        };
        if !self.in_flight.is_empty() || goes_on && self.tally.failures.is_empty() {
            return None;
        }
        let waits = self.waiting.commits.front();
        let was_overtaken =
            waits.is_some_and(|(waits, _)| self.tally.is_overtaken(waits.first_row));
        let mut stopped = self.stopped.take().unwrap_or(Stopped::End);
        if self.interrupted && matches!(stopped, Stopped::End) && !self.waiting.is_empty() {
            stopped = Stopped::Interrupted;
        }
        // Of an interruption it is told how many rows are kept: those are the first ones, or more has to be said.
        if was_overtaken || !matches!(stopped, Stopped::Interrupted) {
            self.waiting.give_up(self.tally);
        }
        Some(stopped)
    }

    fn sends_again(&self) -> bool {
        let may =
            matches!(self.stopped, None | Some(Stopped::End)) && self.tally.failures.is_empty();
        may && !self.interrupted && !self.waiting.is_empty() && self.in_flight.is_empty()
    }

    fn may_send(&self) -> bool {
        let may = self.stopped.is_none() && self.tally.failures.is_empty();
        may && self.waiting.is_empty()
    }

    fn sends_more(&self) -> bool {
        let has_room = self.in_flight.len() < self.waiting.window;
        self.may_send() && self.behind_all.is_none() && has_room
    }

    fn send(&mut self, prepared: Prepared, again: bool) {
        let (span, rows) = (prepared.span(), prepared.rows);
        match self.sender.send(prepared, again) {
            Ok(Some(commit)) => self.in_flight.push_back(commit),
            Ok(None) => self.tally.rows_before += rows,
            Err(error) => {
                (self.writable, self.stopped) = (false, Some(Stopped::Failed(error)));
                if again {
                    self.tally.fail(span, not_sent());
                }
            }
        }
    }

    /// The oldest commit was answered so. `true`: it is to come again.
    fn answered(&mut self, answer: Result<Position>) -> bool {
        let Some(InFlight {
            prepared, number, ..
        }) = self.in_flight.pop_front()
        else {
            return false;
        };
        if self.writable
            && let Err(error) = self.sender.answered(number, &answer)
        {
            (self.writable, self.stopped) = (false, Some(Stopped::Failed(error)));
        }
        match answer {
            Ok(position) => {
                self.tally
                    .add(prepared.span(), position, !self.waiting.is_empty());
                let may_leave_out = self.sender.journal.is_none();
                match self.waiting.make_way(&prepared, may_leave_out) {
                    Ok(settled) => settled.iter().for_each(|span| self.tally.settle(*span)),
                    Err(Overtaken) => self.waiting.give_up(self.tally),
                }
                false
            }
            Err(error @ StorageError::Overloaded { .. }) if self.tally.failures.is_empty() => {
                if self.waiting.add(prepared, error, self.patience) {
                    return true;
                }
                self.waiting.give_up(self.tally);
                false
            }
            Err(error) => {
                self.waiting.give_up(self.tally);
                self.tally.fail(prepared.span(), error);
                false
            }
        }
    }
}

/// Of a commit that was to come again, and did not go out.
fn not_sent() -> StorageError {
    StorageError::Closed {
        reason: "it was refused for a while, and not sent again".to_owned(),
        outcome: Outcome::NotExecuted,
    }
}

/// Of a commit that a signal did not wait for.
fn no_answer() -> StorageError {
    StorageError::Closed {
        reason: "interrupted before the answer came".to_owned(),
        outcome: Outcome::Unknown,
    }
}

/// The answer to the oldest commit. Cancel-safe: the commit stays where it is.
async fn front(in_flight: &mut VecDeque<InFlight>) -> Result<Position> {
    match in_flight.front_mut() {
        Some(commit) => (&mut commit.answer).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Batch, Limit};

    use super::*;

    fn rows(first_row: u64, keys: &[&'static str]) -> Prepared {
        let batch = keys
            .iter()
            .fold(Batch::new(), |batch, key| batch.put(*key, "x"));
        Prepared {
            batch,
            first_row,
            first_line: first_row,
            rows: keys.len() as u64,
            duplicates: 0,
            behind_all: false,
        }
    }

    fn waiting(commits: &[Prepared]) -> Waiting {
        let mut waiting = Waiting::new();
        waiting.was_told = true;
        let (limit, max) = (Limit::CommitRate, 1);
        for commit in commits {
            let error = StorageError::Overloaded { limit, max };
            assert!(waiting.add(commit.clone(), error, Duration::from_secs(9)));
        }
        waiting
    }

    /// First row and keys of what waits.
    fn left(waiting: &Waiting) -> Vec<(u64, String)> {
        let commits = waiting.commits.iter();
        let keys = |batch: &Batch| {
            let keys = batch.operations.iter().map(|operation| operation.key());
            keys.map(|key| String::from_utf8_lossy(key).into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        commits
            .map(|(waits, _)| (waits.first_row, keys(&waits.batch)))
            .collect()
    }

    #[test]
    fn what_a_later_commit_wrote_is_left_out_of_those_before_it_alone() {
        let mut waiting = waiting(&[rows(7, &["a", "d"]), rows(1, &["a", "b"]), rows(3, &["a"])]);
        let settled = waiting.make_way(&rows(5, &["a", "c"]), true).unwrap();
        assert_eq!(left(&waiting), [(1, "b".to_owned()), (7, "a d".to_owned())]);
        let settled: Vec<_> = settled
            .iter()
            .map(|span| (span.first_row, span.rows))
            .collect();
        assert_eq!(settled, [(3, 1)]);
        // The first of them comes again, and is taken: the others stay.
        assert!(
            waiting
                .make_way(&rows(1, &["a", "b"]), true)
                .unwrap()
                .is_empty()
        );
        assert_eq!(left(&waiting).len(), 2);
    }

    #[test]
    fn where_nothing_may_be_left_out_only_other_keys_overtake() {
        let mut waiting = waiting(&[rows(1, &["a", "b"]), rows(9, &["c"])]);
        assert!(
            waiting
                .make_way(&rows(5, &["c"]), false)
                .unwrap()
                .is_empty()
        );
        waiting.make_way(&rows(5, &["c", "b"]), false).unwrap_err();
        assert_eq!(left(&waiting), [(1, "a b".to_owned()), (9, "c".to_owned())]);
    }

    #[test]
    fn it_gets_slower_with_each_refusal_and_faster_with_what_is_taken() {
        let mut waiting = waiting(&[rows(1, &["a"])]);
        let pauses: Vec<_> = (0..6).map(|_| waiting.next_pause().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000]);
        assert_eq!(waiting.window, 1);
        waiting.commits.clear();
        for calm in [2, 4, 8, 8] {
            for _ in 0..CALM_COMMITS {
                waiting.make_way(&rows(1, &["a"]), true).unwrap();
            }
            assert_eq!(waiting.window, calm);
        }
        assert_eq!(waiting.next_pause(), PAUSE_MIN);
    }
}
