//! One subscriber over all its breaks, each thing that it is told recorded.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use storage_protocol::{
    Continuity, KeyState, Position, Storage, StorageError, Watch, WatchEvent, WatchMode,
    WatchOptions, WatchStart,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::client::Client;
use super::{key_range, logged, text};
use crate::history::{Mode, Promise, Range, Start, Told, Violation, WatchStream};

/// The token of the last mark that is asked for; others count from 1.
const LAST: u64 = 1 << 40;

/// What to watch, and how.
pub(super) struct Plan {
    name: String,
    mode: Mode,
    range: Range,
    from_beginning: bool,
    min_interval: Duration,
    /// Whether it takes its time with each event now and then.
    slow: bool,
    random: StdRng,
}

impl Plan {
    /// The first two watch everything, in each mode; the others by chance.
    pub(super) fn from_random(number: u32, random: &mut StdRng) -> Self {
        let ranges = [
            Range::all(),
            Range::new("b/", Some("b0")),
            Range::new("b/2", Some("c/")),
            Range::new("c", Some("c\0")),
            Range::new("c/1", None),
        ];
        let any_mode = *[Mode::Every, Mode::Latest]
            .choose(random)
            .unwrap_or(&Mode::Every);
        let (mode, range) = match number {
            0 => (Mode::Every, None),
            1 => (Mode::Latest, None),
            _ => (any_mode, ranges.choose(random).cloned()),
        };
        Self {
            name: format!("w{number}"),
            mode,
            range: range.unwrap_or_else(Range::all),
            from_beginning: random.random_bool(0.5),
            min_interval: Duration::from_millis(*[0, 0, 15].choose(random).unwrap_or(&0)),
            slow: random.random_bool(0.3),
            random: StdRng::seed_from_u64(random.random()),
        }
    }

    fn options(&self, start: WatchStart) -> WatchOptions {
        let min_interval = self.min_interval;
        let mode = match self.mode {
            Mode::Every => WatchMode::Every,
            Mode::Latest => WatchMode::Latest { min_interval },
        };
        WatchOptions { start, mode }
    }
}

/// Whether to go on with a watch.
enum Next {
    /// Open it again.
    Again,
    /// It came to the end, or cannot go on.
    Over,
}

struct Follower {
    client: Client,
    plan: Plan,
    stream: WatchStream,
    /// Where to go on: the last commit or mark; in `Latest` the last mark.
    at: Option<Position>,
    tokens: u64,
    finishing: watch::Receiver<Option<u64>>,
}

/// Follows until a mark at or behind the last revision, which `finishing` tells in the end.
pub(super) async fn follow(
    client: Client,
    plan: Plan,
    finishing: watch::Receiver<Option<u64>>,
) -> WatchStream {
    let stream = WatchStream {
        name: plan.name.clone(),
        mode: plan.mode,
        range: plan.range.clone(),
        events: Vec::new(),
    };
    let mut follower = Follower {
        client,
        plan,
        stream,
        at: None,
        tokens: 0,
        finishing,
    };
    loop {
        let storage = follower.client.storage().await;
        let (start, asked) = match follower.at {
            Some(at) => (WatchStart::After(at), Start::After(at.revision.0)),
            None if follower.plan.from_beginning => (WatchStart::Beginning, Start::Beginning),
            None => (WatchStart::Now, Start::Now),
        };
        let range = key_range(&follower.plan.range);
        let opened = storage.watch(range, follower.plan.options(start)).await;
        let next = match opened {
            Ok(watch) => {
                let position = watch.start();
                let revision = follower.client.shared.revision(position);
                // `Latest` from the beginning begins anew until there was a mark: what it told before is no position.
                if asked != Start::Beginning || follower.plan.mode == Mode::Every {
                    follower.at.get_or_insert(position);
                }
                follower.note(Told::Opened {
                    start: asked,
                    position: revision,
                });
                follower.read(watch).await
            }
            Err(error) => follower.failed(&error),
        };
        match next {
            Next::Again => sleep(Duration::from_millis(5)).await,
            Next::Over => break,
        }
    }
    follower.client.close().await;
    follower.stream
}

impl Follower {
    fn note(&mut self, told: Told) {
        let now = self.client.shared.recorder.now();
        self.stream.events.push((now, told));
    }

    /// An error that says the position is no good is the end: runs give no cause for it, so the judges are told.
    fn failed(&mut self, error: &StorageError) -> Next {
        match error {
            StorageError::Compacted { .. } | StorageError::EpochChanged { .. } => {
                self.strange(error.to_string());
                Next::Over
            }
            _ => Next::Again,
        }
    }

    async fn read(&mut self, mut watch: Watch) -> Next {
        let mut finishing = self.finishing.clone();
        let mut last = *finishing.borrow_and_update();
        if last.is_some() {
            self.ask(&mut watch, LAST);
        }
        let mut next_ask = Instant::now();
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                _ = finishing.changed(), if last.is_none() => {
                    last = *finishing.borrow_and_update();
                    self.ask(&mut watch, LAST);
                    continue;
                }
                // By the clock, whatever comes meanwhile: a mark says most where commits are dense.
                () = sleep_until(next_ask) => {
                    next_ask += Duration::from_millis(self.plan.random.random_range(10..100));
                    // With the last one too: an answer can be lost with its connection.
                    self.tokens += 1;
                    let token = self.tokens;
                    self.ask(&mut watch, token);
                    continue;
                }
            };
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => return self.ended("without a word"),
                Err(error) => {
                    self.ended(&error.to_string());
                    return self.failed(&error);
                }
            };
            if self
                .take(event)
                .is_some_and(|mark| last.is_some_and(|last| mark >= last))
            {
                return Next::Over;
            }
            if self.plan.slow && self.plan.random.random_bool(0.05) && last.is_none() {
                sleep(Duration::from_millis(self.plan.random.random_range(1..40))).await;
            }
        }
    }

    fn strange(&self, what: String) {
        let what = format!("watch {}: {what}", self.plan.name);
        let violation = Violation::new(Promise::Resumable, what);
        self.client.shared.strange(violation);
    }

    fn ask(&mut self, watch: &mut Watch, token: u64) {
        self.note(Told::Asked { token });
        watch.request_progress(token);
    }

    fn ended(&mut self, error: &str) -> Next {
        let error = error.to_owned();
        self.note(Told::Broke { error });
        Next::Again
    }

    /// Records an event; the revision, if it is a mark.
    fn take(&mut self, event: WatchEvent) -> Option<u64> {
        let mut mark = None;
        let told = match event {
            WatchEvent::Commit(record) => {
                if let Some(at) = &mut self.at {
                    at.revision = record.revision;
                }
                Told::Commit(logged(&record))
            }
            WatchEvent::State { key, state } => Told::State {
                key: text(&key),
                revision: state.revision().0,
                value: match &state {
                    KeyState::Live(entry) => Some(super::lane::from_stored(&entry.value)),
                    KeyState::Removed(_) => None,
                },
            },
            WatchEvent::Progress { position, token } => {
                self.at = Some(position);
                let revision = self.client.shared.revision(position);
                mark = Some(revision);
                Told::Mark { revision, token }
            }
            WatchEvent::Reset => Told::Reset,
            WatchEvent::Continuity(Continuity::Continuous) => Told::Continuous,
            // Nothing is purged in a run, and no history ends.
            WatchEvent::Continuity(Continuity::Resynced { why }) => {
                self.strange(format!("resynced without a cause: {why:?}"));
                Told::Resynced {
                    why: format!("{why:?}"),
                }
            }
            WatchEvent::Continuity(Continuity::Lost { from, to }) => Told::Lost {
                from: from.revision.0,
                to: to.revision.0,
            },
            other => {
                self.strange(format!("told {other:?}"));
                return None;
            }
        };
        self.note(told);
        mark
    }
}
