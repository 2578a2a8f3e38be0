//! Rows that are written at once, as the bytes in which RocksDB logs them.
//!
//! A [`WriteBatch`] takes each row through several layers of calls (600 instructions a row, where this takes 180), and a
//! row that it has cannot be changed any more. So rows are collected here, and it is made of them in one piece. The
//! format is that of the log, which RocksDB reads for ever: 8 bytes for the sequence number and 4 for the count of the
//! rows, then for each a tag, the number of its column family unless that is the default one, and key and value with
//! their lengths before them. Tag and number are not known here: an empty row of RocksDB's own tells them.

use rocksdb::{DB, WriteBatch};

use crate::engine::rocks::layout::Table;

/// Sequence number and count.
const HEADER_BYTES: usize = 12;

/// A buffer that had more is not kept for the next batch.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// What stands before the key of a row, by table.
#[derive(Debug)]
pub(crate) struct RowHeads([RowHead; Table::ALL.len()]);

#[derive(Debug, Default)]
struct RowHead {
    put: Vec<u8>,
    delete: Vec<u8>,
}

impl RowHeads {
    /// Those of the tables of this database.
    ///
    /// # Panics
    /// If a table was not opened.
    pub(super) fn of(db: &DB) -> Self {
        Self(Table::ALL.map(|table| {
            let family = db.cf_handle(table.name());
            let family = family.expect("every table was opened with the store");
            let (mut put, mut delete) = (WriteBatch::default(), WriteBatch::default());
            put.put_cf(family, b"", b"");
            delete.delete_cf(family, b"");
            // Behind it come the empty key and the empty value, each as a length of one byte.
            let head = |batch: &WriteBatch, lengths: usize| {
                let row = &batch.data()[HEADER_BYTES..];
                row[..row.len() - lengths].to_vec()
            };
            RowHead {
                put: head(&put, 2),
                delete: head(&delete, 1),
            }
        }))
    }

    fn get(&self, table: Table) -> &RowHead {
        &self.0[table as usize]
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RowBatch {
    bytes: Vec<u8>,
    count: u32,
}

impl Default for RowBatch {
    fn default() -> Self {
        Self {
            bytes: vec![0; HEADER_BYTES],
            count: 0,
        }
    }
}

impl RowBatch {
    /// Puts a row, whose value is given in parts. Returns the value as the batch has it.
    pub(crate) fn put(
        &mut self,
        heads: &RowHeads,
        table: Table,
        key: &[u8],
        value: &[&[u8]],
    ) -> &[u8] {
        self.count += 1;
        self.bytes.extend_from_slice(&heads.get(table).put);
        self.push_length(key.len());
        self.bytes.extend_from_slice(key);
        self.push_length(value.iter().map(|part| part.len()).sum());
        let from = self.bytes.len();
        for part in value {
            self.bytes.extend_from_slice(part);
        }
        &self.bytes[from..]
    }

    pub(crate) fn delete(&mut self, heads: &RowHeads, table: Table, key: &[u8]) {
        self.count += 1;
        self.bytes.extend_from_slice(&heads.get(table).delete);
        self.push_length(key.len());
        self.bytes.extend_from_slice(key);
    }

    /// A length as RocksDB writes it: 7 bits a byte, the lowest first.
    fn push_length(&mut self, length: usize) {
        let mut rest = u32::try_from(length).expect("a message is bounded far below 4 GiB");
        while rest >= 0x80 {
            self.bytes.push(rest.to_le_bytes()[0] | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest.to_le_bytes()[0]);
    }

    /// Its size so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Writes other bytes in the place of these.
    ///
    /// # Errors
    /// It does not have these there.
    pub(crate) fn replace(&mut self, place: usize, old: &[u8], new: &[u8]) -> Result<(), String> {
        let found = self.bytes.get_mut(place..place + old.len());
        match found.filter(|found| **found == *old && new.len() == old.len()) {
            Some(found) => {
                found.copy_from_slice(new);
                Ok(())
            }
            None => Err("a row of the batch is not where it was put".to_owned()),
        }
    }

    /// What RocksDB is given, if these are so many rows as were counted: each takes a sequence number, and revisions are
    /// made of these.
    ///
    /// # Errors
    /// They are not. It must not be written.
    pub(crate) fn finish(&mut self, rows: u64) -> Result<WriteBatch, String> {
        let count = self.count;
        if u64::from(count) != rows {
            return Err(format!("a batch of {count} rows, and {rows} were counted"));
        }
        self.bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&self.count.to_le_bytes());
        Ok(WriteBatch::from_data(&self.bytes))
    }

    /// An empty one, in the same memory.
    pub(crate) fn reuse(mut self) -> Self {
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            return Self::default();
        }
        self.bytes.truncate(HEADER_BYTES);
        self.count = 0;
        self
    }
}

#[cfg(test)]
mod tests {
    use rocksdb::{ColumnFamilyDescriptor, Options};

    use super::*;

    /// With more column families than there are tables, so that some numbers take two bytes.
    fn open(folder: &std::path::Path, others: usize) -> DB {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        let others = (0..others).map(|n| format!("other {n}"));
        let names = others.chain(Table::ALL.map(|table| table.name().to_owned()));
        let families = names.map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
        DB::open_cf_descriptors(&options, folder, families).unwrap()
    }

    #[test]
    fn rocksdb_would_have_written_the_same_bytes() {
        let lengths = [0, 1, 127, 128, 300, 16_383, 16_384, 70_000];
        for others in [0, 200] {
            let folder = tempfile::tempdir().unwrap();
            let db = open(folder.path(), others);
            let heads = RowHeads::of(&db);
            let mut ours = RowBatch::default();
            let mut theirs = WriteBatch::default();
            for (n, table) in (0..).zip(Table::ALL.into_iter().cycle().take(40)) {
                let family = db.cf_handle(table.name()).unwrap();
                let key = vec![b'k'; lengths[n / 5 % 5]];
                let value = vec![b'v'; lengths[n % lengths.len()]];
                let (head, tail) = value.split_at(value.len() / 3);
                assert_eq!(ours.put(&heads, table, &key, &[head, tail]), value);
                theirs.put_cf(family, &key, &value);
                if n % 3 == 0 {
                    ours.delete(&heads, table, &key);
                    theirs.delete_cf(family, &key);
                }
                assert_eq!(ours.bytes(), theirs.size_in_bytes());
            }
            let rows = theirs.len() as u64;
            assert!(ours.finish(rows + 1).is_err());
            let batch = ours.finish(rows).unwrap();
            assert_eq!(batch.data(), theirs.data());
            assert_eq!(batch.len(), theirs.len());
            let mut again = ours.reuse();
            again.put(&heads, Table::Index, b"k", &[]);
            let mut theirs = WriteBatch::default();
            theirs.put_cf(db.cf_handle("index").unwrap(), b"k", b"");
            assert_eq!(again.finish(1).unwrap().data(), theirs.data());
        }
    }

    #[test]
    fn bytes_are_replaced_only_where_they_were_put() {
        let folder = tempfile::tempdir().unwrap();
        let heads = RowHeads::of(&open(folder.path(), 0));
        let mut batch = RowBatch::default();
        batch.put(&heads, Table::Meta, b"key", &[b"value"]);
        let place = batch.bytes() - 5;
        batch.replace(place, b"value", b"other").unwrap();
        assert_eq!(&batch.finish(1).unwrap().data()[place..], b"other");
        batch.replace(place, b"value", b"again").unwrap_err();
        batch.replace(place + 1, b"other", b"again").unwrap_err();
        batch.replace(place, b"other", b"longer").unwrap_err();
    }
}
