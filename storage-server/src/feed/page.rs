//! A page: a run of commits that never changes, with an index of its keys. The ring and the log are read in pages.
//!
//! A watch that is behind searches a page for its range. With the index this is a binary search, however many commits
//! outside the range the page holds. The first search builds the index, so a page that nobody searches costs its writer
//! nothing. Large commits are not in the index: a page has few of them, and each is searched by its own sorted keys.

use std::sync::{Arc, OnceLock};

use storage_protocol::{CommitRecord, KeyRange, Revision};

use super::views::Views;

/// A change in a page: the offset of its commit in the page, and its offset in the commit.
type ChangeOffset = (usize, usize);

/// The commits of keyspaces `S` (their names or ids) after one revision, up to another, without a gap.
#[derive(Debug)]
pub(crate) struct CommitPage<S> {
    after: Revision,
    reached: Revision,
    /// In revision order.
    commits: Vec<(S, Arc<CommitRecord>)>,
    bytes: usize,
    index: OnceLock<Index>,
}

#[derive(Debug)]
struct Index {
    /// The changes of small commits by keyspace, key and commit.
    offsets: Vec<ChangeOffset>,
    /// The offsets of large commits.
    large: Vec<usize>,
}

/// What a search has found so far.
#[derive(Debug)]
pub(crate) struct Found {
    /// In order, each cut to the range.
    pub(crate) commits: Vec<Arc<CommitRecord>>,
    /// Everything of the range up to here is in `commits`.
    pub(crate) reached: Revision,
    bytes: usize,
    bytes_max: usize,
}

impl Found {
    /// Nothing yet: for a search after `after` that takes no more once it has `bytes_max`.
    pub(crate) fn after(after: Revision, bytes_max: usize) -> Self {
        Self {
            commits: Vec::new(),
            reached: after,
            bytes: 0,
            bytes_max,
        }
    }

    /// Whether it has all that it may.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }
}

/// What a commit costs in a page, its share of the index and its wire form included, whether these exist yet or not.
pub(crate) fn memory_bytes<S>(record: &CommitRecord) -> usize {
    // 64 bytes stand for the name of its keyspace and what allocations add.
    let index = record.changes.len() * size_of::<ChangeOffset>();
    record.memory_bytes() + index + size_of::<(S, Arc<CommitRecord>)>() + 64
}

impl<S: Ord + Clone> CommitPage<S> {
    /// All commits after `after`, up to `reached`, in revision order.
    pub(crate) fn new(
        after: Revision,
        reached: Revision,
        commits: Vec<(S, Arc<CommitRecord>)>,
    ) -> Self {
        let bytes = commits.iter().map(|(_, record)| memory_bytes::<S>(record));
        Self {
            after,
            reached,
            bytes: bytes.sum(),
            commits,
            index: OnceLock::new(),
        }
    }

    /// This page and the one after it in one.
    pub(crate) fn joined(self: Arc<Self>, next: Self) -> Self {
        let (after, bytes) = (self.after, self.bytes + next.bytes);
        let mut commits =
            Arc::try_unwrap(self).map_or_else(|shared| shared.commits.clone(), |own| own.commits);
        commits.extend(next.commits);
        Self {
            after,
            reached: next.reached,
            commits,
            bytes,
            index: OnceLock::new(),
        }
    }

    /// It holds the commits after this revision.
    pub(crate) fn starts_after(&self) -> Revision {
        self.after
    }

    /// It holds everything up to this revision.
    pub(crate) fn reached(&self) -> Revision {
        self.reached
    }

    pub(crate) fn len(&self) -> usize {
        self.commits.len()
    }

    /// The memory it may take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn into_commits(self) -> Vec<(S, Arc<CommitRecord>)> {
        self.commits
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let (mut offsets, mut large) = (Vec::new(), Vec::new());
            for (commit, (_, record)) in self.commits.iter().enumerate() {
                if record.is_large() {
                    large.push(commit);
                } else {
                    offsets.extend((0..record.changes.len()).map(|change| (commit, change)));
                }
            }
            offsets.sort_unstable_by(|a, b| self.key(*a).cmp(&self.key(*b)).then(a.cmp(b)));
            Index { offsets, large }
        })
    }

    fn key(&self, (commit, change): ChangeOffset) -> (&S, &[u8]) {
        let (keyspace, record) = &self.commits[commit];
        (keyspace, &record.changes[change].key)
    }

    /// The offsets of the commits that touch the range, in their order, from `first` on.
    fn touching(&self, keyspace: &S, range: &KeyRange, first: usize) -> Vec<usize> {
        let index = self.index();
        let offsets = &index.offsets;
        let start = (keyspace, range.start.as_ref());
        let start = offsets.partition_point(|offset| self.key(*offset) < start);
        let mine = &offsets[start..];
        let end = match &range.end {
            Some(end) => {
                mine.partition_point(|offset| self.key(*offset) < (keyspace, end.as_ref()))
            }
            None => mine.partition_point(|offset| self.key(*offset).0 <= keyspace),
        };
        let small = mine[..end].iter().map(|(commit, _)| *commit);
        let large = index.large.iter().copied().filter(|commit| {
            let (name, record) = &self.commits[*commit];
            name == keyspace && *commit >= first && record.touches(range)
        });
        let mut commits: Vec<usize> = small.filter(|commit| *commit >= first).collect();
        commits.extend(large);
        commits.sort_unstable();
        commits.dedup();
        commits
    }

    /// Adds what this page has of the range after `found.reached`, in revision order and cut to the range, until it is
    /// full; at least one commit, where there is one. The page must begin at or before `found.reached`.
    pub(crate) fn search(&self, keyspace: &S, range: &KeyRange, views: &Views, found: &mut Found) {
        debug_assert!(self.after <= found.reached, "a page behind a gap");
        if found.is_full() {
            return;
        }
        let first = self
            .commits
            .partition_point(|(_, record)| record.revision <= found.reached);
        for commit in self.touching(keyspace, range, first) {
            if found.is_full() {
                return;
            }
            if let Some(part) = views.cut(&self.commits[commit].1, range) {
                found.bytes += part.bytes();
                found.reached = part.revision;
                found.commits.push(part);
            }
        }
        found.reached = found.reached.max(self.reached);
    }
}
