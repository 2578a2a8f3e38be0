//! The batches that the rows of a file make, one commit each.
//!
//! Blocking, like the rows. Of rows with equal keys in one batch only the last goes in: the commit is atomic, so nobody
//! could have seen the others. Invariant: the same file and options are cut in the same way, and batches keep the file's
//! order, so that of each key the last row stays. Only manifests of objects come later, behind their parts ([`Manifests`]);
//! rows are counted as they come then.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use clap::ValueEnum;
use storage_protocol::{Batch, Key, Limit, Limits, Operation, StorageError};

use crate::escape;
use crate::failure::usage;
use crate::manifests::{Manifests, Sorted};
use crate::rows::{Row, Rows};
use crate::tally::Span;

/// Bytes of rows in one commit.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// What a row costs in [`Batch::bytes`] besides its key and value.
const ROW_OVERHEAD_BYTES: usize = 32;

/// What a batch costs in [`Batch::bytes`] without any rows.
const BATCH_OVERHEAD_BYTES: usize = 1024;

/// Keys of rows that are remembered to tell those that come again: some 75 MB.
const KEYS_REMEMBERED_MAX: usize = 4 << 20;

/// What becomes of rows with equal keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Duplicates {
    /// The last of them stays, and they are counted.
    #[default]
    Last,
    /// The import ends at the second one.
    Refuse,
}

/// A batch that is ready to be sent, and where its rows are from.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) batch: Batch,
    /// Of its first row, counted from 1.
    pub(crate) first_row: u64,
    pub(crate) first_line: u64,
    /// Of the file; the batch has one operation for those with equal keys.
    pub(crate) rows: u64,
    /// Those of them whose key an earlier row of the file has too, as far as keys are remembered.
    pub(crate) duplicates: u64,
    /// It is to be sent when all before it is committed.
    pub(crate) behind_all: bool,
}

impl Prepared {
    fn new(rows_read: u64) -> Self {
        Self {
            batch: Batch::new(),
            first_row: rows_read + 1,
            first_line: 0,
            rows: 0,
            duplicates: 0,
            behind_all: false,
        }
    }

    pub(crate) fn span(&self) -> Span {
        Span {
            first_row: self.first_row,
            first_line: self.first_line,
            rows: self.rows,
        }
    }
}

/// Cuts rows into batches.
pub(crate) struct Batches {
    rows: Rows,
    limits: Limits,
    rows_max: usize,
    bytes_max: usize,
    /// The row that did not go into the batch before.
    held: Option<Row>,
    /// One that was read, and comes behind manifests that are due.
    postponed: Option<Row>,
    manifests: Manifests,
    rows_read: u64,
    duplicates: Duplicates,
    seen: Seen,
}

/// The keys so far, by hashes that no file can be made to collide in.
#[derive(Default)]
struct Seen {
    hasher: RandomState,
    hashes: HashSet<u64>,
}

impl Seen {
    /// Whether it was there before; `None`: nobody knows any more.
    fn has(&mut self, key: &Key) -> Option<bool> {
        let hash = self.hasher.hash_one(key);
        if self.hashes.len() < KEYS_REMEMBERED_MAX {
            return Some(!self.hashes.insert(hash));
        }
        self.hashes.contains(&hash).then_some(true)
    }
}

impl Batches {
    pub(crate) fn new(rows: Rows, rows_max: usize, duplicates: Duplicates, limits: Limits) -> Self {
        let message_max = limits
            .message_bytes_max
            .saturating_sub(BATCH_OVERHEAD_BYTES);
        Self {
            rows,
            rows_max: rows_max.min(limits.operations_per_commit_max).max(1),
            bytes_max: BATCH_BYTES_MAX.min(message_max),
            limits,
            held: None,
            postponed: None,
            manifests: Manifests::default(),
            rows_read: 0,
            duplicates,
            seen: Seen::default(),
        }
    }

    /// The next batch; `None` at the end of the file. A bad row fails the batch that it stands in.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Prepared>> {
        loop {
            // What was held back may be the last part of one of them.
            let prepared = match self.manifests.is_due() && self.held.is_none() {
                true => self.next_manifests()?,
                false => self.next_rows()?,
            };
            if prepared.rows > 0 {
                self.rows_read += prepared.rows;
                return Ok(Some(prepared));
            }
            if !self.manifests.is_due() && !self.manifests.end() {
                return Ok(None);
            }
        }
    }

    /// Manifests that are due, in a batch of their own.
    fn next_manifests(&mut self) -> anyhow::Result<Prepared> {
        let mut prepared = Prepared::new(self.rows_read);
        prepared.behind_all = true;
        let mut bytes = 0;
        while prepared.rows < self.rows_max as u64
            && self.manifests.is_due()
            && let Some(row) = self.manifests.next()
        {
            bytes += row_bytes(&row.operation);
            if bytes > self.bytes_max && prepared.rows > 0 {
                self.manifests.put_back(row);
                break;
            }
            if prepared.rows == 0 {
                prepared.first_line = row.line;
            }
            prepared.duplicates += u64::from(self.is_duplicate(&row)?);
            prepared.rows += 1;
            // Each key is in it once: a later row with it makes the one before due at once.
            prepared.batch.operations.push(row.operation);
        }
        Ok(prepared)
    }

    /// The rows up to the end of a batch; none at the end of the file, and where manifests are due.
    fn next_rows(&mut self) -> anyhow::Result<Prepared> {
        let mut prepared = Prepared::new(self.rows_read);
        let mut places: HashMap<Key, usize> = HashMap::new();
        let mut bytes = 0;
        while prepared.rows < self.rows_max as u64 {
            let Some(row) = self.row()? else { break };
            let operations = &mut prepared.batch.operations;
            let place = places.get(row.operation.key()).copied();
            let earlier = place.and_then(|place| operations.get_mut(place));
            let others = bytes - earlier.as_ref().map_or(0, |earlier| row_bytes(earlier));
            let row_bytes = row_bytes(&row.operation);
            if others + row_bytes > self.bytes_max && others > 0 {
                self.held = Some(row);
                break;
            }
            if prepared.rows == 0 {
                prepared.first_line = row.line;
            }
            prepared.duplicates += u64::from(self.is_duplicate(&row)?);
            bytes = others + row_bytes;
            prepared.rows += 1;
            match earlier {
                Some(earlier) => *earlier = row.operation,
                None => {
                    places.insert(row.operation.key().clone(), operations.len());
                    operations.push(row.operation);
                }
            }
        }
        Ok(prepared)
    }

    fn is_duplicate(&mut self, row: &Row) -> anyhow::Result<bool> {
        let seen = self.seen.has(row.operation.key());
        if self.duplicates == Duplicates::Last {
            return Ok(seen == Some(true));
        }
        let (file, line) = (self.rows.file(), row.line);
        match seen {
            Some(false) => Ok(false),
            Some(true) => {
                let key = escape::text(row.operation.key());
                Err(usage(format!(
                    "{file}:{line}: an earlier row has the key \"{key}\" too (--duplicates last would take the later one)"
                )))
            }
            None => Err(usage(format!(
                "{file}:{line}: --duplicates refuse remembers {KEYS_REMEMBERED_MAX} keys, and this is one more; split the file"
            ))),
        }
    }

    fn row(&mut self) -> anyhow::Result<Option<Row>> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        while !self.manifests.is_due() {
            let row = match self.postponed.take() {
                Some(row) => row,
                None => match self.rows.next()? {
                    Some(row) => row,
                    None => return Ok(None),
                },
            };
            let (file, line) = (self.rows.file(), row.line);
            check_operation(&row.operation, &self.limits)
                .map_err(|error| usage(format!("{file}:{line}: {error}")))?;
            match self.manifests.sort(row) {
                Sorted::Next(row) => return Ok(Some(row)),
                Sorted::Held => {}
                Sorted::Postponed(row) => self.postponed = Some(row),
            }
        }
        Ok(None)
    }
}

fn row_bytes(operation: &Operation) -> usize {
    operation.key().len() + operation.value().len() + ROW_OVERHEAD_BYTES
}

/// What the commit would be refused for, while the line is known.
fn check_operation(operation: &Operation, limits: &Limits) -> Result<(), StorageError> {
    let check_max = |limit, actual, max| match actual > max {
        true => Err(StorageError::limit(limit, actual, max)),
        false => Ok(()),
    };
    if operation.key().is_empty() {
        return Err(StorageError::invalid("the key is empty"));
    }
    check_max(Limit::Key, operation.key().len(), limits.key_bytes_max)?;
    check_max(
        Limit::Value,
        operation.value().len(),
        limits.value_bytes_max,
    )?;
    let message = BATCH_OVERHEAD_BYTES + row_bytes(operation);
    check_max(Limit::Message, message, limits.message_bytes_max)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::path::Path;

    use storage_protocol::objects::{Manifest, ObjectId, PartKey};

    use super::*;
    use crate::json::Object;
    use crate::rows::{Format, Header, Reading};

    fn rows(text: &str) -> Rows {
        let reading = Reading {
            format: Format::Jsonl,
            header: Header::default(),
            template: None,
        };
        let reader = Box::new(Cursor::new(text.as_bytes().to_vec()));
        Rows::new(Path::new("f"), reader, reading).unwrap()
    }

    fn batches(
        keys: &[&str],
        value: &str,
        rows_max: usize,
        limits: Limits,
    ) -> Vec<(u64, u64, Vec<String>)> {
        let lines: Vec<_> = keys
            .iter()
            .map(|key| format!("{{\"put\":{{\"key\":\"{key}\",\"value\":\"{value}\"}}}}\n"))
            .collect();
        let rows = rows(&lines.concat());
        let mut batches = Batches::new(rows, rows_max, Duplicates::Last, limits);
        let mut all = Vec::new();
        while let Some(prepared) = batches.next().unwrap() {
            let operations = prepared.batch.operations.iter();
            let keys =
                operations.map(|operation| String::from_utf8(operation.key().to_vec()).unwrap());
            all.push((prepared.first_row, prepared.first_line, keys.collect()));
        }
        all
    }

    fn strings(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    #[test]
    fn batches_end_by_rows_and_bytes_and_have_each_key_once() {
        let limits = Limits::default;
        assert_eq!(
            batches(&["a", "b", "c"], "", 2, limits()),
            [(1, 1, strings(&["a", "b"])), (3, 3, strings(&["c"]))]
        );
        assert_eq!(
            batches(&["a", "b", "a", "a", "c"], "", 4, limits()),
            [(1, 1, strings(&["a", "b"])), (5, 5, strings(&["c"]))]
        );
        assert_eq!(
            batches(&["a"; 7], "", 3, limits()),
            [
                (1, 1, strings(&["a"])),
                (4, 4, strings(&["a"])),
                (7, 7, strings(&["a"]))
            ]
        );
        let third = "x".repeat(BATCH_BYTES_MAX / 3);
        assert_eq!(
            batches(&["a", "b", "c"], &third, 9, limits()),
            [(1, 1, strings(&["a", "b"])), (3, 3, strings(&["c"]))]
        );
        let big = "x".repeat(BATCH_BYTES_MAX);
        assert_eq!(
            batches(&["a", "b"], &big, 9, limits()),
            [(1, 1, strings(&["a"])), (2, 2, strings(&["b"]))]
        );
        let narrow = Limits {
            message_bytes_max: 1024 + 70,
            ..limits()
        };
        assert_eq!(
            batches(&["a", "b", "c"], "", 9, narrow),
            [(1, 1, strings(&["a", "b"])), (3, 3, strings(&["c"]))]
        );
        assert_eq!(batches(&[], "", 9, limits()), []);
    }

    #[test]
    fn a_row_over_a_limit_is_named() {
        let limits = Limits {
            key_bytes_max: 3,
            value_bytes_max: 3,
            ..Limits::default()
        };
        for (line, why) in [
            (
                r#"{"put":{"key":"1234","value":""}}"#,
                "f:1: key_bytes_max is 3, this has 4",
            ),
            (
                r#"{"put":{"key":"1","value":"1234"}}"#,
                "f:1: value_bytes_max is 3, this has 4",
            ),
            (r#"{"remove":{"key":""}}"#, "f:1: the key is empty"),
        ] {
            let error = Batches::new(rows(line), 9, Duplicates::Last, limits.clone())
                .next()
                .unwrap_err()
                .to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    /// A line of an export for each key: a manifest, or a part, of these many parts, or a plain value.
    fn exported(keys: &[(&str, Option<u64>)]) -> String {
        let lines = keys.iter().map(|(key, parts)| {
            let value = parts.map(|parts| {
                let manifest = Manifest {
                    id: ObjectId([0xab; 16]),
                    size: parts,
                    part_bytes: 1,
                };
                manifest.encode()
            });
            let put = Object::new().bytes("key", key.as_bytes());
            let put = put.bytes("value", value.as_deref().unwrap_or_default());
            format!("{}\n", Object::new().object("put", put).finish())
        });
        lines.collect()
    }

    #[test]
    fn manifests_come_behind_their_parts_when_all_before_is_done() {
        let id = ObjectId([0xab; 16]);
        let part = |key: &str, number| {
            String::from_utf8(PartKey::part(key.as_bytes(), id, number).to_vec()).unwrap()
        };
        let (first, second, late) = (part("a", 0), part("a", 1), part("b", 0));
        let text = exported(&[
            ("a", Some(2)),
            (&first, None),
            (&second, None),
            ("b", Some(2)),
            (&late, None),
            ("b", None),
            ("c", None),
        ]);
        for rows_max in [1, 2, 9] {
            let limits = Limits::default();
            let mut batches = Batches::new(rows(&text), rows_max, Duplicates::Last, limits);
            let (mut keys, mut shown, mut next_row) = (Vec::new(), Vec::new(), 1);
            while let Some(prepared) = batches.next().unwrap() {
                assert_eq!(prepared.first_row, next_row);
                next_row += prepared.rows;
                for operation in &prepared.batch.operations {
                    let key = String::from_utf8(operation.key().to_vec()).unwrap();
                    if prepared.behind_all {
                        shown.push(key.clone());
                    }
                    keys.push(key);
                }
            }
            // The second `b` takes the place of the first one, which goes in before it, and what is ready with it.
            assert_eq!(keys, [&first, &second, &late, "a", "b", "b", "c"]);
            assert_eq!(shown, ["a", "b"]);
            assert_eq!(next_row, 8);
        }
    }

    fn puts(pairs: &[(&str, &str)]) -> Rows {
        let line = |(key, value): &(&str, &str)| {
            format!("{{\"put\":{{\"key\":\"{key}\",\"value\":\"{value}\"}}}}\n")
        };
        let lines: String = pairs.iter().map(line).collect();
        rows(&lines)
    }

    #[test]
    fn of_rows_with_equal_keys_the_last_stays_and_they_are_counted() {
        let pairs = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("b", "5")];
        let limits = Limits::default();
        let mut batches = Batches::new(puts(&pairs), 3, Duplicates::Last, limits);
        let (first, second) = (
            batches.next().unwrap().unwrap(),
            batches.next().unwrap().unwrap(),
        );
        assert_eq!(first.batch, Batch::new().put("a", "3").put("b", "2"));
        assert_eq!((first.rows, first.duplicates), (3, 1));
        assert_eq!(second.batch, Batch::new().put("c", "4").put("b", "5"));
        assert_eq!(
            (second.first_row, second.rows, second.duplicates),
            (4, 2, 1)
        );
        assert!(batches.next().unwrap().is_none());
        // A large value that is replaced makes room for the next.
        let big = "x".repeat(BATCH_BYTES_MAX - 100);
        let pairs = [("a", &big[..]), ("a", ""), ("b", &big)];
        let mut batches = Batches::new(puts(&pairs), 9, Duplicates::Last, Limits::default());
        assert_eq!(batches.next().unwrap().unwrap().rows, 3);
    }

    #[test]
    fn rows_with_equal_keys_are_refused_where_that_was_asked_for() {
        let pairs = [("a", "1"), ("b\\n", "2"), ("b\\n", "3")];
        let mut batches = Batches::new(puts(&pairs), 1, Duplicates::Refuse, Limits::default());
        assert_eq!(batches.next().unwrap().unwrap().rows, 1);
        assert_eq!(batches.next().unwrap().unwrap().rows, 1);
        let error = batches.next().unwrap_err().to_string();
        assert!(
            error.contains("f:3: an earlier row has the key \"b\\n\" too"),
            "{error}"
        );
    }
}
