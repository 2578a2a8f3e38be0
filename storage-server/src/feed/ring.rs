//! Recent commits of all keyspaces in memory, bounded in bytes, in pages that are searched without the feed's lock.

use std::collections::VecDeque;
use std::sync::Arc;

use storage_protocol::{CommitRecord, Keyspace, Revision};

use super::FeedCommit;
use super::page::{CommitPage, memory_bytes};

/// Commits in a full page.
const PAGE_COMMITS: usize = 4096;

/// The ring's bytes are divided into at least this many pages, since the oldest page is dropped as a whole.
const PAGES_MIN: usize = 16;

/// All commits after `floor`, in revision order: full pages, then smaller ones, then those in no page yet.
///
/// A reader gets pages only, so it seals the tail into one. Small pages are merged as in an LSM tree: each is more than
/// twice as long as the next, so there are O(log n) of them, and a commit is moved a dozen times at most.
#[derive(Debug)]
pub(super) struct Ring {
    pages: VecDeque<Arc<CommitPage<Keyspace>>>,
    /// The commits after the last page.
    tail: Vec<(Keyspace, Arc<CommitRecord>)>,
    tail_bytes: usize,
    /// Of pages and tail.
    bytes: usize,
    bytes_max: usize,
    /// Everything up to here is in pages, or was dropped.
    paged: Revision,
    /// The last commit.
    last: Revision,
    floor: Revision,
}

impl Ring {
    pub(super) fn new(bytes_max: usize, floor: Revision) -> Self {
        Self {
            pages: VecDeque::new(),
            tail: Vec::new(),
            tail_bytes: 0,
            bytes: 0,
            bytes_max,
            paged: floor,
            last: floor,
            floor,
        }
    }

    /// It holds all commits after this revision.
    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    /// What it may take in memory, indexes and wire forms included. Never over its bound between two calls.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a commit. The pages that make room for it go into `gone`, to be dropped by the caller: that takes a while.
    pub(super) fn push(&mut self, commit: FeedCommit, gone: &mut Vec<Arc<CommitPage<Keyspace>>>) {
        let bytes = memory_bytes::<Keyspace>(&commit.record);
        self.last = commit.record.revision;
        self.tail.push((commit.keyspace, commit.record));
        self.tail_bytes += bytes;
        self.bytes += bytes;
        if self.tail.len() >= PAGE_COMMITS || self.tail_bytes >= self.page_bytes_max() {
            self.end_page();
        }
        while self.bytes > self.bytes_max {
            if self.pages.is_empty() {
                self.end_page();
            }
            let Some(oldest) = self.pages.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes();
            self.floor = oldest.reached();
            gone.push(oldest);
        }
    }

    fn page_bytes_max(&self) -> usize {
        self.bytes_max / PAGES_MIN
    }

    fn end_page(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        let commits = std::mem::take(&mut self.tail);
        let mut page = CommitPage::new(self.paged, self.last, commits);
        self.paged = self.last;
        self.tail_bytes = 0;
        let is_carried =
            |last: &mut Arc<CommitPage<Keyspace>>, page: &CommitPage<Keyspace>, bytes_max| {
                last.len() <= 2 * page.len()
                    && last.len() + page.len() <= PAGE_COMMITS
                    && last.bytes() + page.bytes() <= bytes_max
            };
        let bytes_max = self.page_bytes_max();
        while let Some(last) = self
            .pages
            .pop_back_if(|last| is_carried(last, &page, bytes_max))
        {
            page = last.joined(page);
        }
        self.pages.push_back(Arc::new(page));
    }

    /// The pages that hold the commits after `after`, which must not lie before the floor: the first ones, up to a
    /// maximum. If they are fewer than that, they reach to the last commit.
    pub(super) fn pages_after(
        &mut self,
        after: Revision,
        max: usize,
    ) -> Vec<Arc<CommitPage<Keyspace>>> {
        self.end_page();
        let first = self.pages.partition_point(|page| page.reached() <= after);
        self.pages.range(first..).take(max).cloned().collect()
    }
}
