//! Bodies of `multipart/form-data`, read as they come: never more than a head of a field, or a piece of its data, is kept.
//!
//! A field's head has at most 16 KiB, and what stands before the first field 64 KiB. Reading takes time in proportion to
//! the bytes, however they are cut.

use bytes::{Bytes, BytesMut};

/// The longest head of a field, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most bytes before the first field, or behind a boundary on its line.
const PADDING_BYTES_MAX: usize = 64 << 10;
/// The longest boundary, by RFC 2046.
const BOUNDARY_BYTES_MAX: usize = 70;

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MultipartError {
    #[error("the head of a field has over {HEAD_BYTES_MAX} bytes")]
    LongHead,
    #[error("over {PADDING_BYTES_MAX} bytes stand where a field should begin")]
    NoField,
    #[error("what is behind a boundary is neither a field nor the end")]
    BadBoundary,
    #[error("it ends within a field")]
    Incomplete,
}

/// The head of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) name: String,
    /// Whether it has a file name: then it is a file.
    pub(crate) is_file: bool,
}

/// A piece of a body, in their order: a head, its data, its end; at last the end of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Head(Head),
    Data(Bytes),
    /// The field is whole.
    End,
    /// All of it was read; what comes behind is ignored.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Preamble,
    Boundary,
    Head,
    Data,
    /// Behind the boundary, and the field's end is yet to be told.
    End,
    Done,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Parser {
    /// What ends a field: a line that begins with two dashes and the boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    stage: Stage,
    /// So much of the buffer was looked at, or skipped.
    seen: usize,
}

/// The boundary that a `Content-Type` names, if it is `multipart/form-data` with one.
pub(crate) fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let found = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_it = name.trim().eq_ignore_ascii_case("boundary");
        is_it.then(|| value.trim().trim_matches('"').to_owned())
    })?;
    (1..=BOUNDARY_BYTES_MAX)
        .contains(&found.len())
        .then_some(found)
}

impl Parser {
    pub(crate) fn new(boundary: &str) -> Self {
        Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // So that the first boundary is one like the others.
            buffer: BytesMut::from("\r\n"),
            stage: Stage::Preamble,
            seen: 0,
        }
    }

    /// Takes what has arrived. To be called when [`Parser::next`] has no piece.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.stage != Stage::Done {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next piece; `None` if more must arrive for it.
    ///
    /// # Errors
    /// [`MultipartError`]; nothing can be read any more then.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, MultipartError> {
        loop {
            match self.stage {
                Stage::Preamble => {
                    let (skipped, found) = self.take_data();
                    self.seen += skipped.len();
                    match found {
                        true => self.enter(Stage::Boundary),
                        false if self.seen > PADDING_BYTES_MAX => {
                            return Err(MultipartError::NoField);
                        }
                        false if skipped.is_empty() => return Ok(None),
                        false => {}
                    }
                }
                Stage::Boundary => match self.behind_boundary()? {
                    Some(Stage::Done) => {
                        self.enter(Stage::Done);
                        return Ok(Some(Piece::Done));
                    }
                    Some(stage) => self.enter(stage),
                    None => return Ok(None),
                },
                Stage::Head => {
                    let head = self.head()?;
                    if head.is_some() {
                        self.enter(Stage::Data);
                    }
                    return Ok(head.map(Piece::Head));
                }
                Stage::Data => {
                    let (data, found) = self.take_data();
                    if found {
                        self.enter(Stage::End);
                    }
                    match data.is_empty() {
                        false => return Ok(Some(Piece::Data(data))),
                        true if found => {}
                        true => return Ok(None),
                    }
                }
                Stage::End => {
                    self.enter(Stage::Boundary);
                    return Ok(Some(Piece::End));
                }
                Stage::Done => return Ok(Some(Piece::Done)),
            }
        }
    }

    /// Whether a body may end here.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn finish(&self) -> Result<(), MultipartError> {
        match self.stage {
            Stage::Done => Ok(()),
            _ => Err(MultipartError::Incomplete),
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.seen = 0;
    }

    /// Takes what is before a delimiter, and the delimiter if there is one; else all that cannot be the start of one.
    fn take_data(&mut self) -> (Bytes, bool) {
        let delimiter = self.delimiter.len();
        let mut from = 0;
        while let Some(place) = self.buffer.get(from..).and_then(position_of_return) {
            let place = from + place;
            let rest = self.buffer.get(place..).unwrap_or_default();
            let common = rest.iter().zip(&self.delimiter);
            let common = common.take_while(|(one, other)| one == other).count();
            if common == delimiter {
                let data = self.buffer.split_to(place).freeze();
                drop(self.buffer.split_to(delimiter));
                return (data, true);
            }
            if common == rest.len() {
                // It may become one.
                return (self.buffer.split_to(place).freeze(), false);
            }
            from = place + 1;
        }
        (self.buffer.split().freeze(), false)
    }

    /// What follows a boundary: two dashes at the end of all, or the end of the line and a field.
    fn behind_boundary(&mut self) -> Result<Option<Stage>, MultipartError> {
        let padding = self.buffer.iter();
        let padding = padding
            .take_while(|byte| matches!(byte, b' ' | b'\t'))
            .count();
        self.seen += padding;
        drop(self.buffer.split_to(padding));
        if self.seen > PADDING_BYTES_MAX {
            return Err(MultipartError::NoField);
        }
        match self.buffer.get(..2) {
            None => Ok(None),
            Some(b"--") if self.seen == 0 => Ok(Some(Stage::Done)),
            Some(b"\r\n") => {
                // It stays: a head without a line ends with it and the next.
                Ok(Some(Stage::Head))
            }
            Some(_) => Err(MultipartError::BadBoundary),
        }
    }

    /// The head, once its empty line is there.
    fn head(&mut self) -> Result<Option<Head>, MultipartError> {
        let from = self.seen.saturating_sub(3);
        let found = self.buffer.get(from..).unwrap_or_default();
        let found = found.windows(4).position(|window| window == b"\r\n\r\n");
        let end = found.map(|place| from + place + 4);
        self.seen = self.buffer.len();
        if end.unwrap_or(self.seen) > HEAD_BYTES_MAX {
            return Err(MultipartError::LongHead);
        }
        let Some(end) = end else {
            return Ok(None);
        };
        let head = self.buffer.split_to(end);
        Ok(Some(head_of(&String::from_utf8_lossy(&head))))
    }
}

fn position_of_return(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\r')
}

fn head_of(text: &str) -> Head {
    let disposition = text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.trim().eq_ignore_ascii_case("content-disposition");
        is_it.then_some(value)
    });
    let mut head = Head::default();
    let mut rest = disposition.unwrap_or_default();
    // Its kind comes first, and is `form-data` always.
    rest = rest.split_once(';').map_or("", |(_, rest)| rest);
    while let Some((name, value, behind)) = parameter(rest) {
        match name.to_ascii_lowercase().as_str() {
            "name" => head.name = value,
            "filename" | "filename*" => head.is_file = true,
            _ => {}
        }
        rest = behind;
    }
    head
}

/// The first parameter of a header's value: name, value, and what is behind it.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.split_once('=')?;
    let name = name.trim_matches([' ', '\t', ';']);
    let rest = rest.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, behind) = rest.split_once(';').unwrap_or((rest, ""));
        return Some((name, value.trim().to_owned(), behind));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' => return Some((name, value, quoted.get(place + 1..)?)),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            plain => value.push(plain),
        }
    }
    Some((name, value, ""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All pieces of a body that arrives in chunks of this length, with the data of each field put together.
    fn read(
        body: &[u8],
        boundary: &str,
        chunk: usize,
    ) -> Result<Vec<(Head, Vec<u8>)>, MultipartError> {
        let mut parser = Parser::new(boundary);
        let (mut fields, mut chunks) = (Vec::new(), body.chunks(chunk));
        let mut open: Option<(Head, Vec<u8>)> = None;
        loop {
            match parser.next()? {
                Some(Piece::Head(head)) => {
                    assert!(open.is_none());
                    open = Some((head, Vec::new()));
                }
                Some(Piece::Data(data)) => {
                    assert!(!data.is_empty());
                    open.as_mut().unwrap().1.extend(data);
                }
                Some(Piece::End) => fields.push(open.take().unwrap()),
                Some(Piece::Done) => {
                    assert!(open.is_none());
                    return Ok(fields);
                }
                None => match chunks.next() {
                    Some(bytes) => parser.feed(bytes),
                    None => {
                        parser.finish()?;
                        return Ok(fields);
                    }
                },
            }
        }
    }

    fn head(name: &str, is_file: bool) -> Head {
        Head {
            name: name.to_owned(),
            is_file,
        }
    }

    #[test]
    fn fields_are_read_however_they_are_cut() {
        let body = b"before it\r\n--*****\r\nContent-Disposition: form-data; name=\"UploadFile\"; filename=\"a;\\\"b=c.c\"\r\n\
            Content-Type: text/plain\r\n\r\n\r\n--****\r\n\r--**\r\n--*****  \r\ncontent-disposition: form-data; NAME=x\r\n\r\n\
            \r\n--*****\r\n\r\nnameless\r\n--*****--\r\nbehind it";
        for chunk in 1..body.len() {
            let fields = read(body, "*****", chunk).unwrap();
            assert_eq!(
                fields,
                [
                    (head("UploadFile", true), b"\r\n--****\r\n\r--**".to_vec()),
                    (head("x", false), Vec::new()),
                    (head("", false), b"nameless".to_vec()),
                ],
                "{chunk}"
            );
        }
        assert_eq!(read(b"--b--", "b", 1), Ok(Vec::new()));
    }

    #[test]
    fn what_is_none_is_refused() {
        let long = |before: &str, bytes: usize| format!("{before}{}", "x".repeat(bytes));
        let padded = format!("--b{}", " ".repeat(PADDING_BYTES_MAX + 1));
        for (body, error) in [
            (String::new(), MultipartError::Incomplete),
            (
                "--b\r\n\r\nabc\r\n--".to_owned(),
                MultipartError::Incomplete,
            ),
            (
                "--b\r\n\r\nabc\r\n--b".to_owned(),
                MultipartError::Incomplete,
            ),
            ("--bc\r\n".to_owned(), MultipartError::BadBoundary),
            (long("", PADDING_BYTES_MAX + 1), MultipartError::NoField),
            (padded, MultipartError::NoField),
            (long("--b\r\na:", HEAD_BYTES_MAX), MultipartError::LongHead),
        ] {
            for chunk in [1, 7, 100_000] {
                assert_eq!(read(body.as_bytes(), "b", chunk), Err(error));
            }
        }
    }

    #[test]
    fn a_boundary_is_named_by_the_content_type() {
        for (content_type, found) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            (
                "Multipart/Form-Data;charset=utf-8; Boundary=\"a b\"",
                Some("a b"),
            ),
            ("multipart/form-data;boundary=*****", Some("*****")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("text/plain; boundary=abc", None),
        ] {
            assert_eq!(boundary(content_type).as_deref(), found, "{content_type}");
        }
        assert_eq!(
            boundary(&format!("multipart/form-data; boundary={}", "x".repeat(71))),
            None
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            fields in prop::collection::vec(("[a-zA-Z]{0,4}", any::<bool>(), "([\r\n-]|b|x){0,12}"), 0..4),
            chunk in 1_usize..9,
        ) {
            let mut body = Vec::new();
            for (name, is_file, data) in &fields {
                // With another byte before it, the data has no delimiter of its own.
                prop_assume!(!format!("\r\n{data}").contains("\r\n--b"));
                let file = if *is_file { "; filename=\"f\"" } else { "" };
                body.extend(format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{data}\r\n").bytes());
            }
            body.extend(b"--b--\r\n");
            let expected: Vec<_> = fields
                .iter()
                .map(|(name, is_file, data)| (head(name, *is_file), data.clone().into_bytes()))
                .collect();
            prop_assert_eq!(read(&body, "b", chunk), Ok(expected));
        }

        #[test]
        fn however_it_is_cut_it_is_the_same(bytes in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'b'), any::<u8>()], 0..80), chunk in 1_usize..9) {
            let body = [b"--b\r\n\r\n".as_slice(), &bytes].concat();
            prop_assert_eq!(read(&body, "b", chunk), read(&body, "b", 1_000));
        }
    }
}
