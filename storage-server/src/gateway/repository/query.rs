//! `GET /query_metadata` and `GET /es_query_metadata`: the documents that are asked for, as they are read.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use hyper::http::request::Parts;
use storage_protocol::{Outcome, StorageError, Value};

use super::answer::{Answer, Refusal, json};
use super::elastic::{self, Condition};
use super::house::House;
use super::index::Query;
use super::parameters::Parameters;
use super::place::unquoted;
use super::search::{Search, SearchError};
use crate::gateway::Caller;
use crate::http::held::held;

/// The most documents of an answer.
const DOCUMENTS_MAX: usize = 100;
/// A document that takes more work than this, in bytes that are gone over, is looked at by a thread of its own.
const INLINE_BYTES_MAX: u64 = 64 << 10;
/// The most bytes of an answer to such a query, which is made before it is sent.
const HITS_BYTES_MAX: usize = 16 << 20;

/// Documents with this between, before and behind them.
#[derive(Clone, Copy, Debug)]
struct Frame {
    before: &'static str,
    first: &'static str,
    between: &'static str,
    behind: &'static str,
}

const ARRAY: Frame = Frame {
    before: "[",
    first: "",
    between: ",",
    behind: "]",
};
const HITS: Frame = Frame {
    before: "{\"hits\" :[",
    first: " ",
    between: ", ",
    behind: "]}\n",
};

pub(super) async fn query(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let parameters = Parameters::read(parts, body).await?;
    let of = |name| Some(unquoted(parameters.get(name)?).to_owned());
    let query = Query {
        project: of("project"),
        source: of("source"),
        path: of("Path"),
        name: of("filename"),
    };
    let search = Search::new(caller.storage(&house.keyspace), query);
    let answered = answer(Hits::new(search, None), ARRAY).await;
    answered.map_err(|error| refusal(error, Refusal::bad))
}

pub(super) async fn es_query(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let parameters = Parameters::read(parts, body).await?;
    let bad = |reason: String| Refusal::text(400, format!("es_query: Bad Request {reason}\n"));
    let text = parameters.get("QueryBody");
    let text = text.ok_or_else(|| bad("missing QueryBody".to_owned()))?;
    let condition =
        elastic::parse(unquoted_object(text)).map_err(|error| bad(error.to_string()))?;
    let turn = house.query_place(caller).await?;
    // The project and the source can be given beside it: then only those are looked at.
    let of = |name| Some(unquoted(parameters.get(name)?).to_owned());
    let query = Query {
        project: of("project"),
        source: of("source"),
        ..Query::default()
    };
    let search = Search::new(caller.storage(&house.keyspace), query);
    let mut hits = Hits::new(search, Some(condition));
    // All of them first: too much work is refused, and not told in half.
    let (mut found, mut bytes) = (Vec::new(), 0);
    let refused = |error| refusal(error, |error| bad(error.to_string()));
    while let Some(hit) = hits.next().await.map_err(refused)? {
        bytes += hit.len();
        if bytes > HITS_BYTES_MAX {
            let reason =
                format!("more than {HITS_BYTES_MAX} bytes of documents: ask for fewer by size");
            return Err(bad(reason));
        }
        found.push(hit);
    }
    let mut out = String::from(HITS.before);
    for (place, hit) in found.into_iter().enumerate() {
        out.push_str(if place == 0 { HITS.first } else { HITS.between });
        out.push_str(&String::from_utf8_lossy(&hit));
    }
    out.push_str(HITS.behind);
    Ok(json(held(out, turn)))
}

/// The answer to a query that cannot be answered; `too_much`: to one that asks for too much.
fn refusal(error: SearchError, too_much: impl FnOnce(SearchError) -> Refusal) -> Refusal {
    match error {
        SearchError::Storage(error) => error.into(),
        error => too_much(error),
    }
}

/// Shell scripts put quotes around the whole query.
fn unquoted_object(text: &str) -> &str {
    match text.starts_with('"') {
        true => unquoted(text),
        false => text,
    }
}

/// The documents of a search that are asked for.
#[derive(Debug)]
struct Hits {
    search: Search,
    condition: Option<Arc<Condition>>,
    left: usize,
}

impl Hits {
    fn new(search: Search, condition: Option<Condition>) -> Self {
        let size = condition.as_ref().and_then(|condition| condition.size);
        Self {
            search,
            left: size.unwrap_or(DOCUMENTS_MAX).min(DOCUMENTS_MAX),
            condition: condition.map(Arc::new),
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, SearchError> {
        while self.left > 0 {
            let Some(entry) = self.search.next().await? else {
                return Ok(None);
            };
            if let Some(condition) = &self.condition {
                let bytes = condition.work(&entry.value);
                if !holds(condition, &entry.value, bytes).await? {
                    self.search.was_in_vain(bytes).await?;
                    continue;
                }
            }
            self.left -= 1;
            return Ok(Some(entry.value));
        }
        Ok(None)
    }
}

/// Whether a document is one of those that are asked for. A long one keeps nobody else of the runtime waiting.
async fn holds(
    condition: &Arc<Condition>,
    document: &Value,
    bytes: u64,
) -> Result<bool, StorageError> {
    if bytes <= INLINE_BYTES_MAX {
        return Ok(condition.holds(document));
    }
    let (condition, document) = (condition.clone(), document.clone());
    let looking = tokio::task::spawn_blocking(move || condition.holds(&document));
    looking.await.map_err(|error| StorageError::Internal {
        message: format!("a document could not be looked at: {error}"),
        outcome: Outcome::NotExecuted,
    })
}

/// Sends them as they are read. The first one is read before, so that what is refused is an answer of its own.
async fn answer(mut hits: Hits, frame: Frame) -> Result<Response<Body>, SearchError> {
    let first = hits.next().await?;
    let Some(first) = first else {
        return Ok(json(format!("{}{}", frame.before, frame.behind)));
    };
    let before = format!("{}{}", frame.before, frame.first);
    let start = [Bytes::from(before), first].map(Ok);
    let rest = stream::try_unfold(Some(hits), move |state| async move {
        let Some(mut hits) = state else {
            return Ok::<_, SearchError>(None);
        };
        Ok(Some(match hits.next().await? {
            Some(document) => {
                let piece = [frame.between.as_bytes(), &document].concat();
                (Bytes::from(piece), Some(hits))
            }
            None => (Bytes::from_static(frame.behind.as_bytes()), None),
        }))
    });
    let all = futures_util::StreamExt::chain(stream::iter(start), rest);
    Ok(json(Body::from_stream(all)))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_long_document_is_looked_at_by_a_thread_of_its_own() {
        let condition = elastic::parse(r#"{"query":{"match":{"a":"x"}}}"#).unwrap();
        let condition = Arc::new(condition);
        let document =
            |bytes: usize| Value::from(format!("{{\"a\":\"{}\"}}", "x ".repeat(bytes / 2)));
        let looked = |document: Value| {
            let (condition, bytes) = (condition.clone(), condition.work(&document));
            async move { holds(&condition, &document, bytes).await }
        };
        assert_eq!(looked(document(100)).now_or_never(), Some(Ok(true)));
        let long = document(1 << 20);
        assert_eq!(looked(long.clone()).now_or_never(), None);
        assert_eq!(looked(long).await, Ok(true));
    }

    #[test]
    fn each_condition_goes_over_a_document_once_more() {
        let work = |query: &str| elastic::parse(query).unwrap().work(b"12345");
        assert_eq!(work(r#"{"size":1}"#), 5);
        assert_eq!(work(r#"{"query":{"match":{"a":"x"}}}"#), 10);
        let both = r#"{"query":{"bool":{"must":[{"match":{"a":"x"}},{"match":{"b":"x"}}]}}}"#;
        assert_eq!(work(both), 20);
    }
}
