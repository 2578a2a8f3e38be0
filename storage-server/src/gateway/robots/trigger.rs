//! A studio triggers a job: a package, a robot and a time.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use storage_protocol::deliveries::{DeliveryError, NewJob, Stored};
use storage_protocol::{Batch, Storage, StorageError, StorageExt};
use storage_schedule::{Lateness, due_of, instant_text};

use super::answer::{Answer, Fault, MISSING_DATA, NOT_RECEIVED, text};
use super::frame::{NAME_BYTES_MAX, PATH_BYTES_MAX, Package, text_of};
use super::house::House;
use super::ids::Kind;
use super::keys;
use super::login::Visitor;
use crate::gateway::Caller;

/// The longest body, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Others may schedule the same new package meanwhile, so many times.
const TRIES_MAX: usize = 64;
/// A header of the answer.
pub(super) const JOB_ID: &str = "x-job-id";

/// What the payload of a job says that was triggered here.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Order {
    #[serde(rename = "Package")]
    pub(super) package: Package,
    #[serde(rename = "JobID", default)]
    pub(super) job_id: Option<u64>,
    #[serde(rename = "packageID", default)]
    pub(super) package_id: Option<u64>,
    #[serde(rename = "robotID", default)]
    pub(super) robot_id: Option<u64>,
    #[serde(default)]
    pub(super) date: String,
    #[serde(default)]
    pub(super) time: String,
}

impl Order {
    /// That of a payload: of this gateway's, or any JSON object with `Package`, or with its fields.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        if let Ok(order) = serde_json::from_slice(payload) {
            return Some(order);
        }
        let package = serde_json::from_slice(payload).ok()?;
        Some(Self {
            package,
            job_id: None,
            package_id: None,
            robot_id: None,
            date: String::new(),
            time: String::new(),
        })
    }
}

/// A package that was scheduled once.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) package_name: String,
    pub(super) path: String,
    #[serde(rename = "userID")]
    pub(super) user_id: Value,
    #[serde(rename = "dateReceived")]
    pub(super) date_received: String,
}

struct Wanted {
    package: Package,
    address: String,
    date: String,
    time: String,
}

fn not_received(reason: impl Into<String>) -> Fault {
    Fault::alert(NOT_RECEIVED, StatusCode::BAD_REQUEST, reason)
}

fn missing(name: &str) -> Fault {
    let reason = format!("{name} is missing or empty");
    Fault::alert(MISSING_DATA, StatusCode::BAD_REQUEST, reason)
}

fn read(body: &[u8]) -> Result<Wanted, Fault> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| not_received(error.to_string()))?;
    let object = |name: &str| match value.get(name) {
        Some(Value::Object(fields)) => Ok(fields),
        _ => Err(not_received(format!("{name} is no object"))),
    };
    let (package, robot, schedule) = (object("Package")?, object("Robot")?, object("Schedule")?);
    let field = |fields: &Map<String, Value>, name: &str, max: usize| {
        let text = text_of(fields.get(name)).unwrap_or_default();
        match text.len() {
            0 => Err(missing(name)),
            bytes if bytes > max => Err(not_received(format!(
                "{name} has at most {max} bytes, this has {bytes}"
            ))),
            _ => Ok(text),
        }
    };
    let package = Package {
        package_name: field(package, "package_name", NAME_BYTES_MAX)?,
        path: field(package, "path", PATH_BYTES_MAX)?,
    };
    // The robot is found by its address; its name must be there, and may be an old one.
    field(robot, "robot_name", NAME_BYTES_MAX)?;
    Ok(Wanted {
        package,
        address: field(robot, "robot_address", NAME_BYTES_MAX)?,
        date: field(schedule, "date", NAME_BYTES_MAX)?,
        time: field(schedule, "time", NAME_BYTES_MAX)?,
    })
}

pub(super) async fn trigger(
    State(house): State<Arc<House>>,
    visitor: Visitor,
    request: Request,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let triggered = Box::pin(carry_out(&house, &visitor.caller, body)).await;
    triggered.unwrap_or_else(|fault| {
        house.note(format!("a trigger was not taken: {}", fault.reason()));
        fault.respond(&parts.headers)
    })
}

async fn carry_out(house: &House, caller: &Caller, body: Body) -> Answer {
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await;
    let body = body.map_err(|error| {
        not_received(format!(
            "a body has at most {BODY_BYTES_MAX} bytes: {error}"
        ))
    })?;
    let wanted = read(&body)?;
    let late = Lateness(house.config.grace);
    let due = due_of(&wanted.date, &wanted.time, &house.zone, house.now(), late);
    let due = due.map_err(|error| not_received(error.to_string()))?;
    let storage = caller.storage(&house.keyspace);
    let known = house.robot_at(&*storage, &wanted.address).await?;
    let Some(known) = known else {
        let reason = format!("no robot has the address {}", wanted.address);
        return Err(Fault::alert(NOT_RECEIVED, StatusCode::NOT_FOUND, reason));
    };
    let recipient = keys::recipient(&wanted.address)
        .ok_or_else(|| not_received("robot_address is too long"))?;
    let number = house.ids.next(&*house.own, Kind::Job).await?;
    let id = keys::job(number).ok_or_else(|| not_received("there are no more numbers"))?;
    let jobs = house.jobs_of(caller);
    let mut package_number = None;
    for _ in 0..TRIES_MAX {
        let (row, mut batch) =
            catalogued(house, &*storage, caller, &wanted.package, package_number).await?;
        package_number = Some(row.id);
        let order = Order {
            package: wanted.package.clone(),
            job_id: Some(number),
            package_id: Some(row.id),
            robot_id: Some(known.robot.id),
            date: wanted.date.clone(),
            time: wanted.time.clone(),
        };
        let file_name = keys::package(&wanted.package.package_name, number);
        let file = format!(
            "{{\"Package\":{},\"JobID\":{number}}}",
            serde_json::to_string(&order.package).unwrap_or_default()
        );
        batch = batch.put(jobs.attached_key(&id, &file_name), file);
        let payload = serde_json::to_vec(&order).unwrap_or_default();
        let new = NewJob {
            id: Some(id.clone()),
            owner: caller.identity.principal().as_str().to_owned(),
            policy: house.policy(),
            attached: vec![file_name],
            ..NewJob::new(recipient.clone(), due, payload)
        };
        match jobs.schedule_with(&new, batch).await {
            Ok(_) => {
                house.note(format!(
                    "job {number}: package {} for robot {} at {}",
                    wanted.package.package_name,
                    known.robot.robot_name,
                    house.zone.text(due)
                ));
                let mut response = text("Server sent package to scheduler");
                let headers = response.headers_mut();
                headers.insert(JOB_ID, HeaderValue::from(number));
                return Ok(response);
            }
            // Somebody else made the row of the package.
            Err(DeliveryError::Storage(StorageError::CheckFailed { .. })) => {}
            Err(DeliveryError::Storage(error @ StorageError::AccessDenied { .. })) => {
                return Err(Fault::forbidden(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(not_received("others schedule this package again and again"))
}

/// The row of a package, and the batch that makes it, if it is new or has another path now.
async fn catalogued(
    house: &House,
    storage: &dyn Storage,
    caller: &Caller,
    package: &Package,
    number: Option<u64>,
) -> Result<(Row, Batch), Fault> {
    let key = keys::catalog(&package.package_name);
    let entry = storage.get_one(key.clone()).await?;
    let known = entry
        .as_ref()
        .and_then(|entry| serde_json::from_slice::<Row>(&entry.value).ok());
    let batch = match &entry {
        Some(entry) => Batch::new().check_revision(key.clone(), entry.revision),
        None => Batch::new().check_absent(key.clone()),
    };
    match known {
        Some(row) if row.path == package.path => Ok((row, Batch::new())),
        known => {
            let id = match (known.map(|row| row.id), number) {
                (Some(id), _) | (None, Some(id)) => id,
                (None, None) => house.ids.next(&*house.own, Kind::Package).await?,
            };
            let row = Row {
                id,
                package_name: package.package_name.clone(),
                path: package.path.clone(),
                user_id: user_of(caller.identity.principal().as_str()),
                date_received: instant_text(house.now()),
            };
            let value = serde_json::to_vec(&row).unwrap_or_default();
            Ok((row, batch.put(key, value)))
        }
    }
}

/// A principal, as a user of this protocol: null for nobody.
pub(super) fn user_of(principal: &str) -> Value {
    match principal {
        "anonymous" | "" => Value::Null,
        principal => json!(
            principal
                .split_once(':')
                .map_or(principal, |(_, name)| name)
        ),
    }
}

/// A job, as clients read it.
pub(super) fn job_json(house: &House, stored: &Stored) -> Value {
    use storage_protocol::deliveries::{JobState, StateKind};
    let Stored { id, job, .. } = stored;
    let order = Order::read(&job.payload);
    let number = keys::number_of(id);
    let civil = house.zone.text(job.due);
    let (date, time) = match &order {
        Some(order) if !order.date.is_empty() => (order.date.as_str(), order.time.as_str()),
        _ => civil.split_once(' ').unwrap_or_default(),
    };
    let reason = match &job.state {
        JobState::Failed { reason } => Some(reason),
        _ => None,
    };
    let status = match job.state.kind() {
        StateKind::Pending | StateKind::Ready | StateKind::Claimed => "Pending",
        StateKind::Delivered | StateKind::Done => "Executed",
        StateKind::Failed => "Failed",
        StateKind::Cancelled => "Cancelled",
    };
    json!({
        "id": number.map_or_else(|| json!(id.as_str()), |number| json!(number)),
        "packageID": order.as_ref().and_then(|order| order.package_id),
        "packageName": order.as_ref().map(|order| &order.package.package_name),
        "robotID": order.as_ref().and_then(|order| order.robot_id),
        "robotAddress": keys::address_of(&job.recipient),
        "userID": user_of(&job.owner),
        "date": date,
        "time": time,
        "due": instant_text(job.due),
        "dateReceived": instant_text(job.created),
        "deliveredAt": job.handed_over.map(instant_text),
        "confirmed": job.state.kind() == StateKind::Done,
        "attempts": job.attempts,
        "status": status,
        "reason": reason,
    })
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderMap;

    use super::*;

    const GOOD: &str = r#"{"Package":{"package_name":"invoice-7","path":"store/invoice-7.std"},"Robot":{"robot_name":"LAB-PC-3","robot_address":"0A1B2C3D4E5F"},"Schedule":{"date":"15-7","time":"9:00:00"}}"#;

    fn alert(body: &str) -> &'static str {
        let response = read(body.as_bytes())
            .err()
            .expect("a fault")
            .respond(&HeaderMap::new());
        assert_eq!(response.status(), 200);
        let body = futures_util::FutureExt::now_or_never(axum::body::to_bytes(
            response.into_body(),
            1_000,
        ));
        let body: Value = serde_json::from_slice(&body.unwrap().unwrap()).unwrap();
        match body["Alert"].as_str().unwrap() {
            MISSING_DATA => "missing",
            NOT_RECEIVED => "not received",
            other => panic!("{other}"),
        }
    }

    #[test]
    fn each_field_must_be_there() {
        assert!(read(GOOD.as_bytes()).is_ok());
        let good: Value = serde_json::from_str(GOOD).unwrap();
        for (object, field) in [
            ("Package", "package_name"),
            ("Package", "path"),
            ("Robot", "robot_name"),
            ("Robot", "robot_address"),
            ("Schedule", "date"),
            ("Schedule", "time"),
        ] {
            for bad in [Value::Null, json!(""), json!(" "), json!([])] {
                let mut body = good.clone();
                body[object][field] = bad;
                assert_eq!(alert(&body.to_string()), "missing", "{field}");
            }
            let mut body = good.clone();
            body[object].as_object_mut().unwrap().remove(field);
            assert_eq!(alert(&body.to_string()), "missing", "{field}");
            let mut body = good.clone();
            body.as_object_mut().unwrap().remove(object);
            assert_eq!(alert(&body.to_string()), "not received", "{object}");
        }
        for body in ["", "null", "[]", "{}", "x"] {
            assert_eq!(alert(body), "not received", "{body}");
        }
    }

    #[test]
    fn the_payload_of_another_writer_may_be_a_package_alone() {
        let package =
            |payload: &str| Order::read(payload.as_bytes()).map(|order| order.package.path);
        let path = Some("b".to_owned());
        assert_eq!(
            package(r#"{"Package":{"package_name":"a","path":"b"}}"#),
            path
        );
        assert_eq!(package(r#"{"package_name":"a","path":"b"}"#), path);
        assert_eq!(package("hello"), None);
    }
}
