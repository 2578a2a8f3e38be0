//! The task that feeds a replica: one watch `Latest` after the other, each from the last progress event, until it is
//! closed.
//!
//! The follower alone changes the held state. The end of a watch is a break, not the end of the replica: it watches
//! again from the last progress event, or from the beginning if the server's history does not reach back to that.
//! Probes, one at a time, are sent through the watch itself, so that their answers follow on everything that was due
//! before.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use storage_protocol::{
    Continuity, KeyState, Outcome, Position, ResyncReason, Revision, StorageError, Watch,
    WatchEvent, WatchMode, WatchOptions, WatchStart, WatchState,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::clock::Moment;
use super::held::Staging;
use super::shared::{Mark, Shared, closed};
use super::status::ReplicaState;
use crate::sync::lock;

/// The first pause before a watch is asked for again.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Follower {
    shared: Arc<Shared>,
    cancel: CancellationToken,
    next_token: u64,
    /// Whether a watch had fed it and ended: what that meant is reported at the next progress event.
    broken: bool,
    /// Why the next watch begins from the beginning, if it does.
    anew: Option<ResyncReason>,
}

/// Why a watch is not followed any more.
enum Ended {
    /// It ended with an error; `marked`: after at least one progress event.
    Broke { error: StorageError, marked: bool },
    /// The replica stops.
    Stop(StorageError),
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>, cancel: CancellationToken) -> Self {
        Self {
            shared,
            cancel,
            next_token: 1,
            broken: false,
            anew: None,
        }
    }

    /// Follows until the replica is to stop, and returns why.
    pub(super) async fn run(mut self) -> StorageError {
        let mut backoff = Backoff::new(self.shared.options.backoff_max);
        loop {
            let (error, marked) = match self.watch_once().await {
                Ended::Broke { error, marked } => (error, marked),
                Ended::Stop(why) => return why,
            };
            let began_anew = self.note_break(&error, marked);
            if marked {
                backoff.reset();
            }
            if let ControlFlow::Break(why) = self.check_outage(&error) {
                return why;
            }
            // A storage that is closed for good, such as a connection that the server refused, delivers nothing any
            // more.
            if let Err(StorageError::Closed { .. }) = self.shared.storage.limits().await {
                return error;
            }
            // "Begin anew" is an answer of the server and no outage, so there is no wait; except twice in a row.
            if began_anew {
                continue;
            }
            tokio::select! {
                () = self.cancel.cancelled() => return closed(),
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// Notes an error of a watch; true if the next one begins from the beginning because of it.
    fn note_break(&mut self, error: &StorageError, marked: bool) -> bool {
        tracing::debug!(%error, "a replica's watch ended");
        let was_anew = self.anew.is_some() && !marked;
        if marked {
            self.anew = None;
        }
        match *error {
            StorageError::Compacted { oldest } => {
                self.anew = Some(ResyncReason::Compacted { oldest });
            }
            StorageError::EpochChanged { epoch, fork } => {
                self.anew = Some(ResyncReason::EpochChanged { epoch, fork });
            }
            StorageError::AccessChanged => self.anew = Some(ResyncReason::AccessChanged),
            _ => {}
        }
        self.broken |= marked || self.shared.held().position.is_some();
        let mut facts = lock(&self.shared.facts);
        facts.breaks += 1;
        facts.last_error = Some(error.clone());
        if !matches!(facts.state, ReplicaState::Disconnected { .. }) {
            let since = Instant::now();
            facts.state = ReplicaState::Disconnected { since };
        }
        self.anew.is_some() && !was_anew
    }

    /// Gives up after the configured time without a watch.
    fn check_outage(&self, error: &StorageError) -> ControlFlow<StorageError> {
        let facts = lock(&self.shared.facts);
        match (&facts.state, self.shared.options.give_up_after) {
            (ReplicaState::Disconnected { since }, Some(max)) if since.elapsed() >= max => {
                ControlFlow::Break(error.clone())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    async fn watch_once(&mut self) -> Ended {
        let position = self.shared.held().position;
        let start = match (position, self.anew) {
            (Some(position), None) => WatchStart::After(position),
            _ => WatchStart::Beginning,
        };
        let options = WatchOptions {
            start,
            mode: WatchMode::Latest {
                min_interval: self.shared.options.min_interval,
            },
        };
        let opened = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Ended::Stop(closed()),
            opened = self.shared.storage.watch(self.shared.range.clone(), options) => opened,
        };
        let watch = match opened {
            Ok(watch) => watch,
            Err(error) => {
                return Ended::Broke {
                    error,
                    marked: false,
                };
            }
        };
        let pass = Pass::new(start, self.broken, self.anew);
        self.follow(watch, pass).await
    }

    async fn follow(&mut self, mut watch: Watch, mut pass: Pass) -> Ended {
        // Before the first event, so that the first pass is proven at its end.
        let mut probe = Some(self.send_probe(&mut watch));
        let interval = self.shared.options.probe_interval;
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut marked = false;
        loop {
            let event = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Ended::Stop(closed()),
                _ = ticks.tick() => {
                    if let ControlFlow::Break(why) = self.look_at(&watch, marked) {
                        return Ended::Stop(why);
                    }
                    if probe.is_none() {
                        probe = Some(self.send_probe(&mut watch));
                    }
                    continue;
                }
                () = self.shared.probe_wanted.notified(), if probe.is_none() => {
                    probe = Some(self.send_probe(&mut watch));
                    continue;
                }
                event = watch.next() => event,
            };
            let taken = match event {
                Ok(Some(event)) => self.take(event, &mut pass, &mut probe, &mut marked),
                Ok(None) => Err(StorageError::Closed {
                    reason: "the watch ended".to_owned(),
                    outcome: Outcome::NotExecuted,
                }),
                Err(error) => Err(error),
            };
            match taken {
                Ok(()) => {}
                Err(why @ StorageError::LimitExceeded { .. }) => return Ended::Stop(why),
                Err(error) => {
                    self.shared.staged_bytes.store(0, Ordering::Relaxed);
                    return Ended::Broke { error, marked };
                }
            }
            // A watch that is always ready must not keep the thread from others.
            tokio::task::consume_budget().await;
        }
    }

    fn take(
        &mut self,
        event: WatchEvent,
        pass: &mut Pass,
        probe: &mut Option<Probe>,
        marked: &mut bool,
    ) -> Result<(), StorageError> {
        match event {
            WatchEvent::State { key, state } => {
                let revision = state.revision();
                let bytes = key.len()
                    + match &state {
                        KeyState::Live(entry) => entry.value.len(),
                        KeyState::Removed(_) => 0,
                    };
                lock(&self.shared.reloads).told(&key, revision);
                pass.staging.stage(&key, state);
                let staged = pass.staging.bytes();
                self.shared.staged_bytes.store(staged, Ordering::Relaxed);
                {
                    let mut facts = lock(&self.shared.facts);
                    facts.states_fetched += 1;
                    facts.bytes_fetched += bytes as u64;
                }
                let held = self.shared.held().bytes();
                self.shared.check_memory(held + staged)
            }
            WatchEvent::Reset => {
                pass.staging = Staging::whole();
                let told = matches!(pass.news, Some(Continuity::Resynced { .. }));
                if !told {
                    let oldest = Revision::ZERO;
                    let why = ResyncReason::Compacted { oldest };
                    pass.news = Some(Continuity::Resynced { why });
                }
                Ok(())
            }
            WatchEvent::Progress { position, token } => {
                let answered = probe.take_if(|probe| Some(probe.token) == token);
                self.mark(position, answered.map(|probe| probe.sent), pass)?;
                *marked = true;
                Ok(())
            }
            WatchEvent::Continuity(news) => {
                lock(&self.shared.facts).breaks += 1;
                // Its answer may have been lost with the connection.
                *probe = None;
                self.shared.probe_wanted.notify_one();
                match news {
                    Continuity::Continuous => drop(pass.news.get_or_insert(news)),
                    Continuity::Resynced { .. } => pass.news = Some(news),
                    // The error that ends the watch follows, and the break is reported then.
                    _ => {}
                }
                Ok(())
            }
            // `Latest` delivers no commits, and events of newer servers are ignored by this version.
            _ => Ok(()),
        }
    }

    fn mark(
        &mut self,
        position: Position,
        proven: Option<Moment>,
        pass: &mut Pass,
    ) -> Result<(), StorageError> {
        let staging = std::mem::take(&mut pass.staging);
        let whole = staging.whole;
        let mark = Mark {
            position,
            proven,
            news: pass.news.take(),
        };
        self.shared.apply(staging, mark)?;
        self.anew = None;
        let first = std::mem::take(&mut pass.first);
        let mut facts = lock(&self.shared.facts);
        facts.state = ReplicaState::Live;
        match first {
            Some(WatchStart::After(_)) if !whole => facts.resumes += 1,
            Some(_) => facts.full_passes += 1,
            None if whole => facts.full_passes += 1,
            None => {}
        }
        Ok(())
    }

    fn send_probe(&mut self, watch: &mut Watch) -> Probe {
        let token = self.next_token;
        self.next_token += 1;
        // Ordering: taken before the probe is sent, so that no age is ever too small.
        let sent = Moment::now();
        watch.request_progress(token);
        Probe { token, sent }
    }

    /// Notes whether the watch has a connection: it may outlive one, and only its status shows that there is none.
    fn look_at(&self, watch: &Watch, marked: bool) -> ControlFlow<StorageError> {
        let state = watch.status().state;
        let mut facts = lock(&self.shared.facts);
        match (state, &facts.state) {
            (WatchState::Disconnected { since }, _) => {
                facts.state = ReplicaState::Disconnected { since };
                let max = self.shared.options.give_up_after;
                if max.is_some_and(|max| since.elapsed() >= max) {
                    return ControlFlow::Break(StorageError::Closed {
                        reason: format!("there was no connection for {:?}", since.elapsed()),
                        outcome: Outcome::NotExecuted,
                    });
                }
            }
            // After a break the replica is live at the first progress event, not before.
            (WatchState::Live, ReplicaState::Disconnected { .. }) if marked => {
                facts.state = ReplicaState::Live;
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// A probe without an answer.
struct Probe {
    token: u64,
    sent: Moment,
}

/// What was received since the last progress event.
struct Pass {
    staging: Staging,
    /// What a break meant, to be reported at the next progress event.
    news: Option<Continuity>,
    /// Before the first progress event of a watch: where the watch began.
    first: Option<WatchStart>,
}

impl Pass {
    fn new(start: WatchStart, broken: bool, anew: Option<ResyncReason>) -> Self {
        let news = match anew {
            Some(why) => Some(Continuity::Resynced { why }),
            None => broken.then_some(Continuity::Continuous),
        };
        Self {
            // A watch from the beginning sends no `Reset` first; if a state is held already, it is replaced all the
            // same.
            staging: match start {
                WatchStart::Beginning => Staging::whole(),
                WatchStart::After(_) | WatchStart::Now => Staging::default(),
            },
            news,
            first: Some(start),
        }
    }
}

/// Pauses that double; half of each is random, so that many clients do not watch again at once.
struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    fn new(max: Duration) -> Self {
        Self {
            next: BACKOFF_MIN.min(max),
            max,
        }
    }

    fn reset(&mut self) {
        self.next = BACKOFF_MIN.min(self.max);
    }

    fn next(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + Moment::noise() / 2.0);
        self.next = (self.next * 2).min(self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_begin_anew() {
        let max = Duration::from_secs(1);
        let mut backoff = Backoff::new(max);
        for expected in [100, 200, 400, 800, 1_000, 1_000] {
            let (pause, expected) = (backoff.next(), Duration::from_millis(expected));
            assert!(pause <= expected && pause >= expected / 2, "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= BACKOFF_MIN);
    }
}
