//! The batches that the rows of a file make, one commit each.
//!
//! Blocking, like the rows. Invariant: the same file and options are cut in the same way, and rows keep the file's order,
//! also across batches; a key that stands in the batch already begins the next one, so that the later row wins.

use std::collections::HashSet;

use storage_protocol::{Batch, Key, Limit, Limits, Operation, StorageError};

use super::failure::usage;
use super::rows::{Row, Rows};

/// Bytes of rows in one commit.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// What a row costs in [`Batch::bytes`] besides its key and value.
const ROW_OVERHEAD_BYTES: usize = 16;

/// What a batch costs in [`Batch::bytes`] without any rows.
const BATCH_OVERHEAD_BYTES: usize = 1024;

/// A batch that is ready to be sent, and where its rows are from.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) batch: Batch,
    /// Of its first row, counted from 1.
    pub(super) first_row: u64,
    pub(super) first_line: u64,
}

impl Prepared {
    pub(super) fn rows(&self) -> u64 {
        self.batch.operations.len() as u64
    }
}

/// Cuts rows into batches.
pub(super) struct Batches {
    rows: Rows,
    limits: Limits,
    rows_max: usize,
    bytes_max: usize,
    /// The row that did not go into the batch before.
    held: Option<Row>,
    rows_read: u64,
}

impl Batches {
    pub(super) fn new(rows: Rows, rows_max: usize, limits: Limits) -> Self {
        let message_max = limits
            .message_bytes_max
            .saturating_sub(BATCH_OVERHEAD_BYTES);
        Self {
            rows,
            rows_max: rows_max.min(limits.operations_per_commit_max).max(1),
            bytes_max: BATCH_BYTES_MAX.min(message_max),
            limits,
            held: None,
            rows_read: 0,
        }
    }

    /// The next batch; `None` at the end of the file. A bad row fails the batch that it stands in.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Prepared>> {
        let mut prepared = Prepared {
            batch: Batch::new(),
            first_row: self.rows_read + 1,
            first_line: 0,
        };
        let mut keys: HashSet<Key> = HashSet::new();
        let mut bytes = 0;
        while prepared.batch.operations.len() < self.rows_max {
            let Some(row) = self.row()? else { break };
            let row_bytes = row_bytes(&row.operation);
            let full = bytes + row_bytes > self.bytes_max && bytes > 0;
            if full || !keys.insert(row.operation.key().clone()) {
                self.held = Some(row);
                break;
            }
            if bytes == 0 {
                prepared.first_line = row.line;
            }
            bytes += row_bytes;
            prepared.batch.operations.push(row.operation);
        }
        self.rows_read += prepared.rows();
        Ok((prepared.rows() > 0).then_some(prepared))
    }

    fn row(&mut self) -> anyhow::Result<Option<Row>> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(row) = self.rows.next()? else {
            return Ok(None);
        };
        let (file, line) = (self.rows.file(), row.line);
        judge(&row.operation, &self.limits)
            .map_err(|error| usage(format!("{file}:{line}: {error}")))?;
        Ok(Some(row))
    }
}

fn row_bytes(operation: &Operation) -> usize {
    operation.key().len() + operation.value().len() + ROW_OVERHEAD_BYTES
}

/// What the commit would be refused for, while the line is known.
fn judge(operation: &Operation, limits: &Limits) -> Result<(), StorageError> {
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

    use super::super::rows::Format;
    use super::*;

    fn rows(text: &str, format: Format) -> anyhow::Result<Rows> {
        Rows::new("f", Box::new(Cursor::new(text.as_bytes().to_vec())), format, None)
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
        let rows = rows(&lines.concat(), Format::Jsonl).unwrap();
        let mut batches = Batches::new(rows, rows_max, limits);
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
    fn batches_end_by_rows_bytes_and_at_a_key_that_comes_again() {
        let limits = Limits::default;
        assert_eq!(
            batches(&["a", "b", "c"], "", 2, limits()),
            [(1, 1, strings(&["a", "b"])), (3, 3, strings(&["c"]))]
        );
        assert_eq!(
            batches(&["a", "b", "a", "a"], "", 9, limits()),
            [
                (1, 1, strings(&["a", "b"])),
                (3, 3, strings(&["a"])),
                (4, 4, strings(&["a"]))
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
            message_bytes_max: 1024 + 40,
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
            let rows = rows(line, Format::Jsonl).unwrap();
            let error = Batches::new(rows, 9, limits.clone())
                .next()
                .unwrap_err()
                .to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
