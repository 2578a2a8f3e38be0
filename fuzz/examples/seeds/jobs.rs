//! Seeds of the target `job_record`: a record in each state.

use storage_protocol::UnixMillis;
use storage_protocol::deliveries::{Job, JobState, Policy, Recipient};

use crate::Seeds;

pub(crate) fn write(seeds: &Seeds) {
    let at = UnixMillis(1_700_000_000_000);
    let holder = || "h".to_owned();
    let Ok(recipient) = Recipient::new("LAB-3") else {
        return;
    };
    for (name, state) in [
        ("pending", JobState::Pending { at }),
        ("ready", JobState::Ready { until: at }),
        ("claimed", JobState::Claimed { holder: holder(), until: at }),
        ("delivered", JobState::Delivered { holder: holder(), until: at }),
        ("done", JobState::Done),
        ("failed", JobState::Failed { reason: "no".to_owned() }),
        ("cancelled", JobState::Cancelled),
    ] {
        let job = Job {
            recipient: recipient.clone(),
            payload: "run".into(),
            owner: "user:ann".to_owned(),
            due: at,
            created: at,
            changed: at,
            handed_over: Some(at),
            state,
            attempts: 2,
            policy: Policy::default(),
            recurrence: Some("every 15m".to_owned()),
            attached: vec!["a_1".into()],
        };
        seeds.write("job_record", name, &job.encode());
    }
}
