//! `GET /query_metadata` and `GET /es_query_metadata`: the documents that are asked for, as they are read.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use hyper::http::request::Parts;
use storage_protocol::StorageError;

use super::answer::{Answer, Refusal, json};
use super::elastic::{self, Condition};
use super::house::House;
use super::index::Query;
use super::parameters::Parameters;
use super::place::unquoted;
use super::search::Search;
use crate::gateway::Caller;

/// The most documents of an answer.
const DOCUMENTS_MAX: usize = 100;
/// The most documents that are looked at for a query in JSON, which no index serves.
const LOOKED_AT_MAX: usize = 10_000;
/// The most bytes of documents that are looked at for one.
const LOOKED_AT_BYTES_MAX: usize = 64 << 20;
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
    answer(Hits::new(search, None), ARRAY).await
}

pub(super) async fn es_query(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let parameters = Parameters::read(parts, body).await?;
    let bad = |reason: String| Refusal::text(400, format!("es_query: Bad Request {reason}\n"));
    let text = parameters.get("QueryBody");
    let text = text.ok_or_else(|| bad("missing QueryBody".to_owned()))?;
    let condition =
        elastic::parse(unquoted_object(text)).map_err(|error| bad(error.to_string()))?;
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
    while let Some(hit) = hits.next().await? {
        bytes += hit.len();
        if bytes > HITS_BYTES_MAX {
            let reason =
                format!("more than {HITS_BYTES_MAX} bytes of documents: ask for fewer by size");
            return Err(bad(reason));
        }
        found.push(hit);
    }
    if hits.is_too_much() {
        return Err(bad(format!(
            "more than {LOOKED_AT_MAX} documents, or {LOOKED_AT_BYTES_MAX} bytes of them, would have to be looked at: name a \
             project, or a source, beside QueryBody"
        )));
    }
    let mut out = String::from(HITS.before);
    for (place, hit) in found.iter().enumerate() {
        out.push_str(if place == 0 { HITS.first } else { HITS.between });
        out.push_str(&String::from_utf8_lossy(hit));
    }
    out.push_str(HITS.behind);
    Ok(json(out))
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
    condition: Option<Condition>,
    left: usize,
    looked_at: usize,
    looked_at_bytes: usize,
}

impl Hits {
    fn new(search: Search, condition: Option<Condition>) -> Self {
        let size = condition.as_ref().and_then(|condition| condition.size);
        Self {
            search,
            left: size.unwrap_or(DOCUMENTS_MAX).min(DOCUMENTS_MAX),
            condition,
            looked_at: 0,
            looked_at_bytes: 0,
        }
    }

    fn is_too_much(&self) -> bool {
        self.looked_at > LOOKED_AT_MAX || self.looked_at_bytes > LOOKED_AT_BYTES_MAX
    }

    async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        while self.left > 0 {
            let Some(entry) = self.search.next().await? else {
                return Ok(None);
            };
            if let Some(condition) = &self.condition {
                self.looked_at += 1;
                self.looked_at_bytes += entry.value.len();
                if self.is_too_much() {
                    return Ok(None);
                }
                if !condition.holds(&entry.value) {
                    continue;
                }
            }
            self.left -= 1;
            return Ok(Some(entry.value));
        }
        Ok(None)
    }
}

/// Sends them as they are read. The first one is read before, so that what is refused is an answer of its own.
async fn answer(mut hits: Hits, frame: Frame) -> Result<Response<Body>, Refusal> {
    let first = hits.next().await?;
    let Some(first) = first else {
        return Ok(json(format!("{}{}", frame.before, frame.behind)));
    };
    let before = format!("{}{}", frame.before, frame.first);
    let start = [Bytes::from(before), first].map(Ok);
    let rest = stream::try_unfold(Some(hits), move |state| async move {
        let Some(mut hits) = state else {
            return Ok::<_, StorageError>(None);
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
