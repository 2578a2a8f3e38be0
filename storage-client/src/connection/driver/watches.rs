//! The streams of watches that are open on one socket, and the watches that wait for one.
//!
//! Invariant: an id is in use from the request for its stream, or its probe, until the stream's end or the probe's answer.
//! What a watch is beyond its socket is in [`watch`](crate::watch).

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

/// How long a watch waits that the server had no room for.
const WATCH_DELAY: Duration = Duration::from_millis(250);

pub(super) struct WatchEntry {
    pub(super) shared: Arc<WatchShared>,
    /// Not its first stream.
    resumed: bool,
    /// The server has answered `Watching`.
    pub(super) attached: bool,
    /// The application has dropped it: its events are passed over, and its id is free after `Done`.
    pub(super) dropped: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct OpenWatches {
    by_id: HashMap<RequestId, WatchEntry>,
    /// How many of them their applications let go.
    dropped: usize,
    /// Probes of watches, each with its watch's stream: their answers come through the watch.
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

    /// How many there are without those let go.
    pub(super) fn live_count(&self) -> usize {
        self.by_id.len() - self.dropped
    }

    /// The id of a watch that the server still has. (The id alone does not tell: it may be another's by now.)
    pub(super) fn live_id(&self, watch: &Arc<WatchShared>) -> Option<RequestId> {
        let id = watch.id()?;
        let entry = self.by_id.get(&id)?;
        Arc::ptr_eq(&entry.shared, watch).then_some(id)
    }

    /// A stream is asked for under this id.
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

    /// The server has answered `Watching`. What is to be said on the stream goes to `outgoing`.
    ///
    /// # Errors
    /// The stream does not begin where it was to.
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

    /// What still comes on this stream is passed over; the id stays in use.
    pub(super) fn let_go(&mut self, id: RequestId) -> Option<&WatchEntry> {
        let entry = self.by_id.get_mut(&id)?;
        self.dropped += usize::from(!entry.dropped);
        entry.dropped = true;
        Some(entry)
    }

    /// The watch's id is free, and so are those of the marks that will not come.
    pub(super) fn forget(&mut self, watch: RequestId) {
        if self.by_id.remove(&watch).is_some_and(|entry| entry.dropped) {
            self.dropped -= 1;
        }
        self.marks.retain(|_, asked| *asked != watch);
    }

    // Marks.

    /// A probe of this watch goes out under this id.
    pub(super) fn note_probe(&mut self, id: RequestId, watch: RequestId) {
        self.marks.insert(id, watch);
    }

    /// The watch whose probe had this id, which is free now.
    pub(super) fn take_probe(&mut self, id: RequestId) -> Option<RequestId> {
        self.marks.remove(&id)
    }

    /// A mark came under the watch's id: one probe of that watch is answered.
    pub(super) fn forget_one_probe(&mut self, watch: RequestId) {
        let asked = self.marks.iter().find(|(_, asked)| **asked == watch);
        if let Some(id) = asked.map(|(id, _)| *id) {
            self.marks.remove(&id);
        }
    }

    // Those that wait.

    /// Has a watch opened again in a while; gives when.
    pub(super) fn delay(&mut self, watch: Arc<WatchShared>) -> Instant {
        let at = Instant::now() + WATCH_DELAY;
        self.delayed.push_back((at, watch));
        at
    }

    /// When the first delayed watch is to be opened.
    pub(super) fn next_delayed(&self) -> Option<Instant> {
        self.delayed.front().map(|(at, _)| *at)
    }

    /// The next delayed watch whose time has come.
    pub(super) fn take_delayed(&mut self, now: Instant) -> Option<Arc<WatchShared>> {
        let (_, watch) = self.delayed.pop_front_if(|(at, _)| *at <= now)?;
        Some(watch)
    }

    /// The socket is gone: adds the watches that would go on to those that are to be opened.
    pub(super) fn drain_into(&mut self, opening: &mut VecDeque<Arc<WatchShared>>) {
        opening.extend(self.delayed.drain(..).map(|(_, watch)| watch));
        for (_, entry) in self.by_id.drain() {
            // Its first request is with those that are put back.
            let is_asked_for = entry.attached || entry.resumed;
            if !entry.dropped && is_asked_for {
                opening.push_back(entry.shared);
            }
        }
        self.dropped = 0;
        self.marks.clear();
    }
}
