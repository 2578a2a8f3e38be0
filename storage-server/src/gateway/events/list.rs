//! `GET /TYPE`: the objects of a type, filtered, sorted and cut by the query.
//!
//! | parameter | meaning |
//! | --- | --- |
//! | `limit`, `offset` | at most so many, behind so many |
//! | `sort=FIELD` | by this field (several: by the first, among equals by the next); default by key |
//! | `reverse=true` | from the last to the first |
//! | `slim=Params,Meta` | without these fields |
//! | `FIELD=VALUE` | those with this value; also `Eq(..)`, `Ne(..)`, `Lt(..)`, `Lte(..)`, `Gt(..)`, `Gte(..)` |
//!
//! The objects are read page by page. What is kept is bounded, see [`LIST_BYTES_MAX`]; all others are only counted.

use std::cmp::Ordering;
use std::time::Duration;

use axum::extract::{Path, Query};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde_json::Value;
use storage_protocol::{KeyRange, KeyState, ScanOptions, Storage};

use super::answer::{Answer, Fault, json};
use super::json::{Fields, shown};
use super::login::{PARAMETERS, Visitor};
use super::objects::check_type;
use crate::http::held::held;
use crate::limits::turns::Turn;

/// The most that a list has, in bytes of JSON; a sorted one before it is cut.
const LIST_BYTES_MAX: usize = 16 << 20;
/// How many lists are put together or taken at a time, half of them for one peer; others wait for their turn, but not for
/// ever.
pub(super) const LISTS_MAX: usize = 8;
const TURN_WAIT: Duration = Duration::from_secs(10);
/// The most fields that a list is sorted by, and the most filters of it: each is looked at for each object.
const SORTS_MAX: usize = 8;
const FILTERS_MAX: usize = 32;
/// Parameters that change nothing here.
const IGNORED: [&str; 4] = ["decode", "params", "aggregate", "commented"];

type Pairs = Vec<(String, String)>;

pub(super) async fn list(
    visitor: Visitor,
    Path(kind): Path<String>,
    query: Result<Query<Pairs>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    check_type(&kind)?;
    let Query(pairs) = query.map_err(|error| Fault::bad(error.body_text()))?;
    let wanted = Wanted::of(pairs)?;
    let peer = visitor.caller.peer_name();
    let turn = visitor.state.lists.take(&peer, TURN_WAIT).await;
    let turn = turn.map_err(|why| Fault::for_now(format!("lists (lists_max): {why}")))?;
    let listed = collect(&visitor, &kind, &wanted).await?;
    Ok(answer(listed, turn))
}

struct Listed {
    objects: Vec<String>,
    /// Those that the filters take.
    matching: usize,
    /// All of the type that may be seen.
    total: usize,
}

/// The list keeps its turn until it is taken, so that no more of them are held than there are turns.
fn answer(listed: Listed, turn: Turn) -> Response {
    let count = listed.objects.len();
    let text = format!("[{}]", listed.objects.join(","));
    let mut response = json(StatusCode::OK, held(text, turn));
    let headers = response.headers_mut();
    headers.insert("X-DRP-LIST-COUNT", HeaderValue::from(count));
    let matching = HeaderValue::from(listed.matching);
    headers.insert("X-DRP-LIST-FILTER-COUNT", matching);
    let total = HeaderValue::from(listed.total);
    headers.insert("X-DRP-LIST-TOTAL-COUNT", total);
    response
}

async fn collect(visitor: &Visitor, kind: &str, wanted: &Wanted) -> Result<Listed, Fault> {
    let is_sorted = !wanted.sort.is_empty();
    let options = ScanOptions {
        reverse: wanted.reverse && !is_sorted,
        ..ScanOptions::default()
    };
    let range = KeyRange::prefix(format!("{kind}/"));
    let mut scan = visitor.storage.scan(range, options).await?;
    let mut kept = Vec::new();
    let (mut bytes, mut matching, mut total) = (0, 0, 0);
    let window = wanted.offset..wanted.offset.saturating_add(wanted.limit);
    while let Some(page) = scan.next_page().await? {
        for item in page {
            let KeyState::Live(entry) = item.state else {
                continue;
            };
            total += 1;
            let text = shown(kind, &entry.value);
            let fields = Fields::parse(text.as_bytes()).unwrap_or_default();
            if !wanted.filters.iter().all(|filter| filter.takes(&fields)) {
                continue;
            }
            matching += 1;
            if !is_sorted && !window.contains(&(matching - 1)) {
                continue;
            }
            let object = wanted.slimmed(text, fields.names().is_empty());
            let ranks: Vec<_> = wanted.sort.iter().map(|name| rank(&fields, name)).collect();
            bytes += object.len() + ranks.iter().map(Rank::bytes).sum::<usize>();
            if bytes > LIST_BYTES_MAX {
                return Err(Fault::too_large(format!(
                    "the list has more than {LIST_BYTES_MAX} bytes (list_bytes_max): use limit and offset, without sort, or \
                     filters"
                )));
            }
            kept.push((ranks, object));
        }
    }
    if is_sorted {
        kept.sort_by(|(a, _), (b, _)| a.cmp(b));
        if wanted.reverse {
            kept.reverse();
        }
        kept.truncate(window.end);
        kept.drain(..window.start.min(kept.len()));
    }
    let objects = kept.into_iter().map(|(_, object)| object);
    Ok(Listed {
        objects: objects.collect(),
        matching,
        total,
    })
}

#[derive(Debug)]
struct Wanted {
    limit: usize,
    offset: usize,
    sort: Vec<String>,
    reverse: bool,
    slim: Vec<String>,
    filters: Vec<FieldFilter>,
}

impl Wanted {
    fn of(pairs: Pairs) -> Result<Self, Fault> {
        let mut wanted = Self {
            limit: usize::MAX,
            offset: 0,
            sort: Vec::new(),
            reverse: false,
            slim: Vec::new(),
            filters: Vec::new(),
        };
        for (name, value) in pairs {
            let count = || {
                let count = value.parse::<usize>();
                count.map_err(|_| Fault::bad(format!("{name} is a number, not {value:?}")))
            };
            match name.as_str() {
                "limit" => wanted.limit = count()?,
                "offset" => wanted.offset = count()?,
                "sort" => wanted.sort.extend(value.split(',').map(str::to_owned)),
                "reverse" => wanted.reverse = value == "true",
                "slim" => wanted.slim.extend(value.split(',').map(str::to_owned)),
                name if PARAMETERS.contains(&name) || IGNORED.contains(&name) => {}
                _ => wanted.filters.push(FieldFilter::parse(name, &value)),
            }
        }
        let (sorts, filters) = (wanted.sort.len(), wanted.filters.len());
        if sorts > SORTS_MAX || filters > FILTERS_MAX {
            return Err(Fault::bad(format!(
                "a list is sorted by at most {SORTS_MAX} fields (sorts_max) and has at most {FILTERS_MAX} filters (filters_max)"
            )));
        }
        Ok(wanted)
    }

    fn slimmed(&self, object: String, is_no_object: bool) -> String {
        if self.slim.is_empty() || is_no_object {
            return object;
        }
        let Some(mut fields) = Fields::parse(object.as_bytes()) else {
            return object;
        };
        fields.retain(|name| !self.slim.iter().any(|slim| slim == name));
        fields.to_json()
    }
}

/// Which values of a field are wanted.
#[derive(Debug)]
struct FieldFilter {
    name: String,
    value: String,
    takes: Takes,
}

/// Whether a value that is so to the wanted one is taken.
type Takes = fn(Ordering) -> bool;

impl FieldFilter {
    fn parse(name: String, value: &str) -> Self {
        let within = |function: &str| {
            let rest = value.strip_prefix(function)?;
            rest.strip_prefix('(')?.strip_suffix(')')
        };
        let functions: [(&str, Takes); 6] = [
            ("Eq", Ordering::is_eq),
            ("Ne", Ordering::is_ne),
            ("Lte", Ordering::is_le),
            ("Lt", Ordering::is_lt),
            ("Gte", Ordering::is_ge),
            ("Gt", Ordering::is_gt),
        ];
        let found = functions
            .iter()
            .find_map(|(function, takes)| Some((within(function)?, *takes)));
        let (value, takes) = found.unwrap_or((value, Ordering::is_eq));
        Self {
            name,
            value: value.to_owned(),
            takes,
        }
    }

    /// An object without the field has no value to compare.
    fn takes(&self, fields: &Fields) -> bool {
        let wanted = &self.value;
        let compared = match rank(fields, &self.name) {
            Rank::None => return false,
            Rank::Number(number) => match wanted.parse::<f64>() {
                Ok(wanted) => number.total_cmp(&wanted),
                Err(_) => return false,
            },
            Rank::Bool(is_true) => is_true.to_string().cmp(wanted),
            Rank::Text(text) => text.cmp(wanted),
        };
        (self.takes)(compared)
    }
}

/// The value of a field, for comparisons: numbers before texts, and before both what has none.
#[derive(Clone, Debug)]
enum Rank {
    None,
    Bool(bool),
    Number(f64),
    Text(String),
}

impl Rank {
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Text(text) => text.len(),
                _ => 0,
            }
    }

    fn place(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::Bool(_) => 1,
            Self::Number(_) => 2,
            Self::Text(_) => 3,
        }
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Number(a), Self::Number(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            _ => self.place().cmp(&other.place()),
        }
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

fn rank(fields: &Fields, name: &str) -> Rank {
    let value = fields.get(name).map(serde_json::from_str::<Value>);
    match value {
        Some(Ok(Value::Bool(is_true))) => Rank::Bool(is_true),
        Some(Ok(Value::Number(number))) => number.as_f64().map_or(Rank::None, Rank::Number),
        Some(Ok(Value::String(text))) => Rank::Text(text),
        _ => Rank::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(name: &str, value: &str, object: &str) -> bool {
        let filter = FieldFilter::parse(name.to_owned(), value);
        filter.takes(&Fields::parse(object.as_bytes()).unwrap())
    }

    #[test]
    fn a_field_is_compared_as_what_it_is() {
        let plane = r#"{"Name":"N1","Seats":55,"Fast":true,"Params":{}}"#;
        for (name, value) in [
            ("Name", "N1"),
            ("Name", "Eq(N1)"),
            ("Name", "Ne(N2)"),
            ("Name", "Lt(N2)"),
            ("Seats", "55"),
            ("Seats", "Lt(100)"),
            ("Seats", "Gte(55)"),
            ("Seats", "Lte(55.0)"),
            ("Fast", "true"),
        ] {
            assert!(takes(name, value, plane), "{name}={value}");
        }
        for (name, value) in [
            ("Name", "N2"),
            ("Name", "Gt(N1)"),
            ("Name", "Eq(N1"),
            ("Seats", "many"),
            ("Seats", "Gt(55)"),
            ("Fast", "false"),
            ("Params", "{}"),
            ("Missing", ""),
            ("Missing", "Ne(1)"),
        ] {
            assert!(!takes(name, value, plane), "{name}={value}");
        }
    }

    #[test]
    fn a_bad_number_is_named() {
        let of = |name: &str, value: &str| Wanted::of(vec![(name.to_owned(), value.to_owned())]);
        for (name, value) in [("limit", "x"), ("offset", "-1"), ("limit", "")] {
            assert!(of(name, value).is_err(), "{name}={value}");
        }
        assert_eq!(of("limit", "3").unwrap().limit, 3);
        assert!(of("token", "x").unwrap().filters.is_empty());
    }
}
