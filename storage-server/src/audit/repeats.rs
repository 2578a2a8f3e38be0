//! Denials that repeat: so that a flood of them neither fills the log nor hides what else happens.
//!
//! In each second the first ten different ones of a group (the same principal, address, keyspace and operation) are written
//! as they come. What goes beyond, and what was told in that second already, is counted; the second ends with one record for
//! it, which says how many it stands for. So none is lost, and a group writes eleven records a second at most.

use std::collections::HashMap;

use super::record::{Group, Record};

/// Different denials of a group that are written in a second.
pub(super) const WRITTEN_MAX: usize = 10;
/// Groups that are told apart in a second; those of all others are one group.
pub(super) const GROUPS_MAX: usize = 1024;

/// See the module. A second begins with [`Repeats::round`].
#[derive(Debug, Default)]
pub(super) struct Repeats {
    groups: HashMap<Group, Told>,
    others: Told,
}

/// What was told of a group in this second.
#[derive(Debug, Default)]
struct Told {
    /// The fingerprints of those that were written; at most `WRITTEN_MAX`.
    written: Vec<u64>,
    /// How many were not written, and the first of them.
    counted: u64,
    first: Option<Record>,
}

impl Told {
    fn take(&mut self, record: Record) -> Option<Record> {
        let fingerprint = record.fingerprint();
        if self.written.len() < WRITTEN_MAX && !self.written.contains(&fingerprint) {
            self.written.push(fingerprint);
            return Some(record);
        }
        self.counted += 1;
        self.first.get_or_insert(record);
        None
    }

    /// The record for those that were counted.
    fn end(self) -> Option<Record> {
        self.first.map(|record| record.repeated(self.counted))
    }
}

impl Repeats {
    /// A denial: given back if it is to be written now.
    pub(super) fn take(&mut self, record: Record) -> Option<Record> {
        let group = record.group();
        let is_known = self.groups.contains_key(&group);
        let told = match is_known || self.groups.len() < GROUPS_MAX {
            true => self.groups.entry(group).or_default(),
            false => &mut self.others,
        };
        told.take(record)
    }

    /// Ends a second: the records for what was counted in it.
    pub(super) fn round(&mut self) -> Vec<Record> {
        let groups = std::mem::take(&mut self.groups).into_values();
        let others = std::mem::take(&mut self.others);
        groups.chain([others]).filter_map(Told::end).collect()
    }
}
