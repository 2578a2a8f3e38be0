//! What a guard tells the audit log: what was refused, and if it is asked for, what was done.

use storage_protocol::{
    Batch, Key, KeyRange, Position, Reading, Result, Scan, StorageError, Watch,
};

use super::Guard;
use crate::audit::{Event, Noted, Outcome, Record};

impl Guard {
    fn record(&self, event: Event, operation: &'static str, outcome: Outcome) -> Record {
        Record::new(event, operation, outcome)
            .by(&self.identity)
            .session(self.session_hash)
            .keyspace(&self.keyspace)
    }

    fn tell_denied(
        &self,
        operation: &'static str,
        error: &StorageError,
        what: impl FnOnce(Record) -> Record,
    ) {
        if self.audit.wants.denied && matches!(error, StorageError::AccessDenied { .. }) {
            let record = self.record(Event::Denied, operation, Outcome::Denied);
            self.audit.put(what(record).reason(&error.to_string()));
        }
    }

    pub(super) fn tell_denied_get(&self, keys: &[Key], error: &StorageError) {
        self.tell_denied("get", error, |record| record.keys(keys.iter()));
    }

    pub(super) fn tell_denied_scan(&self, ranges: &[KeyRange], error: &StorageError) {
        self.tell_denied("scan", error, |record| record.ranges(ranges));
    }

    pub(super) fn tell_denied_commit(&self, batch: &Batch, error: &StorageError) {
        self.tell_denied("commit", error, |record| record.changes(batch));
    }

    pub(super) fn tell_denied_watch(&self, range: &KeyRange, error: &StorageError) {
        let ranges = std::slice::from_ref(range);
        self.tell_denied("watch", error, |record| record.ranges(ranges));
    }

    fn tell<T>(
        &self,
        event: Event,
        operation: &'static str,
        result: &Result<T>,
        position: impl FnOnce(&T) -> Position,
        what: impl FnOnce(Record) -> Record,
    ) {
        let record = match result {
            Ok(done) => {
                let record = self.record(event, operation, Outcome::Allowed);
                record.revision(position(done).revision)
            }
            // Nothing was read, and it is asked for again as soon as there is room.
            Err(StorageError::Overloaded { .. }) => return,
            Err(error) => self.record(event, operation, Outcome::Failed).error(error),
        };
        self.audit.put(what(record));
    }

    pub(super) fn tell_get<T>(&self, keys: &[Key], result: &Result<Reading<T>>) {
        if self.audit.wants.read {
            let position = |reading: &Reading<T>| reading.position;
            self.tell(Event::Read, "get", result, position, |record| {
                record.keys(keys.iter())
            });
        }
    }

    pub(super) fn tell_scan(&self, ranges: &[KeyRange], result: &Result<Scan>) {
        if self.audit.wants.read {
            self.tell(Event::Read, "scan", result, Scan::position, |record| {
                record.ranges(ranges)
            });
        }
    }

    pub(super) fn tell_watch(&self, range: &KeyRange, result: &Result<Watch>) {
        if self.audit.wants.watch {
            self.tell(Event::Watch, "watch", result, Watch::start, |record| {
                record.ranges(std::slice::from_ref(range))
            });
        }
    }

    /// A commit that is about to be made, if those of its kind are written. One to `system` is an administrative act.
    pub(super) fn begin_commit(&self, batch: &Batch) -> Option<Noted> {
        let wants = self.audit.wants;
        let event = match self.is_system && wants.admin {
            true => Event::Admin,
            false if wants.write => Event::Write,
            false => return None,
        };
        self.audit.begin(event, || {
            self.record(event, "commit", Outcome::Allowed)
                .changes(batch)
        })
    }

    /// A session has ended, or its socket is lost.
    pub(super) fn tell_session(&self, operation: &'static str, result: &Result<()>) {
        if self.audit.wants.session {
            let record = self.record(Event::Session, operation, Outcome::Allowed);
            self.audit.put(match result {
                Ok(()) => record,
                Err(error) => record.error(error),
            });
        }
    }
}
