//! The order of a session's commits: by their commit numbers, 1, 2, 3, ..., whatever order their frames arrived in. On
//! a connection that resumed a session, first the retries, then the new commits.
//!
//! A small commit can overtake a large one that is sent in parts; it waits here. The number of a refused commit is
//! skipped, so that later ones go on. What waits is bounded by the permits of its requests and by the window.

use std::collections::{BTreeMap, VecDeque};

use storage_protocol::native::{COMMIT_WINDOW, Hello, RequestId};
use storage_protocol::{Batch, CommitOptions};

use crate::ws::Close;

/// The highest commit number that is accepted, so that counting on never overflows.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// A commit that waits for its turn.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) id: RequestId,
    pub(super) number: u64,
    pub(super) content: Content,
}

/// What is kept of a commit until its turn.
#[derive(Debug)]
pub(super) enum Content {
    /// All of it: it is to be executed.
    New(Batch, CommitOptions),
    /// A retry, which is not executed: its fingerprint, if it arrived whole.
    Retry(Option<u64>),
}

/// Whether what Hello says of the session's commits is possible.
pub(super) fn check_hello(hello: &Hello) -> Result<(), Close> {
    let Hello {
        sent, unanswered, ..
    } = hello;
    if hello.session.is_none() {
        if hello.incarnation > 0 || *sent > 0 || !unanswered.is_empty() {
            return Err(Close::protocol(
                "Hello asks for a new session and tells of commits or an incarnation of one",
            ));
        }
        return Ok(());
    }
    if *sent > NUMBER_MAX {
        return Err(Close::protocol(format!(
            "Hello says that commit number {sent} was sent; none is above {NUMBER_MAX}"
        )));
    }
    // In ascending order: the decoder checks that.
    if let (Some(lowest), Some(highest)) = (unanswered.first(), unanswered.last()) {
        let window = sent.saturating_sub(COMMIT_WINDOW) + 1..=*sent;
        if !window.contains(lowest) || !window.contains(highest) {
            let (first, last) = (window.start(), window.end());
            return Err(Close::protocol(format!(
                "Hello's unanswered commits are {lowest} to {highest}; with {sent} sent, {first} to {last} may be"
            )));
        }
    }
    Ok(())
}

/// See the module.
#[derive(Debug)]
pub(super) struct Order {
    /// The numbers of commits from before the connection that are to be retried, in their order.
    retries: VecDeque<u64>,
    /// The next number after these.
    next: u64,
    /// The first number of a new commit.
    first_new: u64,
    /// What arrived before its turn; `None`: refused.
    early: BTreeMap<u64, Option<Commit>>,
}

impl Order {
    /// The order of a new session.
    pub(super) fn new() -> Self {
        Self {
            retries: VecDeque::new(),
            next: 1,
            first_new: 1,
            early: BTreeMap::new(),
        }
    }

    /// The order of a session that was resumed, and has executed commits up to `executed`. Hello was checked.
    pub(super) fn resumed(hello: &Hello, executed: u64) -> Self {
        let next = hello.sent.max(executed).saturating_add(1);
        Self {
            retries: hello.unanswered.iter().copied().collect(),
            next,
            first_new: next,
            early: BTreeMap::new(),
        }
    }

    /// The commit number that later commits wait for, if any do.
    pub(super) fn gap(&self) -> Option<u64> {
        let turn = self.turn();
        (!self.early.is_empty() && !self.early.contains_key(&turn)).then_some(turn)
    }

    /// The commit number whose turn it is.
    fn turn(&self) -> u64 {
        self.retries.front().copied().unwrap_or(self.next)
    }

    /// Whether a commit may have this commit number.
    pub(super) fn check(&self, number: u64) -> Result<(), Close> {
        if self.early.contains_key(&number) || (self.first_new..self.next).contains(&number) {
            return Err(Close::protocol(format!(
                "commit number {number} came before"
            )));
        }
        if number < self.next && self.retries.binary_search(&number).is_err() {
            return Err(Close::protocol(format!(
                "commit number {number} came before, and is not to come again"
            )));
        }
        let turn = self.turn();
        if number.saturating_sub(turn) >= COMMIT_WINDOW || number > NUMBER_MAX {
            return Err(Close::protocol(format!(
                "commit number {number} is too far ahead of {turn}, the next"
            )));
        }
        Ok(())
    }

    /// Skips the number of a commit that was refused.
    pub(super) fn skip(&mut self, number: u64) {
        self.early.insert(number, None);
    }

    pub(super) fn push(&mut self, commit: Commit) {
        self.early.insert(commit.number, Some(commit));
    }

    /// The commit whose turn it is, if it has arrived.
    pub(super) fn pop(&mut self) -> Option<Commit> {
        while let Some(commit) = self.early.remove(&self.turn()) {
            if self.retries.pop_front().is_none() {
                self.next += 1;
            }
            if commit.is_some() {
                return commit;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(number: u64) -> Commit {
        Commit {
            id: 0,
            number,
            content: Content::New(Batch::new(), CommitOptions::default()),
        }
    }

    #[test]
    fn commits_leave_in_the_order_of_their_numbers() {
        let mut order = Order::new();
        order.push(commit(3));
        assert!(order.pop().is_none());
        order.skip(2);
        assert!(order.pop().is_none());
        order.push(commit(1));
        assert_eq!(order.pop().unwrap().number, 1);
        assert_eq!(order.pop().unwrap().number, 3);
        assert!(order.pop().is_none());
    }

    #[test]
    fn a_number_is_taken_once_and_within_the_window() {
        let mut order = Order::new();
        order.push(commit(1));
        assert!(
            order
                .check(1)
                .unwrap_err()
                .reason
                .contains("number 1 came before")
        );
        order.pop();
        assert!(order.check(0).is_err());
        assert!(order.check(1).is_err());
        assert!(order.check(2).is_ok());
        assert!(order.check(1 + COMMIT_WINDOW).is_ok());
        assert!(
            order
                .check(2 + COMMIT_WINDOW)
                .unwrap_err()
                .reason
                .contains("too far ahead of 2")
        );
    }

    fn hello(sent: u64, unanswered: &[u64]) -> Hello {
        Hello {
            session: Some(storage_protocol::SessionId([1; 16])),
            incarnation: 1,
            sent,
            unanswered: unanswered.to_vec(),
            ..Hello::new("test")
        }
    }

    #[test]
    fn after_a_resume_the_unanswered_come_first_and_then_what_is_new() {
        let mut order = Order::resumed(&hello(305, &[301, 304]), 302);
        for (number, why) in [
            (300, "not to come again"),
            (302, "not to come again"),
            (305, "not to come again"),
        ] {
            let close = order.check(number).unwrap_err();
            assert!(close.reason.contains(why), "{number}: {}", close.reason);
        }
        for number in [306, 304, 301] {
            order.check(number).unwrap();
            assert!(
                order.pop().is_none(),
                "before {number} the first is missing"
            );
            order.push(commit(number));
        }
        assert!(order.check(304).unwrap_err().reason.contains("came before"));
        for number in [301, 304, 306] {
            assert_eq!(order.pop().unwrap().number, number);
        }
        for number in [301, 304, 306] {
            let close = order.check(number).unwrap_err();
            assert!(close.reason.contains("came before"), "{}", close.reason);
        }
        order.check(307).unwrap();
        // What was executed beyond what the client remembers is not given again.
        let order = Order::resumed(&hello(5, &[]), 9);
        assert!(order.check(6).is_err());
        order.check(10).unwrap();
    }

    #[test]
    fn the_window_counts_from_the_first_that_is_unanswered() {
        let order = Order::resumed(&hello(305, &[301]), 305);
        order.check(300 + COMMIT_WINDOW).unwrap();
        let close = order.check(301 + COMMIT_WINDOW).unwrap_err();
        assert!(close.reason.contains("too far ahead of 301"));
    }

    #[test]
    fn a_hello_that_contradicts_itself_is_refused() {
        check_hello(&hello(5, &[])).unwrap();
        check_hello(&hello(5, &[1, 5])).unwrap();
        check_hello(&hello(2000, &[977])).unwrap();
        for (sent, unanswered) in [
            (5, &[6][..]),
            (5, &[0, 1]),
            (2000, &[976, 1999]),
            (0, &[1]),
            (u64::MAX, &[]),
        ] {
            check_hello(&hello(sent, unanswered)).unwrap_err();
        }
        check_hello(&Hello::new("new")).unwrap();
        let of_new = |change: fn(&mut Hello)| {
            let mut hello = Hello::new("new");
            change(&mut hello);
            check_hello(&hello).unwrap_err()
        };
        of_new(|hello| hello.incarnation = 1);
        of_new(|hello| hello.sent = 1);
        of_new(|hello| hello.unanswered = vec![1]);
    }
}
