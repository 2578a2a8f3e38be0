//! Creations and updates of one node that follow each other quickly are one event.
//!
//! What is told is the strongest of them, in the state of the last one. A move, a deletion and comments are told at once, behind
//! what waits of their node. The clock is the caller's.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::tree::{Kind, TreeEvent};

/// A node that never is quiet is told after so many times the quiet that is waited for.
const PATIENCE: u32 = 5;
/// The most nodes that wait; beyond that the one that waits longest is told.
const NODES_MAX: usize = 10_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Coalescer {
    quiet: Duration,
    waiting: HashMap<String, Waiting>,
    /// Which node waits with a path: an event may know it by that alone.
    by_path: HashMap<String, String>,
    /// The nodes by when they are due, and a number that tells those of one time apart.
    due: BTreeMap<(Instant, u64), String>,
    number: u64,
}

#[derive(Debug)]
struct Waiting {
    event: TreeEvent,
    first: Instant,
    due: (Instant, u64),
}

/// Which of two kinds is told.
fn strength(kind: Kind) -> u8 {
    match kind {
        Kind::Create => 2,
        Kind::UpdateContent => 1,
        _ => 0,
    }
}

impl Coalescer {
    pub(super) fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            waiting: HashMap::new(),
            by_path: HashMap::new(),
            due: BTreeMap::new(),
            number: 0,
        }
    }

    /// Takes an event; returns what is to be told at once.
    pub(super) fn offer(&mut self, event: TreeEvent, now: Instant) -> Vec<TreeEvent> {
        let waits = matches!(
            event.kind,
            Kind::Create | Kind::UpdateContent | Kind::UpdateMeta
        );
        let before = self.remove(event.node());
        // Another that waits with one of its paths was before it, and is told so.
        let at_paths = event.paths().map(|path| self.by_path.get(path).cloned());
        let at_paths: Vec<String> = at_paths.flatten().collect();
        let others = at_paths.iter().filter_map(|node| self.remove(node));
        let mut told: Vec<TreeEvent> = others.map(|waiting| waiting.event).collect();
        if !waits || self.quiet.is_zero() {
            told.extend(before.map(|waiting| waiting.event));
            told.push(event);
            return told;
        }
        let (mut event, mut first) = (event, now);
        if let Some(before) = before {
            first = before.first;
            if strength(before.event.kind) > strength(event.kind) {
                event.kind = before.event.kind;
            }
        }
        self.number += 1;
        let latest = first + self.quiet * PATIENCE;
        let due = ((now + self.quiet).min(latest), self.number);
        let node = event.node().to_owned();
        self.due.insert(due, node.clone());
        for path in event.paths() {
            self.by_path.insert(path.to_owned(), node.clone());
        }
        self.waiting.insert(node, Waiting { event, first, due });
        if self.waiting.len() > NODES_MAX
            && let Some((_, node)) = self.due.first_key_value()
        {
            let node = node.clone();
            told.extend(self.remove(&node).map(|waiting| waiting.event));
        }
        told
    }

    fn remove(&mut self, node: &str) -> Option<Waiting> {
        let waiting = self.waiting.remove(node)?;
        self.due.remove(&waiting.due);
        for path in waiting.event.paths() {
            self.by_path.remove(path);
        }
        Some(waiting)
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((due, _), _)| *due)
    }

    /// What is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<TreeEvent> {
        let mut told = Vec::new();
        while let Some(((due, _), node)) = self.due.first_key_value() {
            if *due > now {
                break;
            }
            let node = node.clone();
            told.extend(self.remove(&node).map(|waiting| waiting.event));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Node;
    use super::*;

    const QUIET: Duration = Duration::from_secs(1);

    fn event(kind: Kind, uuid: &str, path: &str) -> TreeEvent {
        let node = Some(Node::at(uuid, path));
        match kind {
            Kind::Delete => TreeEvent {
                kind,
                source: node,
                target: None,
            },
            Kind::UpdatePath => TreeEvent {
                kind,
                source: node.clone(),
                target: node,
            },
            _ => TreeEvent {
                kind,
                source: None,
                target: node,
            },
        }
    }

    fn kinds(events: &[TreeEvent]) -> Vec<Kind> {
        events.iter().map(|event| event.kind).collect()
    }

    #[test]
    fn a_deletion_by_path_alone_is_behind_the_creation_that_waits() {
        let (mut waiting, now) = (Coalescer::new(QUIET), Instant::now());
        assert!(waiting.offer(event(Kind::Create, "n", "a"), now).is_empty());
        let told = waiting.offer(event(Kind::Delete, "", "a"), now);
        let kinds: Vec<Kind> = told.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [Kind::Create, Kind::Delete]);
        assert!(waiting.take_due(now + QUIET * 2).is_empty());
        // Another node at a path does not merge with the one that was there.
        assert!(waiting.offer(event(Kind::Create, "n", "a"), now).is_empty());
        let told = waiting.offer(event(Kind::UpdateMeta, "m", "a"), now);
        assert_eq!(told, [event(Kind::Create, "n", "a")]);
        let left = waiting.take_due(now + QUIET * 2);
        assert_eq!(left, [event(Kind::UpdateMeta, "m", "a")]);
        assert!(waiting.by_path.is_empty());
    }

    #[test]
    fn what_follows_quickly_is_one_event_of_the_strongest_kind() {
        let (mut waiting, start) = (Coalescer::new(QUIET), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        for (millis, kind, path) in [
            (0, Kind::UpdateMeta, "a"),
            (500, Kind::Create, "b"),
            (900, Kind::UpdateContent, "c"),
        ] {
            assert!(waiting.offer(event(kind, "n", path), at(millis)).is_empty());
        }
        assert!(
            waiting
                .offer(event(Kind::UpdateMeta, "m", "m"), at(950))
                .is_empty()
        );
        assert_eq!(waiting.next_due(), Some(at(1_900)));
        assert!(waiting.take_due(at(1_899)).is_empty());
        assert_eq!(waiting.take_due(at(1_900)), [event(Kind::Create, "n", "c")]);
        assert_eq!(kinds(&waiting.take_due(at(2_000))), [Kind::UpdateMeta]);
        assert_eq!(waiting.next_due(), None);
    }

    #[test]
    fn a_deletion_does_not_wait_and_comes_behind_what_did() {
        let (mut waiting, now) = (Coalescer::new(QUIET), Instant::now());
        waiting.offer(event(Kind::Create, "n", "a"), now);
        let told = waiting.offer(event(Kind::Delete, "n", "a"), now);
        assert_eq!(kinds(&told), [Kind::Create, Kind::Delete]);
        assert_eq!(waiting.next_due(), None);
        let told = waiting.offer(event(Kind::UpdatePath, "n", "a"), now);
        assert_eq!(kinds(&told), [Kind::UpdatePath]);
    }

    #[test]
    fn a_node_that_is_never_quiet_is_told_all_the_same_and_not_all_of_them_wait() {
        let (mut waiting, start) = (Coalescer::new(QUIET), Instant::now());
        for half_second in 0..9 {
            let now = start + QUIET / 2 * half_second;
            assert!(waiting.take_due(now).is_empty());
            waiting.offer(event(Kind::UpdateMeta, "n", "a"), now);
        }
        assert_eq!(waiting.next_due(), Some(start + QUIET * 5));
        let mut told = 0;
        for n in 0..NODES_MAX + 5 {
            told += waiting
                .offer(
                    event(Kind::Create, &format!("x{n}"), &format!("p{n}")),
                    start,
                )
                .len();
        }
        assert_eq!(told, 6);
        assert_eq!(waiting.waiting.len(), NODES_MAX);
        assert_eq!(waiting.due.len(), NODES_MAX);
    }
}
