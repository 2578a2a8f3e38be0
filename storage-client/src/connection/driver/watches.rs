//! The streams of watches that are open on one socket, and the watches that wait for a stream.
//!
//! Invariant: an id is in use from the request for its stream, or its probe, until the stream's end or the probe's
//! answer. The state of a watch that outlives its socket is in [`watch`](crate::watch).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use storage_protocol::Position;
use storage_protocol::native::RequestId;
use tokio::time::Instant;

use super::outgoing::Outgoing;
use crate::order::Broken;
use crate::requests::Control;
use crate::watch::WatchShared;

/// How long a watch waits if the server had no room for it.
const WATCH_DELAY: Duration = Duration::from_millis(250);

pub(super) struct WatchEntry {
    pub(super) shared: Arc<WatchShared>,
    /// It is not the watch's first stream.
    resumed: bool,
    /// The server has answered `Watching`.
    pub(super) attached: bool,
    /// The application has dropped the watch: its events are ignored, and its id is free after `Done`.
    pub(super) dropped: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct OpenWatches {
    by_id: HashMap<RequestId, WatchEntry>,
    /// How many of them are `dropped`.
    dropped: usize,
    /// The ids of probes, each with its watch's stream: they are answered by progress events of the watch.
    marks: HashMap<RequestId, RequestId>,
    /// Watches that are opened a little later, since the server had no room for them.
    delayed: VecDeque<(Instant, Arc<WatchShared>)>,
}

impl OpenWatches {
    /// Whether a stream or a probe has this id.
    pub(super) fn uses(&self, id: RequestId) -> bool {
        self.by_id.contains_key(&id) || self.marks.contains_key(&id)
    }

    /// Whether a stream has this id.
    pub(super) fn contains(&self, id: RequestId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&WatchEntry> {
        self.by_id.get(&id)
    }

    /// How many streams there are, without those of dropped watches.
    pub(super) fn live_count(&self) -> usize {
        self.by_id.len() - self.dropped
    }

    /// The id of a watch that the server still has. (The id alone is not enough: it may be another watch's by now.)
    pub(super) fn live_id(&self, watch: &Arc<WatchShared>) -> Option<RequestId> {
        let id = watch.id()?;
        let entry = self.by_id.get(&id)?;
        Arc::ptr_eq(&entry.shared, watch).then_some(id)
    }

    /// A stream is requested under this id.
    pub(super) fn open(&mut self, id: RequestId, shared: Arc<WatchShared>, resumed: bool) {
        shared.set_id(Some(id));
        let entry = WatchEntry {
            shared,
            resumed,
            attached: false,
            dropped: false,
        };
        self.by_id.insert(id, entry);
    }

    /// The server has answered `Watching`. Controls for the stream go to `outgoing`.
    ///
    /// # Errors
    /// The stream was to begin elsewhere.
    pub(super) fn attach(
        &mut self,
        id: RequestId,
        position: Position,
        outgoing: &mut Outgoing,
    ) -> Result<(), Broken> {
        let Some(entry) = self.by_id.get_mut(&id) else {
            return Ok(());
        };
        entry.attached = true;
        if entry.dropped {
            outgoing.controls.push(Control::EndStream { stream: id });
            return Ok(());
        }
        let watch = entry.shared.clone();
        if !entry.resumed {
            return watch.begin(position);
        }
        let (tokens, granted) = watch.resume(position.revision)?;
        if granted > 0 {
            outgoing.controls.push(Control::Credit {
                watch: watch.clone(),
                bytes: granted,
            });
        }
        let probes = tokens.into_iter().map(|token| Control::Probe {
            watch: watch.clone(),
            token,
        });
        outgoing.controls.extend(probes);
        Ok(())
    }

    /// Marks a stream as dropped: what still arrives on it is ignored; the id stays in use.
    pub(super) fn let_go(&mut self, id: RequestId) -> Option<&WatchEntry> {
        let entry = self.by_id.get_mut(&id)?;
        self.dropped += usize::from(!entry.dropped);
        entry.dropped = true;
        Some(entry)
    }

    /// Frees the watch's id, and those of its probes, which will not be answered any more.
    pub(super) fn forget(&mut self, watch: RequestId) {
        if self.by_id.remove(&watch).is_some_and(|entry| entry.dropped) {
            self.dropped -= 1;
        }
        self.marks.retain(|_, asked| *asked != watch);
    }

    // Probes.

    /// A probe of this watch is sent under this id.
    pub(super) fn note_probe(&mut self, id: RequestId, watch: RequestId) {
        self.marks.insert(id, watch);
    }

    /// The watch whose probe had this id, which is free now.
    pub(super) fn take_probe(&mut self, id: RequestId) -> Option<RequestId> {
        self.marks.remove(&id)
    }

    /// A requested progress event arrived under the watch's id: one probe of that watch is answered.
    pub(super) fn forget_one_probe(&mut self, watch: RequestId) {
        let asked = self.marks.iter().find(|(_, asked)| **asked == watch);
        if let Some(id) = asked.map(|(id, _)| *id) {
            self.marks.remove(&id);
        }
    }

    // Those that wait.

    /// Delays the opening of a watch; returns until when.
    pub(super) fn delay(&mut self, watch: Arc<WatchShared>) -> Instant {
        let at = Instant::now() + WATCH_DELAY;
        self.delayed.push_back((at, watch));
        at
    }

    /// When the first delayed watch is to be opened.
    pub(super) fn next_delayed(&self) -> Option<Instant> {
        self.delayed.front().map(|(at, _)| *at)
    }

    /// The next delayed watch that is due.
    pub(super) fn take_delayed(&mut self, now: Instant) -> Option<Arc<WatchShared>> {
        let (_, watch) = self.delayed.pop_front_if(|(at, _)| *at <= now)?;
        Some(watch)
    }

    /// The socket is gone: adds the watches that go on to those that are to be opened.
    pub(super) fn drain_into(&mut self, opening: &mut VecDeque<Arc<WatchShared>>) {
        opening.extend(self.delayed.drain(..).map(|(_, watch)| watch));
        for (_, entry) in self.by_id.drain() {
            // (If it waits for its first stream, that request is among those put back.)
            let is_asked_for = entry.attached || entry.resumed;
            if !entry.dropped && is_asked_for {
                opening.push_back(entry.shared);
            }
        }
        self.dropped = 0;
        self.marks.clear();
    }
}
