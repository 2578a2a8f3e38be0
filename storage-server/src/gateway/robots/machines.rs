//! The routes of robots.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use hyper::HeaderMap;
use serde_json::{Value, json};
use storage_protocol::deliveries::DeliveryError;

use super::answer::{Answer, Fault, ok};
use super::house::House;
use super::login::{Reader, Visitor};
use super::registry::{Known, NotRegistered};

/// The robots that pass.
async fn find(
    house: &House,
    visitor: &Visitor,
    passes: impl Fn(&Known) -> bool + Send + Sync,
) -> Result<Vec<Known>, Fault> {
    let storage = visitor.caller.storage(&house.keyspace);
    let found = house.robots(&*storage, passes).await;
    found.map_err(|error| Fault::list("Robots", &DeliveryError::Storage(error)))
}

fn shown(robots: &[Known]) -> Vec<Value> {
    robots.iter().map(Known::json).collect()
}

fn answered(answer: Answer, headers: &HeaderMap) -> Response<Body> {
    answer.unwrap_or_else(|fault| fault.respond(headers))
}

pub(super) async fn all(
    State(house): State<Arc<House>>,
    reader: Reader,
    headers: HeaderMap,
) -> Response<Body> {
    let found = find(&house, &reader.visitor, |_| true).await;
    let answer = found.and_then(|robots| ok(&json!({ "Robots": shown(&robots) })));
    reader.respond(answer, &headers).await
}

pub(super) async fn connected(
    State(house): State<Arc<House>>,
    reader: Reader,
    headers: HeaderMap,
) -> Response<Body> {
    let found = find(&house, &reader.visitor, |known| known.online.is_some()).await;
    let answer = found.and_then(|robots| ok(&json!({ "Robots": shown(&robots) })));
    reader.respond(answer, &headers).await
}

fn one(robots: &[Known]) -> Answer {
    match robots.first() {
        Some(known) => ok(&json!({ "Robot": known.json() })),
        None => Err(Fault::none("Robot")),
    }
}

pub(super) async fn by_number(
    State(house): State<Arc<House>>,
    reader: Reader,
    Path(number): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let found = find(&house, &reader.visitor, |known| {
        known.robot.id.to_string() == number
    })
    .await;
    let answer = found.and_then(|robots| one(&robots));
    reader.respond(answer, &headers).await
}

pub(super) async fn by_address(
    State(house): State<Arc<House>>,
    visitor: Visitor,
    Path(address): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let answer = async {
        let storage = visitor.caller.storage(&house.keyspace);
        let known = house.robot_at(&*storage, &address).await?;
        one(known.as_slice())
    };
    let answer = Box::pin(answer).await;
    answered(answer, &headers)
}

/// The caller's.
pub(super) async fn own(
    State(house): State<Arc<House>>,
    reader: Reader,
    headers: HeaderMap,
) -> Response<Body> {
    let by = reader.visitor.caller.identity.principal().as_str();
    let found = find(&house, &reader.visitor, |known| known.robot.principal == by).await;
    let answer = found.and_then(|robots| {
        let connected = robots.iter().filter(|known| known.online.is_some()).count();
        ok(&json!({
            "counters": {
                "robots": robots.len(),
                "connected": connected,
                "disconnectedRobots": robots.len() - connected,
            },
            "robots": shown(&robots),
        }))
    });
    reader.respond(answer, &headers).await
}

/// A robot by its name, with the end of its log.
pub(super) async fn by_name(
    State(house): State<Arc<House>>,
    reader: Reader,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let answer = async {
        let robots = find(&house, &reader.visitor, |known| {
            known.robot.robot_name == name
        })
        .await?;
        // Of several, the caller's own.
        let by = reader.visitor.caller.identity.principal().as_str();
        let own = robots.iter().find(|known| known.robot.principal == by);
        let Some(known) = own.or_else(|| robots.first()) else {
            return Err(Fault::no_robot());
        };
        let (reading, number) = (house.clone(), known.robot.id);
        let read = tokio::task::spawn_blocking(move || reading.logs.of_robot(number)).await;
        let logs = match read {
            Ok(Ok(logs)) => logs,
            Ok(Err(error)) => format!("the log cannot be read: {error}"),
            Err(error) => format!("the log cannot be read: {error}"),
        };
        ok(&json!({ "robot": known.json(), "robotLogs": logs }))
    };
    let answer = Box::pin(answer).await;
    reader.respond(answer, &headers).await
}

fn no_robot(number: &str) -> Fault {
    let error = DeliveryError::Invalid(format!("there is no robot {number}"));
    Fault::job("Failed to delete robot", &error)
}

pub(super) async fn delete(
    State(house): State<Arc<House>>,
    reader: Reader,
    Path(number): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let answer = async {
        let storage = reader.visitor.caller.storage(&house.keyspace);
        let robots = find(&house, &reader.visitor, |known| {
            known.robot.id.to_string() == number
        })
        .await?;
        let Some(known) = robots.first() else {
            return Err(no_robot(&number));
        };
        let by = reader.visitor.caller.identity.principal();
        // To its end, whatever becomes of who has asked.
        let removing = {
            let (house, by) = (house.clone(), by.clone());
            let address = known.robot.robot_address.clone();
            async move { house.remove_robot(&*storage, &by, &address).await }
        };
        let removing = house.server.shared().tasks.spawn(removing);
        let robot = match removing.await {
            Ok(Ok(Some(robot))) => robot,
            Ok(Ok(None)) => return Err(no_robot(&number)),
            Ok(Err(NotRegistered::Refused(why))) => return Err(Fault::forbidden(why)),
            Ok(Err(NotRegistered::Failed(error))) => return Err(error.into()),
            Err(error) => return Err(Fault::for_now(error.to_string())),
        };
        house.note(format!("robot {}: deleted by {by}", robot.robot_name));
        ok(&json!({ "robotID": number, "status": "Deleted" }))
    };
    let answer = Box::pin(answer).await;
    reader.respond(answer, &headers).await
}
