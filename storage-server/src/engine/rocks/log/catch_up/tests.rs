//! The reader without a log: who is answered when, what is kept, what it costs to go away.

use std::sync::Arc;

use futures_util::FutureExt;
use storage_protocol::{
    Change, ChangeKind, CommitRecord, Outcome, Revision, StorageError, UnixMillis, Value,
};

use super::super::LogPage;
use super::{CACHE_BYTES, CatchUp};
use crate::engine::rocks::layout::KeyspaceId;
use crate::feed::page::CommitPage;

/// A page of one commit at its end.
fn page(after: u64, reached: u64, bytes: usize) -> LogPage {
    let kind = ChangeKind::Signalled {
        bytes: Value::from(vec![0; bytes]),
    };
    let changes = vec![Change {
        key: "k".into(),
        kind,
    }];
    let record = CommitRecord::new(Revision(reached), UnixMillis(0), None, "t".into(), changes);
    let commits = vec![(KeyspaceId(1), Arc::new(record))];
    CommitPage::new(Revision(after), Revision(reached), commits)
}

fn next_offset(reader: &CatchUp) -> Option<(u64, Option<u64>)> {
    let place = reader.lock().next_offset();
    place.map(|(after, until)| (after.0, until.map(|until| until.0)))
}

#[test]
fn all_who_wait_inside_a_page_are_answered_by_one_read() {
    let reader = CatchUp::default();
    let mut inside: Vec<_> = [10, 15, 10, 19]
        .map(|after| Box::pin(reader.page_after(Revision(after))))
        .into();
    let mut behind = Box::pin(reader.page_after(Revision(20)));
    for asker in &mut inside {
        assert!(asker.as_mut().now_or_never().is_none());
    }
    assert!(behind.as_mut().now_or_never().is_none());
    assert_eq!(next_offset(&reader), Some((10, None)));
    reader.lock().insert(page(10, 20, 1));
    for asker in inside {
        let page = asker.now_or_never().expect("it has come").unwrap();
        assert_eq!(page.reached(), Revision(20));
    }
    assert!(behind.as_mut().now_or_never().is_none());
    // The others' places are passed over; a page that comes before a cached one ends there.
    assert_eq!(next_offset(&reader), Some((20, None)));
    let mut before = Box::pin(reader.page_after(Revision(3)));
    assert!(before.as_mut().now_or_never().is_none());
    assert_eq!(next_offset(&reader), Some((3, Some(10))));
    // And who comes later finds it without waiting.
    let found = reader.page_after(Revision(17)).now_or_never();
    assert_eq!(
        found.expect("at once").unwrap().starts_after(),
        Revision(10)
    );
}

#[test]
fn the_earliest_place_is_read_first_and_nobody_is_passed_over() {
    let reader = CatchUp::default();
    let mut askers: Vec<_> = [50, 10, 60, 30]
        .map(|after| Box::pin(reader.page_after(Revision(after))))
        .into();
    for asker in &mut askers {
        assert!(asker.as_mut().now_or_never().is_none());
    }
    // Who went away is not read for.
    drop(askers.remove(1));
    assert_eq!(next_offset(&reader), Some((50, None)));
    reader.lock().insert(page(50, 51, 1));
    // Whoever comes with an earlier place is read for first, but not for ever.
    let mut read = Vec::new();
    for early in 1..8 {
        let mut asker = Box::pin(reader.page_after(Revision(early)));
        assert!(asker.as_mut().now_or_never().is_none());
        askers.push(asker);
        let (place, _) = next_offset(&reader).unwrap();
        reader.lock().insert(page(place, place + 1, 1));
        read.push(place);
    }
    assert_eq!(read, [1, 2, 3, 60, 4, 5, 6]);
    assert_eq!(reader.figures().waiting, 2);
    let rest = [next_offset(&reader), next_offset(&reader)];
    assert_eq!(rest.map(|place| place.unwrap().0), [30, 7]);
}

#[test]
fn the_cache_is_bounded_and_an_answer_holds_no_page() {
    let reader = CatchUp::default();
    let mut asker = Box::pin(reader.page_after(Revision(0)));
    assert!(asker.as_mut().now_or_never().is_none());
    for n in 0..100 {
        reader.lock().insert(page(n * 10, n * 10 + 10, 1 << 20));
        assert!(reader.figures().cache_bytes <= CACHE_BYTES);
    }
    assert!(reader.cached_after(Revision(995)).is_some());
    assert!(reader.cached_after(Revision(5)).is_none());
    // The page is gone before its waiter looked: it asks again.
    assert!(asker.as_mut().now_or_never().is_none());
    assert_eq!(next_offset(&reader).map(|(after, _)| after), Some(0));
    // One page is kept, however large.
    reader.lock().insert(page(5000, 5010, 2 * CACHE_BYTES));
    assert!(reader.cached_after(Revision(5000)).is_some());
    assert!(reader.cached_after(Revision(995)).is_none());
    // The same place read again counts once.
    for _ in 0..3 {
        reader.lock().insert(page(6000, 6010, 1 << 20));
    }
    assert!(reader.figures().cache_bytes < 4 << 20);
}

#[test]
fn what_the_log_does_not_reach_is_told_to_all_who_are_late() {
    let reader = CatchUp::default();
    let wait_for = |after| {
        let mut asker = Box::pin(reader.page_after(Revision(after)));
        assert!(asker.as_mut().now_or_never().is_none());
        asker
    };
    let (late, first, in_time) = (wait_for(7), wait_for(3), wait_for(10));
    let compacted = StorageError::Compacted {
        oldest: Revision(10),
    };
    reader.lock().failed(Revision(3), &compacted);
    for asker in [late, first] {
        assert_eq!(asker.now_or_never().unwrap().unwrap_err(), compacted);
    }
    assert!(in_time.now_or_never().is_none());
    // Another error is for its own place.
    let (other, failed) = (wait_for(20), wait_for(21));
    let error = StorageError::Internal {
        message: String::new(),
        outcome: Outcome::NotExecuted,
    };
    reader.lock().failed(Revision(21), &error);
    assert_eq!(failed.now_or_never().unwrap().unwrap_err(), error);
    assert!(other.now_or_never().is_none());
}

#[test]
fn who_waits_when_it_stops_is_told_and_who_comes_later_too() {
    let reader = CatchUp::default();
    let mut asker = Box::pin(reader.page_after(Revision(0)));
    assert!(asker.as_mut().now_or_never().is_none());
    reader.stop();
    for answer in [asker, Box::pin(reader.page_after(Revision(0)))] {
        let error = answer.now_or_never().expect("at once").unwrap_err();
        assert!(matches!(error, StorageError::Closed { .. }), "{error:?}");
    }
    reader.lock().insert(page(0, 10, 1));
    assert_eq!(reader.figures().cache_bytes, 0);
    assert!(reader.next_offset(|| {}).is_none());
}
