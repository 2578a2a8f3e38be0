//! Parts of large commits, shared by all watches that see the same part.
//!
//! A watch gets a commit cut to its range. For a large commit this part is cut, and put into wire form, once for all
//! watches that see the same part, whether they are live or read the ring or the log. The kept parts are bounded in
//! bytes: the oldest are dropped, and cut again if a watch needs them later.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use storage_protocol::{CommitRecord, KeyRange, Revision};

/// What the kept parts may take in memory, wire forms included; or one part, if that is larger.
const VIEWS_BYTES_MAX: usize = 16 << 20;

/// Which part of which commit: its changes in the order of their keys.
type View = (Revision, Range<usize>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Views(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    parts: HashMap<View, Arc<CommitRecord>>,
    /// Oldest first.
    line: VecDeque<View>,
    bytes: usize,
}

impl Views {
    /// The part of a commit that lies in the range, if any.
    pub(crate) fn cut(
        &self,
        record: &Arc<CommitRecord>,
        range: &KeyRange,
    ) -> Option<Arc<CommitRecord>> {
        if range.is_all() || !record.is_large() {
            return record.cut(range);
        }
        let interval = record.interval(range);
        if interval.is_empty() || interval.len() == record.changes.len() {
            return record.part(interval);
        }
        let view = (record.revision, interval);
        if let Some(part) = self.kept(&view) {
            return Some(part);
        }
        // Without the lock: two watches that ask at once may both cut it.
        let part = record.part(view.1.clone())?;
        Some(self.keep(view, part))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self, view: &View) -> Option<Arc<CommitRecord>> {
        self.lock().parts.get(view).cloned()
    }

    fn keep(&self, view: View, part: Arc<CommitRecord>) -> Arc<CommitRecord> {
        let mut dropped = Vec::new();
        let mut kept = self.lock();
        if let Some(earlier) = kept.parts.get(&view) {
            return earlier.clone();
        }
        kept.bytes += part.memory_bytes();
        while kept.bytes > VIEWS_BYTES_MAX
            && let Some(oldest) = kept.line.pop_front()
        {
            if let Some(oldest) = kept.parts.remove(&oldest) {
                kept.bytes -= oldest.memory_bytes();
                dropped.push(oldest);
            }
        }
        kept.line.push_back(view.clone());
        kept.parts.insert(view, part.clone());
        drop(kept);
        part
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}
