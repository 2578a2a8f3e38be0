//! Rows of the index that commits have replaced, until they are deleted.

use storage_protocol::Revision;

use crate::engine::rocks::layout::{KeyspaceId, write_index_key};

/// A list that had more keeps no memory for the next one: rows, and bytes of keys.
const KEPT_ROWS_MAX: usize = 4096;
const KEPT_BYTES_MAX: usize = 1 << 20;

/// See the module. The rows' keys lie in one piece of memory, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    keys: Vec<u8>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    keyspace: KeyspaceId,
    revision: Revision,
    from: usize,
    to: usize,
}

impl Replaced {
    pub(super) fn push(&mut self, keyspace: KeyspaceId, revision: Revision, key: &[u8]) {
        let from = self.keys.len();
        write_index_key(&mut self.keys, keyspace, revision, key);
        self.rows.push(Row {
            keyspace,
            revision,
            from,
            to: self.keys.len(),
        });
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Their keys in the order of the index.
    pub(super) fn sorted(&mut self) -> impl Iterator<Item = &[u8]> {
        let keys = &self.keys;
        self.rows.sort_unstable_by(|a, b| {
            (a.keyspace, a.revision)
                .cmp(&(b.keyspace, b.revision))
                .then_with(|| keys[a.from..a.to].cmp(&keys[b.from..b.to]))
        });
        self.rows.iter().map(|row| &keys[row.from..row.to])
    }

    pub(super) fn clear(&mut self) {
        if self.rows.capacity() > KEPT_ROWS_MAX || self.keys.capacity() > KEPT_BYTES_MAX {
            *self = Self::default();
        }
        self.keys.clear();
        self.rows.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::rocks::layout::index_key;

    #[test]
    fn they_come_in_the_order_of_the_index() {
        let mut replaced = Replaced::default();
        let mut keys = Vec::new();
        for (keyspace, revision, key) in [
            (2, 300, "a"),
            (1, 9, "long and longer"),
            (1, 256, "c"),
            (1, 256, "b"),
            (1, 256, ""),
        ] {
            let (keyspace, revision) = (KeyspaceId(keyspace), Revision(revision));
            replaced.push(keyspace, revision, key.as_bytes());
            keys.push(index_key(keyspace, revision, key.as_bytes()));
        }
        keys.sort();
        assert_eq!(replaced.sorted().collect::<Vec<_>>(), keys);
        assert_eq!(replaced.len(), 5);
        replaced.clear();
        assert!(replaced.is_empty() && replaced.sorted().next().is_none());
    }
}
