//! The order of a session's commits: by their numbers, 1, 2, 3, ..., whatever order their frames came in.
//!
//! A small commit can overtake a large one that travels in parts; it waits here. A commit that is refused spends its
//! number, so those behind it go on. What waits is bounded by the permits of its requests and by the window.

use std::collections::BTreeMap;

use storage_protocol::native::RequestId;
use storage_protocol::{Batch, CommitOptions};

use crate::session::Close;

/// A number comes at most so far ahead of the first that was not answered.
const WINDOW: u64 = 1_024;

/// A commit whose turn comes.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) id: RequestId,
    pub(super) number: u64,
    pub(super) batch: Batch,
    pub(super) options: CommitOptions,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Order {
    next: u64,
    /// What came early; `None`: refused.
    early: BTreeMap<u64, Option<Commit>>,
}

impl Order {
    pub(super) fn new() -> Self {
        Self {
            next: 1,
            early: BTreeMap::new(),
        }
    }

    /// Whether a commit may have this number.
    pub(super) fn check(&self, number: u64) -> Result<(), Close> {
        if number < self.next || self.early.contains_key(&number) {
            return Err(Close::protocol(format!(
                "commit number {number} came before"
            )));
        }
        if number - self.next >= WINDOW {
            let next = self.next;
            return Err(Close::protocol(format!(
                "commit number {number} is too far ahead of {next}, the next"
            )));
        }
        Ok(())
    }

    /// A number whose commit was refused.
    pub(super) fn spend(&mut self, number: u64) {
        self.early.insert(number, None);
    }

    pub(super) fn push(&mut self, commit: Commit) {
        self.early.insert(commit.number, Some(commit));
    }

    /// The commit whose turn it is, if it is there.
    pub(super) fn pop(&mut self) -> Option<Commit> {
        while let Some(turn) = self.early.remove(&self.next) {
            self.next += 1;
            if turn.is_some() {
                return turn;
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
            batch: Batch::new(),
            options: CommitOptions::default(),
        }
    }

    #[test]
    fn commits_leave_in_the_order_of_their_numbers() {
        let mut order = Order::new();
        order.push(commit(3));
        assert!(order.pop().is_none());
        order.spend(2);
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
        assert!(order.check(1 + WINDOW).is_ok());
        assert!(
            order
                .check(2 + WINDOW)
                .unwrap_err()
                .reason
                .contains("too far ahead of 2")
        );
    }
}
