//! The routes of jobs.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};
use storage_protocol::deliveries::{
    Counters, Deliveries, DeliveryError, Job, JobFilter, JobId, LIST_MAX, StateKind, Step,
};
use storage_protocol::{KeyState, ScanOptions, Storage};

use super::answer::{Answer, Fault, ok};
use super::house::House;
use super::keys;
use super::login::{Reader, Visitor};
use super::trigger::{Row, job_json, user_of};

/// A header of a list that has more than was asked for: what `after` is to be for the rest.
const NEXT: HeaderValue = HeaderValue::from_static("");
const NEXT_NAME: &str = "x-next";
/// The most packages of a list.
const PACKAGES_MAX: usize = 10_000;

const CANCEL: &str = "Failed to cancel job";
const FORCE: &str = "Failed to force job";

/// Which part of a list is wanted.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Part {
    after: Option<String>,
    limit: Option<usize>,
}

fn no_job(text: &str) -> DeliveryError {
    DeliveryError::Invalid(format!("{text:?} is no id of a job"))
}

/// Only whose job it is may do something with it, and only as long as no robot has it.
fn judge(id: &JobId, by: &str, what: &'static str, job: &Job) -> Result<(), DeliveryError> {
    if job.owner != by {
        // Who may not touch it need not learn what it is.
        return Err(DeliveryError::NoJob(id.clone()));
    }
    match job.state.kind() {
        StateKind::Pending | StateKind::Ready => Ok(()),
        state => Err(DeliveryError::Refused {
            id: id.clone(),
            state,
            what,
        }),
    }
}

async fn step(
    house: &House,
    visitor: &Visitor,
    text: &str,
    step: Step,
    word: &str,
) -> Result<(), DeliveryError> {
    let id = keys::parse_job(text).ok_or_else(|| no_job(text))?;
    let (jobs, by) = (
        house.jobs_of(&visitor.caller),
        visitor.caller.identity.principal().as_str(),
    );
    let judge = |job: &Job| judge(&id, by, step.word(), job);
    let batch = storage_protocol::Batch::new();
    jobs.step_with(&id, &step, judge, batch).await?;
    house.note(format!("job {text}: {word} by {by}"));
    Ok(())
}

pub(super) async fn cancel(
    State(house): State<Arc<House>>,
    visitor: Visitor,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let done = Box::pin(step(&house, &visitor, &id, Step::Cancel, "cancelled")).await;
    let answer = match done {
        Ok(()) => ok(&json!({ "Job": id, "Status": "Cancelled Job successfully" })),
        Err(error) => Err(Fault::job(CANCEL, &error)),
    };
    answer.unwrap_or_else(|fault| fault.respond(&headers))
}

pub(super) async fn force(
    State(house): State<Arc<House>>,
    visitor: Visitor,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let done = Box::pin(step(&house, &visitor, &id, Step::Force, "forced")).await;
    let answer = match done {
        Ok(()) => ok(&json!({ "Job": id, "Status": "Forced to be executed successfully" })),
        Err(error) => Err(Fault::job(FORCE, &error)),
    };
    answer.unwrap_or_else(|fault| fault.respond(&headers))
}

pub(super) async fn delete(
    State(house): State<Arc<House>>,
    visitor: Visitor,
    Path(text): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let by = visitor.caller.identity.principal().as_str();
    let done = async {
        let id = keys::parse_job(&text).ok_or_else(|| no_job(&text))?;
        let is_own = |job: &Job| match job.owner == by {
            true => Ok(()),
            false => Err(DeliveryError::NoJob(id.clone())),
        };
        house.jobs_of(&visitor.caller).remove(&id, is_own).await
    };
    let answer = match Box::pin(done).await {
        Ok(_) => {
            house.note(format!("job {text}: deleted by {by}"));
            ok(&json!({ "jobID": text, "status": "Deleted" }))
        }
        Err(error) => Err(Fault::job("Failed to delete job", &error)),
    };
    answer.unwrap_or_else(|fault| fault.respond(&headers))
}

/// The jobs that pass, as far as is wanted, and where the rest begins.
async fn listed(
    house: &House,
    jobs: &Deliveries,
    filter: &JobFilter,
    part: &Part,
) -> Result<(Vec<Value>, Option<JobId>), DeliveryError> {
    let limit = part.limit.unwrap_or(LIST_MAX).clamp(1, LIST_MAX);
    let mut after = match part.after.as_deref() {
        Some(text) => Some(keys::parse_job(text).ok_or_else(|| no_job(text))?),
        None => None,
    };
    let mut found = Vec::new();
    loop {
        let page = jobs
            .list(filter, after.as_ref(), limit - found.len())
            .await?;
        found.extend(page.jobs.iter().map(|stored| job_json(house, stored)));
        after = page.next;
        if after.is_none() || found.len() >= limit {
            return Ok((found, after));
        }
    }
}

fn with_next(answer: Answer, next: Option<JobId>) -> Answer {
    let mut response = answer?;
    if let Some(next) = next {
        let value = HeaderValue::from_str(next.as_str()).unwrap_or(NEXT);
        response.headers_mut().insert(NEXT_NAME, value);
    }
    Ok(response)
}

async fn list(house: &House, visitor: &Visitor, filter: &JobFilter, part: &Part) -> Answer {
    let jobs = house.jobs_of(&visitor.caller);
    match Box::pin(listed(house, &jobs, filter, part)).await {
        Ok((jobs, next)) => with_next(ok(&json!({ "Jobs": jobs })), next),
        Err(error) => Err(Fault::list("Jobs", &error)),
    }
}

pub(super) async fn all(
    State(house): State<Arc<House>>,
    reader: Reader,
    Query(part): Query<Part>,
    headers: HeaderMap,
) -> Response<Body> {
    let answer = list(&house, &reader.visitor, &JobFilter::default(), &part).await;
    reader.respond(answer, &headers).await
}

pub(super) async fn of_robot(
    State(house): State<Arc<House>>,
    reader: Reader,
    Path(number): Path<String>,
    Query(part): Query<Part>,
    headers: HeaderMap,
) -> Response<Body> {
    let answer = async {
        let storage = reader.visitor.caller.storage(&house.keyspace);
        let has_number = |known: &super::registry::Known| known.robot.id.to_string() == number;
        let robots = house.robots(&*storage, has_number).await?;
        let recipient = robots
            .first()
            .and_then(|known| keys::recipient(&known.robot.robot_address));
        let Some(recipient) = recipient else {
            return ok(&json!({ "Jobs": [] }));
        };
        let filter = JobFilter {
            recipient: Some(recipient),
            ..JobFilter::default()
        };
        list(&house, &reader.visitor, &filter, &part).await
    };
    let answer: Answer = Box::pin(answer).await;
    reader.respond(answer, &headers).await
}

pub(super) async fn one(
    State(house): State<Arc<House>>,
    visitor: Visitor,
    Path(text): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let answer = async {
        let found = match keys::parse_job(&text) {
            Some(id) => house.jobs_of(&visitor.caller).get(&id).await,
            None => Ok(None),
        };
        match found {
            Ok(Some(stored)) => ok(&json!({ "Job": job_json(&house, &stored) })),
            Ok(None) => Err(Fault::none("Job")),
            Err(error) => Err(Fault::list("Job", &error)),
        }
    };
    let answer = Box::pin(answer).await;
    answer.unwrap_or_else(|fault| fault.respond(&headers))
}

fn counters(counters: &Counters) -> Value {
    let of = |kinds: &[StateKind]| kinds.iter().map(|kind| counters.of(*kind)).sum::<u64>();
    json!({
        "jobs": counters.all,
        "pending": of(&[StateKind::Pending, StateKind::Ready, StateKind::Claimed]),
        "executed": of(&[StateKind::Delivered, StateKind::Done]),
        "failed": of(&[StateKind::Failed]),
        "cancelled": of(&[StateKind::Cancelled]),
    })
}

/// The packages that this user has scheduled, or all; at most [`PACKAGES_MAX`].
async fn packages(storage: &dyn Storage, user: Option<&Value>) -> Result<Vec<Row>, DeliveryError> {
    let mut scan = storage
        .scan(keys::all_catalog(), ScanOptions::default())
        .await?;
    let mut rows = Vec::new();
    while let Some(items) = scan.next_page().await? {
        for item in items {
            if let KeyState::Live(entry) = item.state
                && let Ok(row) = serde_json::from_slice::<Row>(&entry.value)
                && user.is_none_or(|user| row.user_id == *user)
                && rows.len() < PACKAGES_MAX
            {
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// What the caller has: jobs, packages, robots.
pub(super) async fn own(
    State(house): State<Arc<House>>,
    reader: Reader,
    Query(part): Query<Part>,
    headers: HeaderMap,
) -> Response<Body> {
    let answer = async {
        let by = reader.visitor.caller.identity.principal().as_str();
        let storage = reader.visitor.caller.storage(&house.keyspace);
        let jobs = house.jobs_of(&reader.visitor.caller);
        let filter = JobFilter {
            owner: Some(by.to_owned()),
            ..JobFilter::default()
        };
        let counted = jobs.count(&filter).await?;
        let (listed, next) = Box::pin(listed(&house, &jobs, &filter, &part)).await?;
        let user = user_of(by);
        let robots = house
            .robots(&*storage, |known| known.robot.principal == by)
            .await?;
        let robots: Vec<_> = robots.iter().map(super::registry::Known::json).collect();
        let body = json!({
            "counters": counters(&counted),
            "jobs": listed,
            "packages": packages(&*storage, Some(&user)).await?,
            "robots": robots,
        });
        with_next(ok(&body), next)
    };
    let answer: Answer = Box::pin(answer).await;
    reader.respond(answer, &headers).await
}

/// How many jobs, packages and robots there are.
pub(super) async fn home(
    State(house): State<Arc<House>>,
    reader: Reader,
    headers: HeaderMap,
) -> Response<Body> {
    let answer = async {
        let storage = reader.visitor.caller.storage(&house.keyspace);
        let counted = house
            .jobs_of(&reader.visitor.caller)
            .count(&JobFilter::default())
            .await?;
        let robots = house.count_robots(&*storage).await?;
        let packages = packages(&*storage, None).await?.len();
        ok(&json!({
            "jobs": counted.all,
            "counters": counters(&counted),
            "packages": packages,
            "robots": robots,
        }))
    };
    let answer: Answer = Box::pin(answer).await;
    reader.respond(answer, &headers).await
}
