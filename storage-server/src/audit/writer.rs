//! The thread that writes records into the files of the audit log.
//!
//! It writes what waits at once, syncs once a second, and at once for an administrative act, whose answer waits for that. An
//! error of the disk stops nobody: it is logged, what is lost is counted, and the next records are tried again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::Files;
use super::queue::Item;
use super::record::{Event, Outcome, Record};
use super::{Core, Dropped, Level};

/// So often what repeats is summed up, and what was written is synced.
pub(super) const ROUND: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    core: Arc<Core>,
    files: Files,
    /// Whether it has been said that a level has reached its bound today: ordinary ones, denials, administrative acts.
    told_bound: [bool; 3],
    /// How many were dropped when that was last written.
    told_dropped: u64,
    /// The last attempt to write failed.
    is_failing: bool,
}

impl Writer {
    pub(super) fn new(core: Arc<Core>, files: Files) -> Self {
        Self {
            core,
            files,
            told_bound: [false; 3],
            told_dropped: 0,
            is_failing: false,
        }
    }

    /// Until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let mut next_round = Instant::now() + ROUND;
        loop {
            let (items, is_end) = self.core.queue.next(next_round);
            self.write(items);
            if is_end || Instant::now() >= next_round {
                self.round();
                next_round = Instant::now() + ROUND;
            }
            if is_end {
                return;
            }
        }
    }

    /// Writes these, and syncs them if somebody waits for that.
    pub(super) fn write(&mut self, items: VecDeque<Item>) {
        if items.is_empty() {
            return;
        }
        let all = items.len() as u64;
        let opened = self.files.open(self.core.now());
        if let Ok(true) = opened {
            self.told_bound = [false; 3];
        }
        let (mut lines, mut fitting) = (Vec::new(), 0);
        let mut waiting = Vec::new();
        for item in items {
            waiting.extend(item.waited_for);
            if opened.is_err() {
                continue;
            }
            if self
                .files
                .has_room(item.level, lines.len() + item.line.len())
            {
                lines.extend_from_slice(&item.line);
                fitting += 1;
            } else {
                self.core.dropped(Dropped::Bound, 1);
                self.tell_bound(item.level, &mut lines);
            }
        }
        let tried = match opened {
            Ok(_) => fitting,
            Err(_) => all,
        };
        let mut written = opened.and_then(|_| self.files.write(&lines));
        if written.is_ok() && !waiting.is_empty() {
            written = self.files.sync();
        }
        match written {
            Ok(()) => {
                self.core.written.inc_by(fitting);
                self.works_again();
            }
            Err(error) => self.failed(&error, tried),
        }
        for (waiter, _place) in waiting {
            // Whoever waited may be gone.
            let _ = waiter.send(());
        }
    }

    /// What is done each second, and at the end.
    pub(super) fn round(&mut self) {
        let ended = self.core.repeats().round();
        let now = self.core.now();
        let mut items: VecDeque<_> = ended
            .into_iter()
            .map(|record| Item {
                level: Level::Denial,
                line: record.line(),
                waited_for: None,
            })
            .collect();
        let dropped = self.core.dropped_unseen();
        let missing = dropped - self.told_dropped;
        // Not where nothing can be written: that record would be lost too, for ever.
        let tells = missing > 0 && !self.is_failing;
        if tells {
            let reason = "records were lost: they came faster than they could be written, or the disk failed";
            let record = Record::new(Event::Audit, "lost", Outcome::Failed)
                .reason(reason)
                .repeated(missing)
                .at(now);
            tracing::warn!(records = missing, "audit: {reason}");
            items.push_back(Item {
                level: Level::Admin,
                line: record.line(),
                waited_for: None,
            });
        }
        self.write(items);
        if tells && !self.is_failing {
            self.told_dropped = dropped;
        }
        if let Err(error) = self.files.sync() {
            self.failed(&error, 0);
        }
        self.files.let_go_of_what_is_gone();
        self.core.clean_up(&self.files, now);
    }

    /// Says once a day, in the file and in the log, that records of a level are left out from here on.
    fn tell_bound(&mut self, level: Level, lines: &mut Vec<u8>) {
        let told = &mut self.told_bound[level as usize];
        if std::mem::replace(told, true) {
            return;
        }
        let what = match level {
            Level::Ordinary => "reads, writes, watches and sessions",
            Level::Denial => "denials",
            Level::Admin => "administrative acts",
        };
        let reason =
            format!("audit.day_bytes_max is reached: {what} are left out until the end of the day");
        tracing::warn!("audit: {reason}");
        let record = Record::new(Event::Audit, "bound", Outcome::Failed).reason(&reason);
        lines.extend(record.at(self.core.now()).line());
    }

    fn failed(&mut self, error: &io::Error, records: u64) {
        self.core.write_errors.inc();
        self.core.dropped(Dropped::Disk, records);
        if !std::mem::replace(&mut self.is_failing, true) {
            let folder = self.files.folder().display();
            tracing::error!(%error, %folder, "cannot write the audit log; the server goes on without it, and tries again");
        }
    }

    fn works_again(&mut self) {
        if std::mem::replace(&mut self.is_failing, false) {
            tracing::info!("the audit log is written again");
        }
    }
}
