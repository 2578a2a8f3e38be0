//! Records of jobs, byte for byte, against `golden/jobs.jsonl` and `docs/protocol.md`: what one client schedules is carried out
//! by others, of other ages and in other languages.

use std::path::PathBuf;

use serde::Deserialize;
use storage_protocol::UnixMillis;
use storage_protocol::deliveries::{Job, JobState, Policy, Recipient, Silence};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    record: String,
    recipient: String,
    payload: String,
    owner: String,
    due: u64,
    created: u64,
    changed: u64,
    handed_over: Option<u64>,
    attempts: u32,
    silence_is_done: bool,
    recurrence: Option<String>,
    attached: Vec<String>,
    state: Vec<String>,
}

impl Line {
    fn job(&self) -> Job {
        let time = |at: usize| UnixMillis(self.state[at].parse().expect("a time"));
        let text = |at: usize| self.state[at].clone();
        Job {
            recipient: Recipient::new(&self.recipient).expect("a recipient"),
            payload: self.payload.clone().into(),
            owner: self.owner.clone(),
            due: UnixMillis(self.due),
            created: UnixMillis(self.created),
            changed: UnixMillis(self.changed),
            handed_over: self.handed_over.map(UnixMillis),
            state: match self.state[0].as_str() {
                "pending" => JobState::Pending { at: time(1) },
                "ready" => JobState::Ready { until: time(1) },
                "claimed" => JobState::Claimed {
                    holder: text(1),
                    until: time(2),
                },
                "delivered" => JobState::Delivered {
                    holder: text(1),
                    until: time(2),
                },
                "done" => JobState::Done,
                "failed" => JobState::Failed { reason: text(1) },
                "cancelled" => JobState::Cancelled,
                other => panic!("{other}"),
            },
            attempts: self.attempts,
            policy: Policy {
                silence: match self.silence_is_done {
                    true => Silence::Done,
                    false => Silence::Retry,
                },
                ..Policy::default()
            },
            recurrence: self.recurrence.clone(),
            attached: self.attached.iter().cloned().map(Into::into).collect(),
        }
    }
}

fn read(path: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(folder.join(path)).expect("a file of this repository")
}

#[test]
fn the_record_is_the_golden_one() {
    let golden = read("tests/golden/jobs.jsonl");
    assert!(golden.lines().count() >= 7);
    for line in golden.lines() {
        let line: Line = serde_json::from_str(line).unwrap();
        let job = line.job();
        assert_eq!(hex::encode(job.encode()), line.record);
        let value = hex::decode(&line.record).unwrap();
        assert_eq!(Job::decode(&value.into()), Ok(job));
    }
}

#[test]
fn the_document_shows_the_golden_record() {
    let golden = read("tests/golden/jobs.jsonl");
    let first: Line = serde_json::from_str(golden.lines().next().unwrap()).unwrap();
    let document = read("../docs/protocol.md");
    let digits: String = document.split_whitespace().collect();
    assert!(digits.contains(&first.record));
}
