//! What one socket has subscribed to, and which documents it is still to be told of.
//!
//! The socket has one watch, over the hull of all its subscriptions. When a subscription needs more of the past or more
//! keys, the watch begins anew at the earliest place that any of them has come to; so a commit may come twice, and each
//! subscription knows how far it was told.

use std::collections::HashMap;

use storage_protocol::KeyRange;

use super::keys;
use super::place::Place;

/// The most subscriptions of one socket.
pub(crate) const SUBSCRIPTIONS_MAX: usize = 1_000;

/// What a subscription is to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    Project(String),
    Source(String),
}

/// Revisions, the first not told any more.
#[derive(Clone, Copy, Debug)]
struct Told {
    from: u64,
    until: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscriptions {
    told: HashMap<Topic, Told>,
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        self.told.len()
    }

    pub(crate) fn has(&self, topic: &Topic) -> bool {
        self.told.contains_key(topic)
    }

    /// Whether so many more may be added.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.told.len() + more <= SUBSCRIPTIONS_MAX
    }

    /// From behind this revision on; what was told of the same topic before is forgotten.
    pub(crate) fn add(&mut self, topic: Topic, revision: u64) {
        let told = Told {
            from: revision,
            until: revision,
        };
        self.told.insert(topic, told);
    }

    /// The keys that can be about a topic.
    pub(crate) fn range(topic: &Topic) -> KeyRange {
        match topic {
            Topic::Project(project) => KeyRange::prefix(keys::metadata_of(project)),
            Topic::Source(_) => keys::projects(),
        }
    }

    /// The keys that can be about any of them; `None` if there are none.
    pub(crate) fn hull(&self) -> Option<KeyRange> {
        self.told
            .keys()
            .map(Self::range)
            .reduce(|one, other| KeyRange {
                start: one.start.min(other.start),
                end: one.end.zip(other.end).map(|(one, other)| one.max(other)),
            })
    }

    /// All of them were told everything up to here.
    pub(crate) fn told_until(&self) -> Option<u64> {
        self.told.values().map(|told| told.until).min()
    }

    /// Whether a document of this commit is to be told, and was not.
    pub(crate) fn wants(&self, revision: u64, place: &Place) -> bool {
        let topics = [
            Topic::Project(place.project.clone()),
            Topic::Source(place.source.clone()),
        ];
        let told = topics.iter().filter_map(|topic| self.told.get(topic));
        let (mut is_wanted, mut was_told) = (false, false);
        for told in told {
            is_wanted |= told.until < revision;
            was_told |= (told.from + 1..=told.until).contains(&revision);
        }
        is_wanted && !was_told
    }

    /// What was told before is not known any more, since other documents may be seen now: what was hidden was not told. A
    /// document that a later subscription asks for again, from the past, comes again then, whether it was told or not.
    pub(crate) fn forget_told(&mut self) {
        for told in self.told.values_mut() {
            told.from = told.until;
        }
    }

    /// All of them were told what there was up to this revision.
    pub(crate) fn advance(&mut self, revision: u64) {
        for told in self.told.values_mut() {
            told.until = told.until.max(revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::repository::keys::tests::place;

    fn project(name: &str) -> Topic {
        Topic::Project(name.to_owned())
    }

    fn source(name: &str) -> Topic {
        Topic::Source(name.to_owned())
    }

    #[test]
    fn the_hull_holds_each_document_of_a_subscription() {
        let mut all = Subscriptions::default();
        assert!(all.hull().is_none());
        all.add(project("m"), 0);
        let one = all.hull().unwrap();
        assert!(one.contains(&keys::metadata(&place("m", "s", "", "n"))));
        assert!(!one.contains(&keys::file(&place("m", "s", "", "n"))));
        all.add(project("b"), 0);
        let two = all.hull().unwrap();
        assert!(two.contains(&keys::metadata(&place("b", "s", "", "n"))));
        assert!(two.contains(&keys::metadata(&place("m", "s", "", "n"))));
        assert!(!two.contains(&keys::metadata(&place("n", "s", "", "n"))));
        all.add(source("s"), 0);
        assert!(
            all.hull()
                .unwrap()
                .contains(&keys::metadata(&place("z", "s", "", "n")))
        );
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn names_are_compared_as_they_are() {
        let mut all = Subscriptions::default();
        all.add(project("Demo"), 0);
        assert!(all.wants(1, &place("Demo", "s", "", "n")));
        assert!(!all.wants(1, &place("demo", "s", "", "n")));
        assert!(!all.wants(1, &place("s", "Demo", "", "n")));
    }

    #[test]
    fn what_rights_have_hidden_counts_as_untold() {
        let mut all = Subscriptions::default();
        let hidden = place("closed", "s", "", "n");
        all.add(source("s"), 0);
        all.advance(10);
        all.add(project("closed"), 0);
        assert!(!all.wants(5, &hidden), "the source was told of it");
        all.forget_told();
        assert!(all.wants(5, &hidden));
        // What nobody asks for again does not come again, and what comes is told once.
        assert!(!all.wants(5, &place("open", "s", "", "n")));
        all.advance(10);
        assert!(!all.wants(5, &hidden));
        assert!(all.wants(11, &hidden));
    }

    proptest! {
        /// Commits 1 to 20, of which some are of project `p`, some of source `s`, some of both. Subscriptions come at any
        /// time, from any revision; each time the watch begins anew where it must.
        #[test]
        fn each_document_is_told_once_and_in_order(
            kinds in prop::collection::vec(0_u8..4, 20),
            first in (0_u64..20, 0_u64..20),
            second in (0_u64..20, 0_u64..20),
            chunk in 1_u64..7,
        ) {
            let mut all = Subscriptions::default();
            let mut told: Vec<u64> = Vec::new();
            let mut coming: Vec<(u64, u64, Topic)> = vec![
                (first.0, first.1.min(first.0), project("p")),
                (second.0, second.1.min(second.0), source("s")),
            ];
            coming.sort_by_key(|(at, _, _)| *at);
            let expected: Vec<u64> = (1..=20)
                .filter(|revision| {
                    let kind = kinds[usize::try_from(*revision - 1).unwrap()];
                    coming.iter().any(|(_, since, topic)| {
                        let is_of = match topic {
                            Topic::Project(_) => kind & 1 != 0,
                            Topic::Source(_) => kind & 2 != 0,
                        };
                        is_of && since < revision
                    })
                })
                .collect();
            // How far the watch has come.
            let mut at = 0;
            let mut committed = 0;
            while committed < 20 || at < 20 {
                committed = (committed + chunk).min(20);
                while coming.first().is_some_and(|(when, _, _)| *when <= committed) {
                    let (_, since, topic) = coming.remove(0);
                    all.add(topic, since);
                    at = all.told_until().unwrap();
                }
                // It takes some of what there is.
                for revision in at + 1..=committed.min(at + chunk) {
                    let kind = kinds[usize::try_from(revision - 1).unwrap()];
                    let project = if kind & 1 != 0 { "p" } else { "x" };
                    let source = if kind & 2 != 0 { "s" } else { "x" };
                    if all.wants(revision, &place(project, source, "", "n")) {
                        told.push(revision);
                    }
                    all.advance(revision);
                    at = revision;
                }
            }
            let mut sorted = told.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }
    }
}
