//! `GET /download`: a file, or a range of it, as it is read from storage.

use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt;
use hyper::StatusCode;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use hyper::http::request::Parts;
use storage_protocol::objects::ObjectReader;

use super::answer::{Answer, Refusal};
use super::house::House;
use super::keys;
use super::parameters::Parameters;
use super::place::{Place, READ};
use super::ranges::{Wanted, wanted};
use crate::gateway::Caller;

pub(super) async fn download(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let parameters = Parameters::read(parts, body).await?;
    let place = parameters.unquoted_values(READ).place(READ)?;
    let storage = caller.storage(&house.keyspace);
    let reader = ObjectReader::open(storage, keys::file(&place)).await?;
    let reader = reader.ok_or_else(|| not_found(&shown(&place)))?;
    let size = reader.info().size;
    let etag = format!("\"{}\"", reader.info().etag());
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert(headers, ETAG, &etag);
    if is_named(text(&parts.headers, &IF_NONE_MATCH), &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let range = text(&parts.headers, &RANGE);
    let is_same = text(&parts.headers, &IF_RANGE).is_none_or(|other| other == etag);
    let range = match wanted(range.filter(|_| is_same), size) {
        Wanted::All => 0..size,
        Wanted::Part(range) => {
            let last = range.end.saturating_sub(1);
            insert(
                headers,
                CONTENT_RANGE,
                &format!("bytes {}-{last}/{size}", range.start),
            );
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            range
        }
        Wanted::Nothing => {
            insert(headers, CONTENT_RANGE, &format!("bytes */{size}"));
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            return Ok(response);
        }
    };
    let headers = response.headers_mut();
    let octets = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, octets);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    headers.insert(CONTENT_DISPOSITION, disposition(&place.name));
    let sent = house.metrics.bytes_out.clone();
    let chunks = reader.read_range(range)?.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            sent.inc_by(chunk.len() as u64);
        }
    });
    *response.body_mut() = Body::from_stream(chunks);
    Ok(response)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whether an `If-None-Match` names this one.
fn is_named(header: Option<&str>, etag: &str) -> bool {
    let names = header.into_iter().flat_map(|header| header.split(','));
    let mut names = names.map(|name| name.trim().trim_start_matches("W/"));
    names.any(|name| name == etag || name == "*")
}

/// As the original sends it: the name as it is, but for what no header takes.
fn disposition(name: &str) -> HeaderValue {
    let name: String = name
        .chars()
        .map(|character| {
            if character.is_control() {
                '_'
            } else {
                character
            }
        })
        .collect();
    let value = HeaderValue::from_bytes(format!("attachment; filename={name}").as_bytes());
    value.unwrap_or_else(|_| HeaderValue::from_static("attachment"))
}

fn shown(place: &Place) -> String {
    let parts = [&place.project, &place.source, &place.path, &place.name];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.map(String::as_str).collect::<Vec<_>>().join("/")
}

/// The answer where there is no file, or no folder.
pub(super) fn not_found(what: &str) -> Refusal {
    Refusal::text(
        404,
        format!("\n404: Bad Request, file not found.\nERROR File does not exist: {what}\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_in_its_header_as_it_is_but_for_control_characters() {
        assert_eq!(disposition("main.c"), "attachment; filename=main.c");
        assert_eq!(disposition("a\r\nb: c"), "attachment; filename=a__b: c");
        assert_eq!(
            disposition("ü").as_bytes(),
            "attachment; filename=ü".as_bytes()
        );
    }

    #[test]
    fn an_etag_is_found_among_several() {
        for (header, is) in [
            ("\"a\"", true),
            ("\"b\", W/\"a\"", true),
            ("*", true),
            ("a", false),
        ] {
            assert_eq!(is_named(Some(header), "\"a\""), is);
        }
        assert!(!is_named(None, "\"a\""));
    }
}
