//! What the gateway `repository` takes of peers: frames of subscribers, JSON of uploads, multipart bodies.

use serde_json::{Map, Value};
use storage_protocol::Position;

use crate::gateway::repository::{
    Parser, Piece, Place, error_frame, metadata_document, parse_subscribe,
};

/// A frame of a subscriber: it is answered with JSON, whatever it is.
///
/// # Panics
/// If a promise does not hold.
pub fn check_frame(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let answer = match parse_subscribe(&text) {
        Ok(asked) => asked.acknowledgement(Position::default()),
        Err(error) => error_frame(&error.to_string()),
    };
    let answer: Value = serde_json::from_str(&answer).expect("an answer is JSON");
    assert!(answer.is_object());
}

/// The JSON of an upload, and before it, ended by NUL bytes, project, source, path and name: what is made of it is one JSON
/// object with the names of the request and the lengths of its texts.
///
/// # Panics
/// If a promise does not hold.
pub fn check_metadata(input: &[u8]) {
    let mut parts = input.splitn(5, |byte| *byte == 0);
    let mut name = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let place = Place {
        project: name(),
        source: name(),
        path: name(),
        name: name(),
    };
    let json = parts.next().unwrap_or_default();
    let Ok(document) = metadata_document(json, &place) else {
        return;
    };
    let text = document.text();
    assert!(!text.contains('\n'), "a document is one line");
    let document: Map<String, Value> = serde_json::from_str(text).expect("a document is JSON");
    assert_eq!(document["path"], Value::from(place.path));
    assert_eq!(document["filename"], Value::from(place.name));
    assert!(document.contains_key("project") && document.contains_key("source"));
    for (name, value) in &document {
        assert!(
            !name.bytes().any(|byte| byte.is_ascii_uppercase()),
            "{name}"
        );
        if let Some(value) = value.as_str() {
            let length = document.get(&format!("{name}_length"));
            let counted = Value::from(value.encode_utf16().count());
            // A name that is itself the length of another text has none.
            let is_length = name.strip_suffix("_length");
            let is_length =
                is_length.is_some_and(|of| document.get(of).is_some_and(Value::is_string));
            assert!(length == Some(&counted) || is_length, "{name}: {length:?}");
        }
    }
}

/// A multipart body whose boundary is `b`, behind a byte that says in pieces of what size it arrives: however it is cut, the
/// same is read.
///
/// # Panics
/// If a promise does not hold.
pub fn check_multipart(input: &[u8]) {
    let Some((size, body)) = input.split_first() else {
        return;
    };
    let whole = read(body, body.len().max(1));
    assert_eq!(read(body, usize::from(*size).max(1)), whole);
}

/// The fields of a body, each with its data, and whether it ended well.
fn read(body: &[u8], piece: usize) -> (Vec<(String, Vec<u8>)>, bool) {
    let mut parser = Parser::new("b");
    let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
    for piece in body.chunks(piece) {
        parser.feed(piece);
        loop {
            match parser.next() {
                Ok(None) => break,
                Ok(Some(Piece::Head(head))) => fields.push((head.name, Vec::new())),
                Ok(Some(Piece::Data(data))) => {
                    let (_, field) = fields.last_mut().expect("data are of a field");
                    field.extend_from_slice(&data);
                }
                Ok(Some(Piece::End)) => {}
                Ok(Some(Piece::Done)) => return (fields, true),
                Err(_) => return (fields, false),
            }
        }
    }
    (fields, parser.finish().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::tests::seeds;

    #[test]
    fn the_seeds_hold_what_is_promised_and_are_what_their_names_say() {
        for (name, seed) in seeds("repository_frame") {
            check_frame(&seed);
            let is_good = parse_subscribe(std::str::from_utf8(&seed).unwrap()).is_ok();
            assert_eq!(is_good, !name.starts_with("bad"), "{name}");
        }
        for (name, seed) in seeds("repository_metadata") {
            check_metadata(&seed);
            let json = seed.splitn(5, |byte| *byte == 0).nth(4).unwrap();
            let place = Place {
                project: "p".to_owned(),
                source: "s".to_owned(),
                path: String::new(),
                name: "n".to_owned(),
            };
            let is_good = metadata_document(json, &place).is_ok();
            assert_eq!(is_good, !name.starts_with("bad"), "{name}");
        }
        for (name, seed) in seeds("repository_multipart") {
            check_multipart(&seed);
            let (_, is_whole) = read(&seed[1..], 3);
            assert_eq!(is_whole, !name.starts_with("bad"), "{name}");
        }
    }
}
