//! `POST /events`: an event of a client's own, told to who watches its key, and stored nowhere.

use axum::response::IntoResponse;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::value::RawValue;
use storage_protocol::{Batch, CommitOptions, Key, Storage, UnixMillis};

use super::answer::{Answer, Fault};
use super::body::Sent;
use super::event::{Action, OWN_TYPE, posted, rfc3339};
use super::login::Visitor;
use super::patch::DEPTH_MAX;
use crate::gateway::json::depth;

/// The time that clients send who have none.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// What is sent. Who it is from is not asked.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Posted<'a> {
    #[serde(default)]
    time: Option<String>,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    key: String,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
    #[serde(borrow, default)]
    original: Option<&'a RawValue>,
}

pub(super) async fn post(visitor: Visitor, Sent(body): Sent) -> Answer {
    check_depth(&body)?;
    let event: Posted<'_> =
        serde_json::from_slice(&body).map_err(|error| Fault::bad(format!("the event: {error}")))?;
    let time = match event.time {
        Some(time) if !time.is_empty() && time != NO_TIME => {
            check_time(&time)?;
            time
        }
        _ => rfc3339(UnixMillis::now()),
    };
    for (name, text) in [("Type", &event.r#type), ("Action", &event.action)] {
        if text.is_empty() {
            return Err(Fault::invalid(format!("{name} is missing")));
        }
    }
    if event.r#type.contains('/') || event.r#type == OWN_TYPE {
        return Err(Fault::invalid(format!(
            "Type {:?} is not allowed: it has a slash, or is the server's own",
            event.r#type
        )));
    }
    let json = |value: Option<&RawValue>| value.map_or("null", RawValue::get).to_owned();
    let (object, original) = (json(event.object), json(event.original));
    let key = Key::from(format!("{}/{}", event.r#type, event.key));
    let bytes = posted(&time, &event.action, &object, &original);
    let batch = Batch::new().signal(key, bytes);
    let options = CommitOptions::labelled(Action::Post.label());
    visitor.storage.commit(batch, options).await?;
    // Clients look for the kind of an answer's content even where there is none.
    let kind = [(CONTENT_TYPE, "application/json")];
    Ok((StatusCode::NO_CONTENT, kind).into_response())
}

/// That it is no deeper than parsers take: who is told the event has one too, and what is passed on as it is written
/// (`RawValue`) is held to no depth.
fn check_depth(body: &[u8]) -> Result<(), Fault> {
    let text = str::from_utf8(body).map_err(|error| Fault::bad(format!("the event: {error}")))?;
    match depth(text) <= DEPTH_MAX {
        true => Ok(()),
        false => Err(Fault::bad(format!(
            "the event: values are nested at most {DEPTH_MAX} deep (depth_max)"
        ))),
    }
}

/// A time as RFC 3339 has it, with at most 9 digits of a second's fraction.
fn check_time(text: &str) -> Result<(), Fault> {
    match is_time(text) {
        true => Ok(()),
        false => Err(Fault::bad("Time is no time as in RFC 3339")),
    }
}

fn is_time(text: &str) -> bool {
    let (Some(date), Some(rest)) = (text.get(..19), text.get(19..)) else {
        return false;
    };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let rest = match rest.strip_prefix('.') {
        None => rest,
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if !(1..=9).contains(&(fraction.len() - zone.len())) {
                return false;
            }
            zone
        }
    };
    // Date and time of day are judged as a time in UTC.
    let is_date = humantime::parse_rfc3339(&format!("{date}Z")).is_ok();
    let is_offset = rest.strip_prefix(['+', '-']).is_some_and(|offset| {
        matches!(offset.split_once(':'), Some((hours, minutes))
            if hours.len() == 2 && minutes.len() == 2
            && digits(hours) && digits(minutes) && hours < "24" && minutes < "60")
    });
    is_date && (rest == "Z" || is_offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_no_deeper_than_parsers_take() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let event = |depth| format!(r#"{{"Type":"a","Action":"b","Object":{}}}"#, nested(depth));
        assert!(check_depth(event(100).as_bytes()).is_ok());
        assert!(check_depth(event(128).as_bytes()).is_err());
        assert!(check_depth(event(200_000).as_bytes()).is_err());
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        for good in [
            "2024-05-04T10:00:03.123456789Z",
            "2024-05-04T10:00:03Z",
            "2024-02-29T23:59:59.5+02:00",
            "2024-05-04T10:00:03-11:30",
        ] {
            assert!(is_time(good), "{good}");
        }
        for bad in [
            "",
            "2024-05-04",
            "2024-05-04T10:00:03",
            "2024-05-04 10:00:03Z",
            "2024-05-04T10:00:03.Z",
            "2024-05-04T10:00:03.1234567890Z",
            "2024-13-04T10:00:03Z",
            "2024-05-04T10:00:03+24:00",
            "2024-05-04T10:00:03+02",
            "2024-05-04T10:00:0ü",
            "yesterday at ten o'clock",
        ] {
            assert!(!is_time(bad), "{bad}");
        }
    }
}
