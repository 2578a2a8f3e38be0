//! Request targets with characters that no URI has, as some old clients send them (`?project="x"`): percent-encoded on their
//! way to the parser, which would refuse the request.
//!
//! Only the target of a request line is changed. To know where the next request begins, heads are followed as far as
//! `Content-Length`. Where that does not tell (a body in chunks, an upgrade, a head that is odd in any way), everything
//! behind is passed on as it is: a request is refused then that could have been understood, and never is a body changed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read of the stream at once.
const READ_BYTES: usize = 8 << 10;
/// The longest line of a head that is followed; the parser refuses a head of this length.
const LINE_BYTES_MAX: usize = 16 << 10;

/// A stream whose request targets are encoded, or one that is passed on as it is.
#[derive(Debug)]
pub(crate) struct Targets<S> {
    inner: S,
    /// `None`: it is passed on as it is.
    place: Option<Place>,
    /// Encoded, and not taken yet.
    ready: BytesMut,
}

/// Where in the requests of a connection a byte is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In a request line, behind so many spaces.
    Line { spaces: usize, bytes: usize },
    /// In the lines of a head behind that.
    Head { line: Vec<u8>, length: Option<u64> },
    /// In a body with so many bytes to come.
    Body(u64),
}

/// Whether a URI has no such byte, or the parser takes none.
fn is_encoded(byte: u8) -> bool {
    byte >= 0x7f || b"\"<>\\^`{|}".contains(&byte)
}

const REQUEST_LINE: Place = Place::Line {
    spaces: 0,
    bytes: 0,
};

impl Place {
    /// What comes behind this byte; `None`: it is not known where requests begin.
    fn after(self, byte: u8) -> Option<Self> {
        match self {
            Self::Line { bytes, .. } if bytes > LINE_BYTES_MAX => None,
            // Empty lines before a request are allowed.
            Self::Line { bytes: 0, .. } if byte == b'\r' || byte == b'\n' => Some(REQUEST_LINE),
            Self::Line { .. } if byte == b'\n' => Some(Self::Head {
                line: Vec::new(),
                length: None,
            }),
            Self::Line { spaces, bytes } => Some(Self::Line {
                spaces: spaces + usize::from(byte == b' '),
                bytes: bytes + 1,
            }),
            Self::Head { line, length } if byte == b'\n' => Self::behind_line(&line, length),
            Self::Head { line, .. } if line.len() > LINE_BYTES_MAX => None,
            Self::Head { mut line, length } => {
                line.push(byte);
                Some(Self::Head { line, length })
            }
            Self::Body(left) => Some(Self::body(left.saturating_sub(1))),
        }
    }

    fn body(left: u64) -> Self {
        match left {
            0 => REQUEST_LINE,
            left => Self::Body(left),
        }
    }

    /// What comes behind a line of the head.
    fn behind_line(line: &[u8], length: Option<u64>) -> Option<Self> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Some(Self::body(length.unwrap_or(0)));
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        // A name with a space is odd: a continued line, or one that others may read in another way.
        let is_odd = name.is_empty() || name.iter().any(|byte| !byte.is_ascii_graphic());
        if is_odd || is("transfer-encoding") || is("upgrade") || is("expect") {
            return None;
        }
        let length = match is("content-length") {
            true if length.is_some() => return None,
            true => Some(number(value.trim_ascii())?),
            false => length,
        };
        Some(Self::Head {
            line: Vec::new(),
            length,
        })
    }
}

/// Digits alone.
fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text)
        .ok()
        .filter(|_| is_number)?
        .parse()
        .ok()
}

impl<S> Targets<S> {
    /// `encode`: whether targets are to be encoded at all.
    pub(crate) fn new(inner: S, encode: bool) -> Self {
        Self {
            inner,
            place: encode.then_some(REQUEST_LINE),
            ready: BytesMut::new(),
        }
    }

    /// The stream, and what was read of it and not taken.
    pub(crate) fn into_parts(self) -> (S, Bytes) {
        (self.inner, self.ready.freeze())
    }

    fn encode(&mut self, mut read: &[u8]) {
        while let Some((byte, rest)) = read.split_first() {
            let Some(place) = self.place.take() else {
                self.ready.put_slice(read);
                return;
            };
            if let Place::Body(left) = place {
                let part = read.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.ready.put_slice(&read[..part]);
                self.place = Some(Place::body(left - part as u64));
                read = &read[part..];
                continue;
            }
            match place {
                Place::Line { spaces: 1, .. } if is_encoded(*byte) => {
                    self.ready.put_slice(format!("%{byte:02X}").as_bytes());
                }
                _ => self.ready.put_u8(*byte),
            }
            self.place = place.after(*byte);
            read = rest;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Targets<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ready.is_empty() {
            if self.place.is_none() {
                return Pin::new(&mut self.inner).poll_read(cx, buf);
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
            self.encode(read.filled());
        }
        let part = self.ready.len().min(buf.remaining());
        buf.put_slice(&self.ready[..part]);
        self.ready.advance(part);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Targets<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// What is read of a stream that arrives in pieces of this size.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn encoded(bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut targets = Targets::new((), true);
    let mut all = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        targets.encode(piece);
        all.extend(targets.ready.split());
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn text(bytes: &str) -> String {
        let whole = encoded(bytes.as_bytes(), usize::MAX);
        for piece in 1..9 {
            assert_eq!(encoded(bytes.as_bytes(), piece), whole, "{piece}");
        }
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn the_targets_of_all_requests_are_encoded_and_nothing_else() {
        let two = "GET /d?project=\"x\"&q={[ä]} HTTP/1.1\r\nHost: \"a\"\r\n\r\n\
                   POST /a?b=\"c\" HTTP/1.1\r\ncontent-LENGTH:  7 \r\n\r\n\"G / \"\r\n\
                   GET /\"\" HTTP/1.1\r\n\r\n\r\nGET /^ HTTP/1.1\n\nGET /| HTTP/1.1\r\n\r\n";
        let encoded = "GET /d?project=%22x%22&q=%7B[%C3%A4]%7D HTTP/1.1\r\nHost: \"a\"\r\n\r\n\
                       POST /a?b=%22c%22 HTTP/1.1\r\ncontent-LENGTH:  7 \r\n\r\n\"G / \"\r\n\
                       GET /%22%22 HTTP/1.1\r\n\r\n\r\nGET /%5E HTTP/1.1\n\nGET /%7C HTTP/1.1\r\n\r\n";
        assert_eq!(text(two), encoded);
    }

    #[test]
    fn where_the_next_request_begins_is_never_guessed() {
        for head in [
            "Transfer-Encoding: chunked",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: +3",
            "Content-Length: 3, 3",
            "Content-Length:",
            "Content-Length : 3",
            "A: b\r\n c",
            "no colon",
            "Upgrade: websocket",
            "Expect: 100-continue",
        ] {
            let request = format!("GET /\" HTTP/1.1\r\n{head}\r\n\r\nGET /\" HTTP/1.1\r\n\r\n");
            let expected = request.replacen("/\"", "/%22", 1);
            assert_eq!(text(&request), expected, "{head}");
        }
        let long = format!("GET /{}\" HTTP/1.1\r\n\r\n", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(text(&long), long);
    }

    #[tokio::test]
    async fn a_reader_with_little_room_gets_all_of_it_and_others_get_it_as_it_is() {
        let request = &b"GET /\"\"\"\" HTTP/1.1\r\n\r\n"[..];
        let mut targets = Targets::new(request, true);
        let mut read = [0; 6];
        targets.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"GET /%");
        let (_, rest) = targets.into_parts();
        assert_eq!(&rest[..], b"22%22%22%22 HTTP/1.1\r\n\r\n");
        let mut as_it_is = Vec::new();
        let mut targets = Targets::new(request, false);
        targets.read_to_end(&mut as_it_is).await.unwrap();
        assert_eq!(as_it_is, request);
    }

    proptest! {
        /// Whatever it is, and however it arrives: what is changed is undone by decoding.
        #[test]
        fn any_bytes_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..300), piece in 1_usize..50) {
            let whole = encoded(&bytes, usize::MAX);
            prop_assert_eq!(&encoded(&bytes, piece), &whole);
            let changed = bytes.iter().filter(|byte| is_encoded(**byte)).count();
            prop_assert!(whole.len() >= bytes.len() && whole.len() <= bytes.len() + 2 * changed);
        }
    }
}
