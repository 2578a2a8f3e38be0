//! Checks the order that the protocol promises: of the messages of one watch, of the pages of one scan, and of the
//! revisions of a session's commits.
//!
//! Whatever a server sends, an application gets nothing that is out of order, outside of the range that it asked for,
//! delivered twice, or of the wrong mode. What breaks the protocol ends the connection, with an error that names it.
//! Pure, without I/O, and with memory for little more than the last key.

use std::collections::BTreeMap;

use storage_protocol::{
    CommitRecord, Key, KeyRange, KeyState, Revision, Scan, ScanItem, ScanOptions,
};

/// How a server broke the protocol.
pub(crate) type Broken = String;

/// The order of one stream of a watch: what it has delivered so far, as far as later messages depend on it.
#[derive(Debug)]
pub(crate) struct StreamOrder {
    /// `Latest`: it delivers states, and no commits.
    latest: bool,
    /// Everything up to here was delivered: the start, or the last progress event; with `Every` the last commit as
    /// well.
    told: Revision,
    /// `Latest`: states must be above this revision: `told`, or zero if everything is delivered anew.
    above: Revision,
    /// `Latest`: the last state since the last progress event.
    last: Option<(Revision, Key)>,
}

impl StreamOrder {
    /// The order of a stream that begins after `start`; `anew`: with everything that there is.
    pub(crate) fn new(latest: bool, start: Revision, anew: bool) -> Self {
        Self {
            latest,
            told: start,
            above: if anew { Revision::ZERO } else { start },
            last: None,
        }
    }

    /// Commits of one message.
    pub(crate) fn commits<'a>(
        &mut self,
        range: &KeyRange,
        commits: impl IntoIterator<Item = &'a CommitRecord>,
    ) -> Result<(), Broken> {
        if self.latest {
            return Err("it sent commits (CHANGES) on a watch Latest".to_owned());
        }
        for commit in commits {
            let (revision, told) = (commit.revision, self.told);
            if revision <= told {
                return Err(format!(
                    "it told the commit of revision {revision} behind revision {told}"
                ));
            }
            if commit.changes.is_empty() {
                return Err(format!("it told a commit without a change, {revision}"));
            }
            for change in &commit.changes {
                check_key(range, &change.key)?;
            }
            self.told = revision;
        }
        Ok(())
    }

    /// States of one message.
    pub(crate) fn states(
        &mut self,
        range: &KeyRange,
        states: &[(Key, KeyState)],
    ) -> Result<(), Broken> {
        if !self.latest {
            return Err("it sent states (STATES) on a watch Every".to_owned());
        }
        let above = self.above;
        let mut before = self.last.as_ref().map(|(revision, key)| (*revision, key));
        for (key, state) in states {
            check_key(range, key)?;
            let revision = state.revision();
            if revision <= above {
                return Err(format!(
                    "it told a state of revision {revision}, and everything up to {above} was told"
                ));
            }
            if let Some((last, last_key)) = before
                && (revision, key) <= (last, last_key)
            {
                let (key, last_key) = (shown(key), shown(last_key));
                return Err(format!(
                    "it told the state of {key} at {revision} behind that of {last_key} at {last}"
                ));
            }
            before = Some((revision, key));
        }
        // A copy: the key would keep the whole message alive.
        self.last = before.map(|(revision, key)| (revision, Key::copy_from_slice(key)));
        Ok(())
    }

    /// A progress event.
    pub(crate) fn mark(&mut self, revision: Revision) -> Result<(), Broken> {
        let last = self.last.take().map_or(self.told, |(last, _)| last);
        let told = self.told.max(last);
        if revision < told {
            return Err(format!("a mark went back from {told} to {revision}"));
        }
        (self.told, self.above) = (revision, revision);
        Ok(())
    }

    /// A reset: everything is delivered anew.
    pub(crate) fn reset(&mut self) -> Result<(), Broken> {
        if !self.latest {
            return Err("it sent a RESET on a watch Every".to_owned());
        }
        (self.above, self.last) = (Revision::ZERO, None);
        Ok(())
    }
}

/// The order of one scan.
#[derive(Debug)]
pub(crate) struct ScanOrder {
    range: KeyRange,
    options: ScanOptions,
    /// The revision of the first page, and so of all.
    revision: Option<Revision>,
    left: u64,
    last: Option<Key>,
}

/// The most bytes of a page with several items: the protocol says "about 192 KiB".
const PAGE_BYTES_MAX: usize = 2 * Scan::PAGE_BYTES;

impl ScanOrder {
    pub(crate) fn new(range: KeyRange, options: ScanOptions) -> Self {
        Self {
            range,
            left: options.limit.unwrap_or(u64::MAX),
            options,
            revision: None,
            last: None,
        }
    }

    /// Checks the next page; `more`: it is not the last.
    pub(crate) fn page(
        &mut self,
        revision: Revision,
        items: &[ScanItem],
        more: bool,
    ) -> Result<(), Broken> {
        let first = *self.revision.get_or_insert(revision);
        if revision != first {
            return Err(format!(
                "a scan at revision {first} went on at revision {revision}"
            ));
        }
        if items.is_empty() && more {
            return Err("a page of a scan is empty, and not the last".to_owned());
        }
        self.left = self
            .left
            .checked_sub(items.len() as u64)
            .ok_or("a scan gave more items than its limit")?;
        let mut bytes = 0;
        let mut before = self.last.as_ref();
        for ScanItem { key, state } in items {
            check_key(&self.range, key)?;
            let in_order = before.is_none_or(|before| match self.options.reverse {
                false => before < key,
                true => before > key,
            });
            if !in_order {
                let (key, before) = (shown(key), before.map(shown).unwrap_or_default());
                return Err(format!("a scan gave the key {key} behind {before}"));
            }
            bytes += key.len() + self.check_state(key, state, revision)?;
            before = Some(key);
        }
        if items.len() > 1 && bytes > PAGE_BYTES_MAX {
            return Err(format!(
                "a page of a scan has {bytes} bytes; {PAGE_BYTES_MAX} are too many"
            ));
        }
        self.last = before.map(|key| Key::copy_from_slice(key));
        Ok(())
    }

    /// Checks one item; returns the bytes of its value.
    fn check_state(&self, key: &Key, state: &KeyState, at: Revision) -> Result<usize, Broken> {
        let revision = state.revision();
        let after = self.options.newer_than.map(|position| position.revision);
        if revision > at || after.is_some_and(|after| revision <= after) {
            return Err(format!(
                "a scan at revision {at} gave {} at revision {revision}",
                shown(key)
            ));
        }
        match state {
            KeyState::Live(entry) if self.options.keys_only && !entry.value.is_empty() => Err(
                format!("a scan of keys only gave a value, of {}", shown(key)),
            ),
            KeyState::Live(entry) => Ok(entry.value.len()),
            KeyState::Removed(_) if after.is_none() => Err(format!(
                "a scan gave a tombstone that was not asked for, of {}",
                shown(key)
            )),
            KeyState::Removed(_) => Ok(0),
        }
    }
}

/// The revisions that the commits of one session were answered with: they rise with the commit numbers, in whatever
/// order the answers arrive.
#[derive(Debug, Default)]
pub(crate) struct CommitOrder {
    /// The revisions of the commits above the lowest unanswered number, and of the highest below it. Bounded by what
    /// may be in flight.
    answered: BTreeMap<u64, Revision>,
}

impl CommitOrder {
    /// Notes an answer; `unanswered` is the lowest commit number that is still without one.
    pub(crate) fn note(
        &mut self,
        number: u64,
        revision: Revision,
        unanswered: Option<u64>,
    ) -> Result<(), Broken> {
        let below = self.answered.range(..number).next_back();
        let above = self.answered.range(number..).next();
        let wrong = below
            .filter(|(_, below)| **below >= revision)
            .or_else(|| above.filter(|(_, above)| **above <= revision));
        if let Some((other, at)) = wrong {
            return Err(format!(
                "it answered commit {number} with revision {revision}, and commit {other} with {at}"
            ));
        }
        self.answered.insert(number, revision);
        let floor = unanswered.unwrap_or(u64::MAX);
        while self
            .answered
            .keys()
            .nth(1)
            .is_some_and(|second| *second < floor)
        {
            self.answered.pop_first();
        }
        Ok(())
    }
}

fn check_key(range: &KeyRange, key: &Key) -> Result<(), Broken> {
    if key.is_empty() {
        return Err("it told an empty key".to_owned());
    }
    if !range.contains(key) {
        return Err(format!(
            "it told the key {}, which lies outside of the range {range:?} that was asked for",
            shown(key)
        ));
    }
    Ok(())
}

/// As much of a key as an error needs.
fn shown(key: &Key) -> String {
    const BYTES: usize = 64;
    let start = key.get(..BYTES).unwrap_or(key).escape_ascii();
    let more = if key.len() > BYTES { "..." } else { "" };
    format!("\"{start}{more}\"")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use storage_protocol::{Change, ChangeKind, Entry, EntryLifetime, Epoch, Position, UnixMillis};

    use super::*;

    fn commit(revision: u64, keys: &[&'static str]) -> Arc<CommitRecord> {
        let change = |key: &&'static str| Change {
            key: (*key).into(),
            kind: ChangeKind::Removed { previous: None },
        };
        let changes = keys.iter().map(change).collect();
        let record = CommitRecord::new(
            Revision(revision),
            UnixMillis(1),
            None,
            "cert:w".into(),
            changes,
        );
        Arc::new(record)
    }

    fn state(key: &'static str, revision: u64) -> (Key, KeyState) {
        let entry = Entry {
            value: "v".into(),
            revision: Revision(revision),
            lifetime: EntryLifetime::Forever,
        };
        (key.into(), KeyState::Live(entry))
    }

    /// The message that is refused; `n` of them are taken first.
    fn refused<T>(n: usize, results: impl IntoIterator<Item = Result<T, Broken>>) -> String {
        let mut results = results.into_iter();
        for place in 0..n {
            assert!(results.next().unwrap().is_ok(), "{place} was refused");
        }
        results.next().unwrap().err().unwrap()
    }

    #[test]
    fn every_tells_commits_in_rising_order_within_the_range() {
        let range = KeyRange::prefix("k");
        let every = || StreamOrder::new(false, Revision(60), false);
        let tell = |order: &mut StreamOrder, revision, keys: &[&'static str]| {
            order.commits(&range, [&*commit(revision, keys)])
        };
        let mut order = every();
        for revision in [61, 70, 71] {
            tell(&mut order, revision, &["k1", "k2"]).unwrap();
        }
        order.mark(Revision(71)).unwrap();
        order.mark(Revision(80)).unwrap();
        for (revision, keys, what) in [
            (80, &["k"][..], "revision 80 behind revision 80"),
            (65, &["k"], "revision 65 behind revision 80"),
            (81, &["k", "l"], "the key \"l\""),
            (81, &[""], "an empty key"),
            (81, &[], "without a change"),
        ] {
            let text = tell(&mut order, revision, keys).unwrap_err();
            assert!(text.contains(what), "{text}");
        }
        assert!(order.mark(Revision(79)).unwrap_err().contains("80 to 79"));
        assert!(tell(&mut every(), 60, &["k"]).is_err());
        assert!(every().states(&range, &[state("k", 61)]).is_err());
        assert!(every().reset().is_err());
    }

    #[test]
    fn latest_tells_states_in_rising_order_and_a_key_again_only_at_a_higher_revision() {
        let range = KeyRange::all();
        let tell =
            |order: &mut StreamOrder, states: &[(Key, KeyState)]| order.states(&range, states);
        let latest = || StreamOrder::new(true, Revision(10), false);
        let mut order = latest();
        tell(
            &mut order,
            &[state("b", 11), state("a", 12), state("c", 12)],
        )
        .unwrap();
        tell(&mut order, &[state("a", 14)]).unwrap();
        assert!(order.mark(Revision(13)).unwrap_err().contains("14 to 13"));
        let mut order = latest();
        tell(&mut order, &[state("b", 11), state("a", 12)]).unwrap();
        order.mark(Revision(15)).unwrap();
        for (told, what) in [
            (state("b", 15), "up to 15 was told"),
            (state("b", 11), "up to 15 was told"),
        ] {
            let text = tell(&mut order, &[told]).unwrap_err();
            assert!(text.contains(what), "{text}");
        }
        tell(&mut order, &[state("b", 17)]).unwrap();
        for told in [state("b", 17), state("a", 17), state("c", 16)] {
            assert!(tell(&mut order, &[told]).unwrap_err().contains("at 17"));
        }
        // Everything is delivered anew, but no progress event goes back.
        order.reset().unwrap();
        tell(&mut order, &[state("a", 3), state("b", 3)]).unwrap();
        assert!(order.mark(Revision(14)).unwrap_err().contains("15 to 14"));
        assert!(latest().commits(&range, [&*commit(11, &["k"])]).is_err());
        let mut anew = StreamOrder::new(true, Revision(10), true);
        tell(&mut anew, &[state("a", 1)]).unwrap();
    }

    fn item(key: &'static str, revision: u64) -> ScanItem {
        let (key, state) = state(key, revision);
        ScanItem { key, state }
    }

    #[test]
    fn revisions_of_commits_rise_with_their_numbers() {
        let mut order = CommitOrder::default();
        // 3 is answered before 2.
        order.note(1, Revision(10), Some(2)).unwrap();
        order.note(3, Revision(30), Some(2)).unwrap();
        for revision in [9, 10, 30, 31] {
            assert!(order.note(2, Revision(revision), Some(4)).is_err());
        }
        order.note(2, Revision(20), Some(4)).unwrap();
        assert_eq!(order.answered.len(), 1);
        let text = order.note(4, Revision(30), None).unwrap_err();
        assert!(text.contains("commit 3 with 30"), "{text}");
    }

    #[test]
    fn pages_are_sorted_within_the_range_the_limit_and_the_revision() {
        let range = KeyRange::between("b", "y");
        let page =
            |order: &mut ScanOrder, items: &[ScanItem]| order.page(Revision(50), items, true);
        let with = |change: fn(&mut ScanOptions)| {
            let mut options = ScanOptions::default();
            change(&mut options);
            ScanOrder::new(range.clone(), options)
        };
        type Case<'a> = (&'a str, fn(&mut ScanOptions), &'a [&'a [ScanItem]]);
        let cases: [Case<'_>; 10] = [
            (
                "\"c\" behind \"d\"",
                |_| {},
                &[&[item("d", 1), item("c", 1)]],
            ),
            (
                "\"c\" behind \"c\"",
                |_| {},
                &[&[item("c", 1)], &[item("c", 1)]],
            ),
            (
                "\"d\" behind \"c\"",
                |o| o.reverse = true,
                &[&[item("c", 1)], &[item("d", 1)]],
            ),
            ("the key \"a\"", |_| {}, &[&[item("a", 1)]]),
            ("the key \"y\"", |_| {}, &[&[item("y", 1)]]),
            ("at revision 51", |_| {}, &[&[item("c", 51)]]),
            ("gave a value", |o| o.keys_only = true, &[&[item("c", 1)]]),
            (
                "than its limit",
                |o| o.limit = Some(2),
                &[&[item("c", 1), item("d", 1)], &[item("e", 1)]],
            ),
            ("is empty", |_| {}, &[&[item("c", 1)], &[]]),
            (
                "at revision 7",
                |o| {
                    o.newer_than = Some(Position {
                        epoch: Epoch(1),
                        revision: Revision(7),
                    });
                },
                &[&[item("c", 8)], &[item("d", 7)]],
            ),
        ];
        for (what, change, pages) in cases {
            let mut order = with(change);
            let results = pages.iter().map(|items| page(&mut order, items));
            let text = refused(pages.len() - 1, results);
            assert!(text.contains(what), "{text}");
        }
        let mut order = with(|_| {});
        let tombstone = ScanItem {
            key: "c".into(),
            state: KeyState::Removed(Revision(3)),
        };
        assert!(
            page(&mut order, &[tombstone])
                .unwrap_err()
                .contains("tombstone")
        );
        let mut order = with(|_| {});
        page(&mut order, &[item("c", 1)]).unwrap();
        let text = order
            .page(Revision(51), &[item("d", 1)], false)
            .unwrap_err();
        assert!(text.contains("went on at revision 51"), "{text}");
        // One item may be larger than a page.
        let large = |key: &'static str| {
            let mut item = item(key, 1);
            if let KeyState::Live(entry) = &mut item.state {
                entry.value = vec![0; PAGE_BYTES_MAX + 1].into();
            }
            item
        };
        let mut order = with(|_| {});
        page(&mut order, &[large("c")]).unwrap();
        let text = page(&mut order, &[large("d"), item("e", 1)]).unwrap_err();
        assert!(text.contains("too many"), "{text}");
        // The last page may be empty.
        order.page(Revision(50), &[], false).unwrap();
    }
}
