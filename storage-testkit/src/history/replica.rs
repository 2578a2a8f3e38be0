//! Reads of a replica against the log.
//!
//! A replica answers from memory and says how far it is proven: the revision, and how long ago the proof was asked
//! for. Both must be true: what was read is the state at that revision, and every commit that was acknowledged to
//! anyone before (the time of the read - the age) is in it.

use super::{Acknowledged, Nanos, OpId, Promise, Reference, Seen, Violation};

/// One local read, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRead {
    /// Which.
    pub id: OpId,
    /// When the replica answered, by the clock of the run, taken *before* the read was made (so that the age, which
    /// the replica counts up to a later moment, is never judged too hard).
    pub at: Nanos,
    /// Each key that was read, and its value.
    pub values: Vec<(String, Option<Seen>)>,
    /// The revision that the replica says it is true at.
    pub proven: u64,
    /// How old the replica says that proof is.
    pub age: Nanos,
}

/// Whether the read told the truth.
#[must_use]
pub fn check(
    read: &ReplicaRead,
    reference: &Reference,
    acknowledged: &Acknowledged,
) -> Vec<Violation> {
    let mut found = Vec::new();
    let (id, proven) = (read.id, read.proven);
    for (key, seen) in &read.values {
        let state = reference.value(key, proven);
        if state != *seen {
            found.push(Violation::new(
                Promise::ReplicaState,
                format!("{id} read {key} as {seen:?}, at {proven} the state is {state:?}"),
            ));
        }
    }
    let floor = acknowledged.before(read.at.saturating_sub(read.age));
    // A number that is no commit's counts as the last one before it.
    if proven < floor
        && reference
            .first_between(&super::Range::all(), proven, floor)
            .is_some()
    {
        found.push(Violation::new(
            Promise::ReplicaAge,
            format!(
                "{id} is proven at {proven}, {} ms old, though {floor} was acknowledged before that",
                read.age / 1_000_000
            ),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{Logged, Write};
    use super::*;

    fn reference() -> Reference {
        let commit = |revision: u64, value: &str| Logged {
            revision,
            label: format!("0.{revision}"),
            changes: vec![("a".into(), Write::Put(value.into()))],
        };
        Reference::new(&[commit(3, "x"), commit(5, "y")], 6)
    }

    fn acknowledged() -> Acknowledged {
        Acknowledged {
            steps: vec![(100, 3), (200, 5)],
        }
    }

    fn read(value: &str, revision: u64, proven: u64, at: Nanos, age: Nanos) -> Vec<Promise> {
        let read = ReplicaRead {
            id: OpId {
                client: 1,
                number: 1,
            },
            at,
            values: vec![(
                "a".into(),
                Some(Seen {
                    value: value.into(),
                    revision,
                }),
            )],
            proven,
            age,
        };
        let found = check(&read, &reference(), &acknowledged());
        found.into_iter().map(|found| found.promise).collect()
    }

    #[test]
    fn true_reads_pass() {
        assert_eq!(read("x", 3, 4, 190, 5), []);
        // Old, and honest about it.
        assert_eq!(read("x", 3, 4, 900, 750), []);
        assert_eq!(read("y", 5, 5, 900, 0), []);
    }

    #[test]
    fn a_value_of_another_revision_is_caught() {
        assert_eq!(read("y", 5, 4, 190, 5), [Promise::ReplicaState]);
        assert_eq!(read("x", 3, 5, 900, 0), [Promise::ReplicaState]);
        assert_eq!(read("z", 3, 3, 190, 5), [Promise::ReplicaState]);
    }

    #[test]
    fn an_age_that_is_too_young_is_caught() {
        assert_eq!(read("x", 3, 4, 900, 600), [Promise::ReplicaAge]);
        assert_eq!(read("x", 3, 4, 201, 0), [Promise::ReplicaAge]);
    }
}
