//! What the server has over HTTP, under `/-/auth`: users, tokens and access rules. See `storage-server`'s gateway `auth`.
//!
//! Each request is a connection of its own. Invariant: a change whose answer did not come has outcome *unknown*, and so
//! has one that the server failed at; a question never has.

use std::fmt;
use std::time::{Duration, SystemTime};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use storage_client::ConnectOptions;
use storage_client::http::{self, Method, StatusCode};
use storage_protocol::{Outcome, StorageError};

use crate::app::App;
use crate::escape;

/// What a part of a path and of a query may have as it is (RFC 3986: unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The most characters that are told of an answer that is no JSON: it may be a page of a proxy.
const TEXT_CHARS_MAX: usize = 500;

/// What the server says of a change that it makes by force alone: after it nobody could change the rules, or there were none.
const BY_FORCE: &str = "ask for it by force";

/// The last second that has a date of four digits.
const SECONDS_MAX: u64 = 253_402_300_799;

/// See the module.
pub(crate) struct Api {
    app: App,
    options: ConnectOptions,
}

impl Api {
    /// Nothing is connected yet; a password that is to be asked for is.
    pub(crate) async fn open(app: &App) -> anyhow::Result<Self> {
        let options = app.http_options().await?;
        let app = app.clone();
        Ok(Self { app, options })
    }

    /// `GET`. Whatever becomes of it, nothing is changed.
    pub(crate) async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let asked = self.send(Method::GET, path, None).await;
        asked.map_err(|error| match error.downcast() {
            Ok(error) => not_executed(error).into(),
            Err(error) => error,
        })
    }

    /// Anything else. `null`: the answer has no content.
    pub(crate) async fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        self.app.changing(true);
        let changed = self.send(method, path, body).await;
        self.app.changing(false);
        changed
    }

    /// A change of rules, roles or users, with `force` also if nobody could change the rules afterwards, or there were none;
    /// without, the refusal says that there is that.
    pub(crate) async fn change_access(
        &self,
        method: Method,
        path: String,
        body: Option<&Value>,
        force: bool,
    ) -> anyhow::Result<Value> {
        let changed = self.change(method, &forced(path, force), body).await;
        changed.map_err(|error| match error.downcast::<Refused>() {
            Ok(refused) if refused.needs_force() && !force => Refused {
                text: format!("{}; --force makes it all the same", refused.text),
                ..refused
            }
            .into(),
            Ok(refused) => refused.into(),
            Err(error) => error,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let changes = !method.is_safe();
        let body = body.map(|body| body.to_string().into_bytes());
        let answer = http::exchange(&self.options, method, path, body).await?;
        if !answer.status.is_success() {
            let refused = Refused::new(answer.status, &answer.body, changes);
            return Err(refused.retry_after(answer.retry_after).into());
        }
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        let read = serde_json::from_slice(&answer.body);
        Ok(read.map_err(|error| misbehaved(&error, Outcome::Unknown))?)
    }
}

/// The same failure of what changes nothing.
fn not_executed(error: StorageError) -> StorageError {
    let outcome = Outcome::NotExecuted;
    match error {
        StorageError::Closed { reason, .. } => StorageError::Closed { reason, outcome },
        StorageError::DeadlineExceeded { .. } => StorageError::DeadlineExceeded { outcome },
        StorageError::PeerMisbehaved { message, .. } => {
            StorageError::PeerMisbehaved { message, outcome }
        }
        error => error,
    }
}

/// A part of an answer to a question, as what it should be.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, StorageError> {
    T::deserialize(value).map_err(|error| misbehaved(&error, Outcome::NotExecuted))
}

/// The answer to a change, as what it should be. It was made, whatever that is.
pub(crate) fn read_changed<T: DeserializeOwned>(value: &Value) -> Result<T, StorageError> {
    T::deserialize(value).map_err(|error| misbehaved(&error, Outcome::Unknown))
}

/// The list in this field of an answer to a question.
pub(crate) fn list<'a>(answer: &'a Value, field: &str) -> Result<&'a Vec<Value>, StorageError> {
    let list = answer.get(field).and_then(Value::as_array);
    let missing = || format!("it has no list \"{field}\"");
    list.ok_or_else(|| misbehaved(&missing(), Outcome::NotExecuted))
}

fn misbehaved(why: &dyn fmt::Display, outcome: Outcome) -> StorageError {
    StorageError::PeerMisbehaved {
        message: format!("the answer is not what it should be: {why}"),
        outcome,
    }
}

/// A path below `/-/auth`, whose parts may have any characters.
pub(crate) fn path(parts: &[&str]) -> String {
    let parts = parts.iter().map(|part| utf8_percent_encode(part, ESCAPED));
    parts.fold("/-/auth".to_owned(), |path, part| format!("{path}/{part}"))
}

/// A path with a query, whose values may have any bytes.
pub(crate) fn with_query(path: &str, query: &[(&str, &[u8])]) -> String {
    let escaped =
        |(name, value): &(&str, &[u8])| format!("{name}={}", percent_encode(value, ESCAPED));
    let query: Vec<String> = query.iter().map(escaped).collect();
    format!("{path}?{}", query.join("&"))
}

/// The same path for a change that is made although nobody could change the rules afterwards.
fn forced(path: String, force: bool) -> String {
    match force {
        true => with_query(&path, &[("force", b"true")]),
        false => path,
    }
}

/// What is wrong with a record, without where in its JSON that is: the JSON was made here, and nobody has seen it.
fn without_place(error: &str) -> &str {
    let place = error.rsplit_once(" at line ");
    let is_place = |place: &str| {
        let numbers = place.split_once(" column ");
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        numbers.is_some_and(|(line, column)| is_number(line) && is_number(column))
    };
    match place {
        Some((what, place)) if is_place(place) => what,
        _ => error,
    }
}

/// Seconds since 1970 as a date.
pub(crate) fn date(seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    match time {
        Some(time) if seconds <= SECONDS_MAX => humantime::format_rfc3339_seconds(time).to_string(),
        _ => "never".to_owned(),
    }
}

/// A request that the server answered, and did not carry out.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    /// What the server says, escaped.
    text: String,
    /// Whether it says so in this API's form; otherwise the path was nothing to it, or somebody between spoke.
    in_form: bool,
    changes: bool,
    /// When the server says that the same may be tried again.
    retry_after: Option<Duration>,
}

impl Refused {
    fn new(status: StatusCode, answer: &[u8], changes: bool) -> Self {
        let json: Option<Value> = serde_json::from_slice(answer).ok();
        let error = json.as_ref().and_then(|json| json.get("error"));
        let error = error.and_then(Value::as_str);
        let plain = String::from_utf8_lossy(answer);
        let text: String = error
            .map_or_else(|| plain.trim(), without_place)
            .chars()
            .take(TEXT_CHARS_MAX)
            .collect();
        Self {
            status,
            text: escape::text(text.as_bytes()).into_owned(),
            in_form: error.is_some(),
            changes,
            retry_after: None,
        }
    }

    fn retry_after(self, retry_after: Option<Duration>) -> Self {
        Self {
            retry_after,
            ..self
        }
    }

    /// Whether the server would make it by force. It has no status of its own for that.
    fn needs_force(&self) -> bool {
        self.in_form && self.status == StatusCode::BAD_REQUEST && self.text.contains(BY_FORCE)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// As of a failed call.
    pub(crate) fn exit_code(&self) -> u8 {
        match (self.outcome(), self.status) {
            (Outcome::Unknown, _) => 4,
            (Outcome::Refused, _) => 1,
            (
                Outcome::NotExecuted,
                StatusCode::BAD_REQUEST
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::URI_TOO_LONG
                | StatusCode::UNPROCESSABLE_ENTITY,
            ) => 2,
            (Outcome::NotExecuted, _) => 3,
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        match self.status {
            StatusCode::NOT_FOUND | StatusCode::CONFLICT if self.in_form => Outcome::Refused,
            // What is there speaks against it, not what was asked for.
            _ if self.needs_force() => Outcome::Refused,
            StatusCode::SERVICE_UNAVAILABLE => Outcome::NotExecuted,
            status if status.is_client_error() => Outcome::NotExecuted,
            _ if self.changes => Outcome::Unknown,
            _ => Outcome::NotExecuted,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match self.status {
            StatusCode::UNAUTHORIZED => write!(f, "not let in: {text}"),
            StatusCode::FORBIDDEN => write!(f, "not allowed: {text}"),
            StatusCode::NOT_FOUND if !self.in_form => write!(
                f,
                "there is nothing for users, tokens and access rules at this address: the server is older, or this \
                 listener does not serve the gateway \"storage\" ({text})"
            ),
            StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::BAD_REQUEST => {
                f.write_str(text)
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                write!(f, "not served now: {text}")?;
                match self.retry_after {
                    // Where the server says it in words, it is not said again.
                    _ if text.contains("try again") => Ok(()),
                    Some(after) => write!(f, "; try again in {} s", after.as_secs()),
                    None if !self.in_form => f.write_str("; try again in some seconds"),
                    None => Ok(()),
                }
            }
            status => write!(f, "the server answered {status}: {text}"),
        }
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, answer: &str, changes: bool) -> Refused {
        let status = StatusCode::from_u16(status).unwrap();
        Refused::new(status, answer.as_bytes(), changes)
    }

    #[test]
    fn each_status_has_its_exit_code() {
        let json = r#"{"error":"no"}"#;
        for (status, answer, of_question, of_change) in [
            (400, json, 2, 2),
            (401, "no\n", 3, 3),
            (403, json, 3, 3),
            (404, json, 1, 1),
            (404, "there is nothing here\n", 3, 3),
            (405, "", 2, 2),
            (409, json, 1, 1),
            (413, "", 2, 2),
            (421, "", 3, 3),
            (429, "", 3, 3),
            (500, json, 3, 4),
            (502, "<html>", 3, 4),
            (503, json, 3, 3),
            (302, "", 3, 4),
        ] {
            assert_eq!(
                refused(status, answer, false).exit_code(),
                of_question,
                "{status}"
            );
            assert_eq!(
                refused(status, answer, true).exit_code(),
                of_change,
                "{status}"
            );
        }
    }

    #[test]
    fn it_is_told_when_to_try_again_as_far_as_that_is_known() {
        let json = r#"{"error":"no"}"#;
        let after = Some(Duration::from_secs(7));
        for (status, answer, retry_after, told) in [
            (429, "slow down", after, "slow down; try again in 7 s"),
            (503, json, after, "no; try again in 7 s"),
            (429, "no, try again in 9 s", after, "no, try again in 9 s"),
            (503, "no", None, "no; try again in some seconds"),
            (503, json, None, "no"),
        ] {
            let refused = refused(status, answer, true).retry_after(retry_after);
            assert_eq!(refused.to_string(), format!("not served now: {told}"));
        }
    }

    #[test]
    fn what_the_server_says_is_escaped_and_bounded() {
        let text = refused(409, r#"{"error":"\u001b[2J\\"}"#, true).to_string();
        assert_eq!(text, "\\x1b[2J\\\\");
        let page = "x".repeat(100_000);
        assert!(refused(502, &page, true).to_string().len() < 600);
    }

    #[test]
    fn only_a_place_in_json_is_cut() {
        for (text, told) in [
            ("no at line 1 column 63", "no"),
            ("no at line 1 column 6x", "no at line 1 column 6x"),
            ("no at line 1 column 63, so", "no at line 1 column 63, so"),
            ("no at line  column 2", "no at line  column 2"),
            ("at line 1 column 2", "at line 1 column 2"),
        ] {
            assert_eq!(without_place(text), told);
        }
    }

    #[test]
    fn names_go_into_paths_whatever_they_are() {
        assert_eq!(
            path(&["rules", "a/b ?#%ü"]),
            "/-/auth/rules/a%2Fb%20%3F%23%25%C3%BC"
        );
        let query = with_query("/p", &[("a", b"x&y=+"), ("b", b"~\xff")]);
        assert_eq!(query, "/p?a=x%26y%3D%2B&b=~%FF");
    }

    #[test]
    fn dates_are_told_as_long_as_they_have_four_digits() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(SECONDS_MAX), "9999-12-31T23:59:59Z");
        assert_eq!(date(SECONDS_MAX + 1), "never");
        assert_eq!(date(u64::MAX), "never");
    }
}
