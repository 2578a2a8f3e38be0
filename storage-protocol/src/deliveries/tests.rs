//! The steps and the record, by themselves.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::step::Step;
use super::*;
use crate::{Key, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn new() -> NewJob {
    NewJob::new(Recipient::new("r").unwrap(), NOW, "payload")
}

fn at(millis: u64) -> UnixMillis {
    UnixMillis(NOW.0 + millis)
}

fn claim() -> Step {
    Step::Claim {
        holder: "h".into(),
        hold: Duration::from_secs(2),
    }
}

fn by(holder: &str) -> String {
    holder.to_owned()
}

/// The job after these steps, each at its time.
fn after(job: &Job, steps: &[(u64, Step)]) -> Job {
    steps.iter().fold(job.clone(), |job, (millis, step)| {
        let next = job.after(step, at(*millis));
        next.unwrap_or_else(|_| panic!("{step:?} of {:?}", job.state))
    })
}

fn refused(job: &Job, step: &Step) -> bool {
    job.after(step, at(0)).is_err()
}

#[test]
fn a_job_goes_its_way() {
    let job = new().begin(NOW).unwrap();
    let job = after(&job, &[(0, Step::Time)]);
    assert_eq!(
        job.state,
        JobState::Ready {
            until: at(24 * 3_600_000)
        }
    );
    let job = after(&job, &[(5, claim())]);
    assert_eq!(job.attempts, 1);
    assert_eq!(
        job.state,
        JobState::Claimed {
            holder: by("h"),
            until: at(2_005)
        }
    );
    let job = after(&job, &[(9, Step::Delivered { holder: by("h") })]);
    assert_eq!(job.handed_over, Some(at(9)));
    assert_eq!(
        job.state,
        JobState::Delivered {
            holder: by("h"),
            until: at(30_009)
        }
    );
    let job = after(&job, &[(10, Step::Acknowledge)]);
    assert_eq!(job.state, JobState::Done);
    for step in [
        Step::Time,
        Step::Force,
        claim(),
        Step::Acknowledge,
        Step::Cancel,
        Step::Fail { reason: by("x") },
    ] {
        assert!(refused(&job, &step), "{step:?}");
    }
}

#[test]
fn only_the_holder_hands_over_and_gives_back() {
    let ready = after(&new().begin(NOW).unwrap(), &[(0, Step::Time)]);
    let claimed = after(&ready, &[(0, claim())]);
    assert!(refused(
        &claimed,
        &Step::Delivered {
            holder: by("other")
        }
    ));
    assert!(refused(
        &claimed,
        &Step::Release {
            holder: by("other")
        }
    ));
    assert!(refused(&claimed, &claim()));
    let back = after(&claimed, &[(1, Step::Release { holder: by("h") })]);
    assert_eq!((back.attempts, back.state.kind()), (0, StateKind::Ready));
    // What was handed over and lost is an attempt.
    let delivered = after(&claimed, &[(1, Step::Delivered { holder: by("h") })]);
    let back = after(&delivered, &[(2, Step::Release { holder: by("h") })]);
    assert_eq!((back.attempts, back.state.kind()), (1, StateKind::Ready));
}

#[test]
fn what_is_declined_comes_again_with_growing_pauses_and_then_is_a_dead_letter() {
    let mut job = new();
    job.policy.attempts_max = 3;
    let mut job = after(&job.begin(NOW).unwrap(), &[(0, Step::Time)]);
    let decline = || Step::Decline {
        reason: by("no room"),
    };
    for pause in [1_000, 2_000] {
        job = after(
            &job,
            &[(0, Step::HandOver { holder: by("h") }), (0, decline())],
        );
        assert_eq!(job.state, JobState::Pending { at: at(pause) });
        assert!(refused(&job, &Step::Time), "not yet");
        job = after(&job, &[(pause, Step::Time)]);
    }
    job = after(
        &job,
        &[(0, Step::HandOver { holder: by("h") }), (0, decline())],
    );
    assert_eq!(
        job.state,
        JobState::Failed {
            reason: by("no room (attempt 3 of 3)")
        }
    );
}

#[test]
fn silence_is_what_the_policy_says() {
    let mut new = new();
    let hand_over = [(0, Step::Time), (0, Step::HandOver { holder: by("h") })];
    let job = after(&new.begin(NOW).unwrap(), &hand_over);
    let job = after(&job, &[(30_000, Step::Time)]);
    assert_eq!(job.state, JobState::Pending { at: at(31_000) });
    // A late acknowledgement is one.
    assert_eq!(
        after(&job, &[(30_500, Step::Acknowledge)]).state,
        JobState::Done
    );
    new.policy.silence = Silence::Done;
    let job = after(&new.begin(NOW).unwrap(), &hand_over);
    let job = after(&job, &[(30_000, Step::Time)]);
    assert_eq!(job.state, JobState::Done);
    // And is tried again if the recipient declines after all.
    let job = after(&job, &[(30_100, Step::Decline { reason: by("x") })]);
    assert_eq!(job.state, JobState::Pending { at: at(31_100) });
}

#[test]
fn who_is_not_there_and_who_is_gone() {
    let ready = after(&new().begin(NOW).unwrap(), &[(0, Step::Time)]);
    let failed = after(&ready, &[(24 * 3_600_000, Step::Time)]);
    assert!(matches!(failed.state, JobState::Failed { reason } if reason.contains("86400000 ms")));
    let claimed = after(&ready, &[(0, claim())]);
    assert!(refused(&claimed, &Step::Time));
    let again = after(&claimed, &[(2_000, Step::Time)]);
    assert_eq!((again.attempts, again.state.kind()), (1, StateKind::Ready));
}

#[test]
fn what_is_forced_is_ready_and_what_is_under_way_is_not_forced() {
    let mut new = new();
    new.due = at(1_000_000);
    let job = new.begin(NOW).unwrap();
    assert!(refused(&job, &Step::Time));
    let ready = after(&job, &[(0, Step::Force)]);
    assert_eq!(
        (ready.state.kind(), ready.due),
        (StateKind::Ready, at(1_000_000))
    );
    assert!(!refused(&ready, &Step::Force));
    assert!(refused(&after(&ready, &[(0, claim())]), &Step::Force));
}

#[test]
fn what_a_job_may_not_be_is_said() {
    let text = |change: fn(&mut NewJob)| {
        let mut new = new();
        change(&mut new);
        new.begin(NOW).unwrap_err().to_string()
    };
    assert!(
        text(|job| job.payload = vec![0; PAYLOAD_BYTES_MAX + 1].into())
            .contains("65536 bytes, this has 65537")
    );
    assert!(text(|job| job.owner = "x".repeat(513)).contains("owner"));
    assert!(text(|job| job.recurrence = Some(String::new())).contains("recurrence"));
    assert!(text(|job| job.policy.attempts_max = 0).contains("attempts_max"));
    assert!(text(|job| job.policy.window = Duration::ZERO).contains("window"));
    for names in [
        (0..9).map(|n| Key::from(n.to_string())).collect(),
        vec![Key::from("a"), Key::from("b"), Key::from("a")],
        vec![Key::new()],
        vec![Key::from("x".repeat(TEXT_BYTES_MAX + 1))],
    ] {
        let mut new = new();
        new.attached = names;
        let error = new.begin(NOW).unwrap_err().to_string();
        assert!(error.contains("attached"), "{error}");
    }
    assert!(text(|job| job.due = UnixMillis(u64::MAX)).contains("due"));
}

fn millis() -> impl Strategy<Value = UnixMillis> {
    (0..=TIME_MAX.0).prop_map(UnixMillis)
}

fn duration(least: u64) -> impl Strategy<Value = Duration> {
    (least..1_000_000_000).prop_map(Duration::from_millis)
}

fn state() -> impl Strategy<Value = JobState> {
    prop_oneof![
        millis().prop_map(|at| JobState::Pending { at }),
        millis().prop_map(|until| JobState::Ready { until }),
        (millis(), ".{0,20}").prop_map(|(until, holder)| JobState::Claimed { holder, until }),
        (millis(), ".{0,20}").prop_map(|(until, holder)| JobState::Delivered { holder, until }),
        Just(JobState::Done),
        ".{0,20}".prop_map(|reason| JobState::Failed { reason }),
        Just(JobState::Cancelled),
    ]
}

prop_compose! {
    fn job()(
        recipient in "[a-z%@:.]{1,9}",
        payload in prop::collection::vec(any::<u8>(), 0..40),
        owner in ".{0,20}",
        times in (millis(), millis(), millis(), prop::option::of(millis())),
        state in state(),
        attempts: u32,
        attempts_max in 1..=u32::MAX,
        durations in (duration(0), duration(0), duration(1_000), duration(10), duration(1_000)),
        is_done: bool,
        recurrence in prop::option::of(".{1,20}"),
        attached in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..9), 0..4),
    ) -> Job {
        Job {
            recipient: Recipient::new(&recipient).unwrap(),
            payload: payload.into(),
            owner,
            due: times.0,
            created: times.1,
            changed: times.2,
            handed_over: times.3,
            state,
            attempts,
            policy: Policy {
                attempts_max,
                backoff: durations.0,
                backoff_max: durations.1,
                window: durations.2,
                ack: durations.3,
                silence: if is_done { Silence::Done } else { Silence::Retry },
                keep: durations.4,
            },
            recurrence,
            attached: attached.into_iter().map(Key::from).collect(),
        }
    }
}

proptest! {
    #[test]
    fn records_come_back(job in job()) {
        prop_assert_eq!(Job::decode(&job.encode()), Ok(job));
    }

    #[test]
    fn whatever_is_taken_is_written_the_same(job in job(), at: prop::sample::Index, byte: u8) {
        let mut bytes = job.encode().to_vec();
        let at = at.index(bytes.len());
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        let value = Bytes::from(bytes);
        if let Ok(job) = Job::decode(&value) {
            prop_assert_eq!(job.encode(), value);
        }
    }

    #[test]
    fn a_cut_record_is_none(job in job(), at: prop::sample::Index) {
        let value = job.encode();
        prop_assert!(Job::decode(&value.slice(..at.index(value.len()))).is_err());
    }

    /// Whatever is done with a job and when, it stays one that can be written, and what has ended stays ended unless it is
    /// declined.
    #[test]
    fn no_step_leads_astray(job in job(), now in millis(), which in 0..10usize) {
        let holder = "h".to_owned();
        let reason = "x".repeat(600);
        let steps = [
            Step::Time,
            Step::Force,
            claim(),
            Step::Delivered { holder: holder.clone() },
            Step::HandOver { holder: holder.clone() },
            Step::Acknowledge,
            Step::Decline { reason: reason.clone() },
            Step::Release { holder },
            Step::Cancel,
            Step::Fail { reason },
        ];
        let step = steps.into_iter().nth(which).unwrap();
        if let Ok(next) = job.after(&step, now) {
            prop_assert_eq!(Job::decode(&next.encode()), Ok(next.clone()));
            let is_decline = matches!(step, Step::Decline { .. });
            prop_assert!(job.state.kind().is_open() || is_decline);
            prop_assert!(next.state.wake().is_none_or(|wake| wake <= TIME_MAX));
            prop_assert_eq!(next.due, job.due);
        }
    }
}
