//! The bytes of a file to import: unpacked where they are packed, without what editors put in front.
//!
//! Blocking. gzip as gzip takes it: several members one behind the other, and zeros behind the last (tapes and some tools
//! pad). Invariant: what is behind the packed data and is something else is an error, once everything before it was read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use indicatif::ProgressBar;

use crate::failure::usage;
use crate::stdin;

const BUFFER_BYTES: usize = 64 * 1024;

/// How gzip begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What marks UTF-8, and is no part of the text.
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

type Source = Box<dyn BufRead + Send>;

/// Opens a file (`-`: stdin), and unpacks it where its name or its first bytes say gzip. `bar` follows the bytes read.
pub(crate) fn open(file: &Path, bar: &ProgressBar) -> anyhow::Result<Source> {
    let unreadable = |error| unreadable(file, &error);
    let raw: Box<dyn Read + Send> = if file == Path::new("-") {
        stdin::take("FILE")?;
        Box::new(io::stdin())
    } else {
        let opened = File::open(file).map_err(unreadable)?;
        Box::new(bar.wrap_read(opened))
    };
    let raw = BufReader::with_capacity(BUFFER_BYTES, raw);
    let (packed, whole) = begins_with(&GZIP, raw).map_err(unreadable)?;
    let named = file.as_os_str().to_ascii_lowercase();
    let unpacked: Source = match packed || named.as_encoded_bytes().ends_with(b".gz") {
        true => Box::new(BufReader::with_capacity(BUFFER_BYTES, Gunzip::new(whole))),
        false => whole,
    };
    let (marked, mut text) = begins_with(&BYTE_ORDER_MARK, unpacked).map_err(unreadable)?;
    if marked {
        text.read_exact(&mut [0; BYTE_ORDER_MARK.len()])
            .map_err(unreadable)?;
    }
    Ok(text)
}

pub(crate) fn unreadable(file: &Path, error: &io::Error) -> anyhow::Error {
    usage(format!("{} cannot be read: {error}", file.display()))
}

/// Whether it begins so, and the whole. Reads no further than it has to: what comes behind may be an error.
fn begins_with(
    expected: &[u8],
    mut from: impl BufRead + Send + 'static,
) -> io::Result<(bool, Source)> {
    let mut head = Vec::new();
    while expected.len() > head.len() && expected.starts_with(&head) {
        if from.by_ref().take(1).read_to_end(&mut head)? == 0 {
            break;
        }
    }
    let begins = head == expected;
    Ok((begins, Box::new(Cursor::new(head).chain(from))))
}

/// What is packed, with a look at how it goes on.
struct Packed {
    /// Bytes that were looked at, from `taken` to `known` not yet read.
    head: [u8; GZIP.len()],
    taken: usize,
    known: usize,
    from: Source,
}

impl Packed {
    /// Whether a member begins here. As [`begins_with`], but however often it is asked, it stays one reader.
    fn begins_with_gzip(&mut self) -> io::Result<bool> {
        self.head.copy_within(self.taken..self.known, 0);
        (self.taken, self.known) = (0, self.known - self.taken);
        while let Some(free) = self
            .head
            .get_mut(self.known..)
            .filter(|free| !free.is_empty())
        {
            let bytes = match self.from.read(free) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            self.known += bytes;
            if bytes == 0 || !GZIP.starts_with(self.head.get(..self.known).unwrap_or_default()) {
                break;
            }
        }
        Ok(self.head.get(..self.known) == Some(&GZIP))
    }
}

impl Read for Packed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?.read(out)?;
        self.consume(bytes);
        Ok(bytes)
    }
}

impl BufRead for Packed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.head.get(self.taken..self.known) {
            Some(head) if !head.is_empty() => Ok(head),
            _ => self.from.fill_buf(),
        }
    }

    fn consume(&mut self, bytes: usize) {
        match self.known - self.taken {
            0 => self.from.consume(bytes),
            // No more than `fill_buf` gave.
            _ => self.taken += bytes,
        }
    }
}

/// Unpacks one member after the other.
struct Gunzip(State);

enum State {
    Member(GzDecoder<Packed>),
    Over,
}

impl Gunzip {
    fn new(from: Source) -> Self {
        let head = [0; GZIP.len()];
        Self(State::Member(GzDecoder::new(Packed {
            head,
            taken: 0,
            known: 0,
            from,
        })))
    }
}

impl Read for Gunzip {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let State::Member(member) = &mut self.0 else {
                return Ok(0);
            };
            let bytes = member.read(out)?;
            if bytes > 0 || out.is_empty() {
                return Ok(bytes);
            }
            let State::Member(member) = std::mem::replace(&mut self.0, State::Over) else {
                return Ok(0);
            };
            let mut behind = member.into_inner();
            if behind.begins_with_gzip()? {
                self.0 = State::Member(GzDecoder::new(behind));
            } else {
                expect_zeros(&mut behind)?;
            }
        }
    }
}

fn expect_zeros(behind: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let bytes = behind.fill_buf()?;
        let len = bytes.len();
        if len == 0 {
            return Ok(());
        }
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "there is something behind the packed data that is neither gzip nor zeros",
            ));
        }
        behind.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    /// What is read, and the error behind it.
    fn read(name: &str, bytes: &[u8]) -> (String, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut text = Vec::new();
        let read = open(&path, &ProgressBar::hidden())
            .and_then(|mut reader| Ok(reader.read_to_end(&mut text)?));
        let text = String::from_utf8(text).unwrap();
        (text, read.err().map(|error| error.to_string()))
    }

    #[test]
    fn gzip_is_told_by_its_first_bytes_and_many_members_are_read() {
        let two = [packed("a\n"), packed("1\n")].concat();
        for (bytes, expected) in [
            (&two[..], "a\n1\n"),
            (b"a\n", "a\n"),
            (b"a", "a"),
            (b"", ""),
            (&packed(""), ""),
        ] {
            assert_eq!(read("file", bytes), (expected.to_owned(), None));
        }
    }

    /// As bgzip writes them, and logs that are appended to.
    #[test]
    fn however_many_members_there_are_they_cost_their_bytes() {
        let members = 100_000;
        let packed = [packed("a\n").repeat(members), vec![0; 10]].concat();
        let (text, error) = read("f.gz", &packed);
        assert_eq!((text.len(), error), (2 * members, None));
        assert!(text.lines().all(|line| line == "a"));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        assert_eq!(read("f", b"\xef\xbb\xbfa").0, "a");
        assert_eq!(read("f", &packed("\u{feff}{}\n")).0, "{}\n");
        assert_eq!(read("f", b"\xef\xbb\xbf").0, "");
        // Only one, and only there.
        assert_eq!(
            read("f", "\u{feff}\u{feff}a\u{feff}".as_bytes()).0,
            "\u{feff}a\u{feff}"
        );
    }

    #[test]
    fn zeros_behind_gzip_are_padding_and_anything_else_is_refused_behind_what_was_read() {
        let padded = [packed("a\n"), vec![0; 100_000]].concat();
        assert_eq!(read("f.gz", &padded), ("a\n".to_owned(), None));
        for garbage in [&b"garbage"[..], b"\0\0x", b"\x1f", b"\x1f\x8b"] {
            let (text, error) = read("f.gz", &[&packed("a\n"), garbage].concat());
            assert_eq!(text, "a\n");
            assert!(error.is_some(), "{garbage:?}");
        }
        let (_, error) = read("f.gz", &[&packed("a\n")[..], b"x"].concat());
        assert!(error.unwrap().contains("behind the packed data"));
        let whole = packed("a\n");
        assert!(
            read("f.gz", &whole[..whole.len() - 1]).1.is_some(),
            "cut short"
        );
        assert!(read("f.gz", b"a,b\n").1.is_some(), "not packed");
    }
}
