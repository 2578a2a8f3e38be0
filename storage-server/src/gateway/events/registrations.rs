//! The registrations of one socket, and how far each has been served.
//!
//! All are served by one watch over the smallest range that covers them. A registration takes effect behind a position,
//! so a watch that also tells what was before is no harm: that is how one is replaced by one of another range, and how
//! a replay goes over into what is live.

use std::collections::HashMap;

use prometheus_client::metrics::gauge::Gauge;
use storage_protocol::{KeyRange, Position, Revision};

use super::event::Event;
use super::filter::{Filter, hull};

/// The most registrations of a socket.
pub(super) const REGISTRATIONS_MAX: usize = 1_000;
/// What the filters of a socket may take in all, in bytes of their texts and 64 for each name.
pub(super) const REGISTRATION_BYTES_MAX: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Registrations {
    by_text: HashMap<String, Registration>,
    bytes: usize,
    /// Those of all sockets.
    gauge: Gauge,
}

#[derive(Clone, Debug)]
pub(super) struct Registration {
    filter: Filter,
    /// Where it began: with `after` the stretch of which it has been told all that it matches.
    from: Revision,
    /// It is told what comes behind this.
    after: Position,
    /// The watch has its range and was behind no event that it wants.
    is_covered: bool,
}

impl Drop for Registrations {
    fn drop(&mut self) {
        self.gauge.dec_by(count(self.by_text.len()));
    }
}

fn count(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

impl Registrations {
    pub(super) fn new(gauge: &Gauge) -> Self {
        Self {
            by_text: HashMap::new(),
            bytes: 0,
            gauge: gauge.clone(),
        }
    }

    pub(super) fn has(&self, filter: &Filter) -> bool {
        self.by_text.contains_key(filter.as_str())
    }

    /// Whether there is room for one more.
    ///
    /// # Errors
    /// The bound that has been reached.
    pub(super) fn check_room(&self, filter: &Filter) -> Result<(), String> {
        if self.has(filter) {
            return Ok(());
        }
        if self.by_text.len() >= REGISTRATIONS_MAX {
            return Err(format!(
                "a socket has at most {REGISTRATIONS_MAX} registrations (registrations_max)"
            ));
        }
        match self.bytes + filter.cost() <= REGISTRATION_BYTES_MAX {
            true => Ok(()),
            false => Err(format!(
                "the registrations of a socket have at most {REGISTRATION_BYTES_MAX} bytes (registration_bytes_max)"
            )),
        }
    }

    /// Adds one that is not there yet, and returns whether it was not.
    pub(super) fn add(&mut self, filter: Filter, after: Position) -> bool {
        if self.has(&filter) {
            return false;
        }
        self.put(filter, after);
        true
    }

    /// Adds one that begins in the past. If it was there, it begins anew, and what it was is returned.
    pub(super) fn replay(&mut self, filter: Filter, after: Position) -> Option<Registration> {
        let before = self.remove(filter.as_str());
        self.put(filter, after);
        before
    }

    /// Takes a replay back.
    pub(super) fn restore(&mut self, text: &str, before: Option<Registration>) {
        self.remove(text);
        if let Some(Registration {
            filter,
            from,
            after,
            ..
        }) = before
        {
            let text = filter.as_str().to_owned();
            self.put(filter, after);
            if let Some(restored) = self.by_text.get_mut(&text) {
                restored.from = from;
            }
        }
    }

    fn put(&mut self, filter: Filter, after: Position) {
        self.bytes += filter.cost();
        self.gauge.inc();
        let registration = Registration {
            filter: filter.clone(),
            from: after.revision,
            after,
            is_covered: false,
        };
        self.by_text
            .insert(filter.as_str().to_owned(), registration);
    }

    /// Removes the one with this very text.
    pub(super) fn remove(&mut self, text: &str) -> Option<Registration> {
        let removed = self.by_text.remove(text)?;
        self.bytes -= removed.filter.cost();
        self.gauge.dec();
        Some(removed)
    }

    /// Whether the socket is to be told an event of this revision: any is for it, and none has told it already, as one
    /// that was live may have where another is replayed.
    pub(super) fn want(&self, event: &Event<'_>, revision: Revision) -> bool {
        let mut wanted = false;
        for one in self.by_text.values() {
            let is_open = one.after.revision < revision;
            let is_told = !is_open && one.from < revision;
            if (is_told || (is_open && !wanted)) && event.is_for(&one.filter) {
                if is_told {
                    return false;
                }
                wanted = true;
            }
        }
        wanted
    }

    /// Whether any may be for an event of this key, whatever its action.
    pub(super) fn may_want(&self, kind: &str, key: &str) -> bool {
        let mut all = self.by_text.values();
        all.any(|one| one.filter.has_key(kind, key))
    }

    /// What was told up to here was told under other rights, and may have been less than what matches.
    pub(super) fn doubt_what_was_told(&mut self) {
        for one in self.by_text.values_mut() {
            one.from = one.after.revision;
        }
    }

    /// The smallest range with the keys of all.
    pub(super) fn range(&self, key_bytes_max: usize) -> Option<KeyRange> {
        let all = self.by_text.values();
        all.filter_map(|one| one.filter.range(key_bytes_max))
            .reduce(|a, b| hull(&a, &b))
    }

    /// Where a watch has to begin so that none misses anything.
    pub(super) fn start(&self) -> Option<Position> {
        let all = self.by_text.values().map(|one| one.after);
        all.min_by_key(|position| position.revision)
    }

    /// The present watch has told all up to here.
    pub(super) fn told_up_to(&mut self, position: Position) {
        for one in self.by_text.values_mut().filter(|one| one.is_covered) {
            if one.after.revision < position.revision {
                one.after = position;
            }
        }
    }

    /// Whether the present watch, which has told all up to here, has all that is wanted still before it.
    pub(super) fn begin_behind(&self, position: Position) -> bool {
        let mut open = self.by_text.values().filter(|one| !one.is_covered);
        open.all(|one| one.after.revision >= position.revision)
    }

    /// There is a watch for all of them.
    pub(super) fn cover(&mut self) {
        for one in self.by_text.values_mut() {
            one.is_covered = true;
        }
    }

    /// What is before this position is lost to all of them.
    pub(super) fn skip_to(&mut self, position: Position) {
        for one in self.by_text.values_mut() {
            if one.after.revision < position.revision || one.after.epoch != position.epoch {
                one.after = position;
                one.from = position.revision;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Change, ChangeKind, CommitRecord, Epoch, Key, UnixMillis};

    use super::*;

    fn at(revision: u64) -> Position {
        Position {
            epoch: Epoch(1),
            revision: Revision(revision),
        }
    }

    fn filter(text: &str) -> Filter {
        Filter::parse(text).unwrap()
    }

    fn wants(registrations: &Registrations, key: &str, revision: u64) -> bool {
        let change = Change {
            key: Key::from(key.to_owned()),
            kind: ChangeKind::Removed { previous: None },
        };
        let (revision, time) = (Revision(revision), UnixMillis(0));
        let commit = CommitRecord::new(revision, time, None, String::new(), vec![change]);
        let event = Event::of(&commit, &commit.changes[0]).unwrap();
        registrations.want(&event, revision)
    }

    #[test]
    fn a_registration_takes_effect_behind_its_position_and_goes_with_its_text() {
        let gauge = Gauge::default();
        let mut all = Registrations::new(&gauge);
        assert!(all.add(filter("a.*.*"), at(5)));
        assert!(!all.add(filter("a.*.*"), at(9)));
        assert!(!wants(&all, "a/x", 5) && wants(&all, "a/x", 6) && !wants(&all, "b/x", 6));
        assert!(all.add(filter("*.*.x"), at(7)));
        assert_eq!(gauge.get(), 2);
        assert!(all.remove("*.*.*").is_none());
        assert!(all.remove("a.*.*").is_some());
        assert!(!wants(&all, "a/x", 7) && wants(&all, "a/x", 8));
        drop(all);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn a_replay_begins_anew_and_the_others_go_on_where_they_were() {
        let mut all = Registrations::new(&Gauge::default());
        all.add(filter("a.*.*"), at(5));
        all.cover();
        all.add(filter("b.*.*"), at(12));
        all.told_up_to(at(10));
        assert_eq!(all.start(), Some(at(10)));
        assert!(all.begin_behind(at(10)));
        all.replay(filter("c.*.*"), at(2));
        assert!(!all.begin_behind(at(10)));
        assert_eq!(all.start(), Some(at(2)));
        assert!(!wants(&all, "a/x", 10) && !wants(&all, "b/x", 12) && wants(&all, "c/x", 3));
        all.restore("c.*.*", None);
        assert_eq!(all.start(), Some(at(10)));
        let before = all.replay(filter("a.*.*"), at(1));
        assert!(wants(&all, "a/x", 2));
        all.restore("a.*.*", before);
        assert!(!wants(&all, "a/x", 10));
        all.skip_to(at(20));
        assert_eq!(all.start(), Some(at(20)));
    }

    #[test]
    fn what_one_has_told_another_does_not_tell_again() {
        let mut all = Registrations::new(&Gauge::default());
        all.add(filter("a.*.*"), at(5));
        all.cover();
        all.told_up_to(at(10));
        all.replay(filter("*.*.*"), at(2));
        // Before the first one began, and what it is not for.
        assert!(wants(&all, "a/x", 5) && wants(&all, "b/x", 6));
        assert!(!wants(&all, "a/x", 6) && !wants(&all, "a/x", 10) && wants(&all, "a/x", 11));
        // A replay that is taken back leaves what was told before it.
        let before = all.replay(filter("a.*.*"), at(1));
        assert!(wants(&all, "a/x", 6));
        all.restore("a.*.*", before);
        assert!(!wants(&all, "a/x", 6) && !wants(&all, "a/x", 10));
        // The same again asks for all of it again; so does a change of rights.
        all.replay(filter("a.*.*"), at(1));
        assert!(wants(&all, "a/x", 6));
        all.told_up_to(at(10));
        all.cover();
        all.told_up_to(at(12));
        all.doubt_what_was_told();
        all.replay(filter("*.*.x"), at(2));
        assert!(wants(&all, "a/x", 6));
    }

    #[test]
    fn registrations_are_bounded_by_number_and_by_bytes() {
        let mut all = Registrations::new(&Gauge::default());
        for n in 0..REGISTRATIONS_MAX {
            all.check_room(&filter(&format!("a.*.{n}"))).unwrap();
            all.add(filter(&format!("a.*.{n}")), at(1));
        }
        let error = all.check_room(&filter("b.*.*")).unwrap_err();
        assert!(error.contains("registrations_max"), "{error}");
        all.check_room(&filter("a.*.7")).unwrap();
        all.remove("a.*.7");
        all.check_room(&filter("b.*.*")).unwrap();
        let long = filter(&format!("a.*.{}", "x,y,".repeat(10_000)));
        let listed = filter(&format!(
            "a.*.{}",
            (0..20_000).map(|n| format!("{n},")).collect::<String>()
        ));
        all.check_room(&long).unwrap();
        let error = all.check_room(&listed).unwrap_err();
        assert!(error.contains("registration_bytes_max"), "{error}");
    }
}
