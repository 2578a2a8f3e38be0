//! What a watch does behind a break.

use super::{Findings, Mode, passes};
use crate::history::{Promise, Reference, Start, Told, Violation, WatchStream};

/// Behind a break it goes on right after what was told last, or says that it cannot.
#[must_use]
pub fn resumable(stream: &WatchStream, reference: &Reference) -> Vec<Violation> {
    let mut resume = Resume {
        findings: Findings::new(Promise::Resumable, stream),
        reference,
        told: None,
        pending: None,
        silent: false,
        resyncing: false,
        lost: false,
        marked: false,
    };
    for (_, told) in &stream.events {
        resume.take(told);
    }
    let Resume { mut findings, .. } = resume;
    for pass in passes::passes(stream) {
        if pass.resynced {
            if let Some(wrong) = pass.wrong(stream, reference) {
                findings.tell(format_args!("behind Resynced, {wrong}"));
            }
        } else if pass.broken && stream.mode == Mode::Latest {
            for missed in pass.missed(stream, reference) {
                findings.tell(format_args!("over a break, {missed}"));
            }
        }
    }
    findings.found
}

struct Resume<'a> {
    findings: Findings<'a>,
    reference: &'a Reference,
    /// The position to go on after: the last commit or mark; in `Latest` the last mark.
    told: Option<u64>,
    /// The same, right behind a break, until the next event.
    pending: Option<u64>,
    /// It ended, and was not opened again.
    silent: bool,
    resyncing: bool,
    lost: bool,
    marked: bool,
}

impl Resume<'_> {
    fn take(&mut self, told: &Told) {
        match told {
            Told::Opened { start, position } => self.opened(*start, *position),
            Told::Broke { .. } => self.silent = true,
            Told::Continuous => {
                self.silent = false;
                self.pending = self.told;
            }
            Told::Resynced { .. } => {
                self.silent = false;
                self.resyncing = true;
                self.pending = None;
            }
            Told::Lost { from, .. } => {
                self.lost = true;
                let told = self.told.unwrap_or_default();
                let range = &self.findings.stream.range;
                let between = self.reference.first_between(range, told, *from);
                if *from < told || between.is_some() {
                    self.findings.tell(format_args!(
                        "it is lost from {from} on, it had told up to {told}"
                    ));
                }
            }
            Told::Commit(commit) => {
                let revision = commit.revision;
                self.event(revision, revision.saturating_sub(1), "commit");
                self.told = Some(revision);
            }
            Told::State { revision, .. } => self.event(*revision, 0, "a state of"),
            Told::Mark { revision, .. } => {
                let every = self.findings.stream.mode == Mode::Every;
                // In `Latest` the pass tells what is missing.
                let up_to = if every { *revision } else { 0 };
                self.event(revision.saturating_add(1), up_to, "mark");
                self.told = self.told.max(Some(*revision));
                self.resyncing = false;
                self.marked = true;
                self.pending = None;
            }
            Told::Reset | Told::Asked { .. } => {}
        }
    }

    fn unmarked(&self) -> bool {
        self.findings.stream.mode == Mode::Latest && !self.marked
    }

    fn opened(&mut self, start: Start, position: u64) {
        let range = &self.findings.stream.range;
        let asked = match (start, self.told) {
            (Start::Beginning, None) => 0,
            // Without a mark there is no position yet: it begins anew, with nothing.
            (Start::Beginning, Some(_)) if self.unmarked() => 0,
            (Start::After(after), told) if told.is_none_or(|told| told == after) => after,
            (Start::Now, None) => position,
            (start, told) => {
                self.findings.tell(format_args!(
                    "it was opened again from {start:?}, and stood at {told:?}"
                ));
                position
            }
        };
        // A number that is no commit's counts as the last one before it.
        let (low, high) = (asked.min(position), asked.max(position));
        if let Some(between) = self.reference.first_between(range, low, high) {
            self.findings.tell(format_args!(
                "asked for what comes after {asked} it began at {position}, and {between} lies between"
            ));
        }
        if self.told.is_some() {
            self.pending = Some(asked);
        }
        self.told.get_or_insert(position);
        self.silent = false;
    }

    /// An event of this revision, when all up to `up_to` should have been told.
    fn event(&mut self, revision: u64, up_to: u64, what: &str) {
        if self.lost || self.silent {
            self.findings
                .tell(format_args!("{what} {revision} comes after its end"));
        }
        let Some(pending) = self.pending else { return };
        if self.resyncing {
            return;
        }
        if revision <= pending {
            self.findings.tell(format_args!(
                "behind a break, {what} {revision} comes, and up to {pending} was told before"
            ));
        }
        let range = &self.findings.stream.range;
        if let Some(missed) = self.reference.first_between(range, pending, up_to) {
            self.findings.tell(format_args!(
                "behind a break, commit {missed} was not told: it went on from {pending} with {what} {revision}"
            ));
        }
        // In `Latest` the states of the whole pass come after the break.
        if self.findings.stream.mode == Mode::Every {
            self.pending = None;
        }
    }
}
