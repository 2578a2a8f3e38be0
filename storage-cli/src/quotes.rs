//! A reader of CSV that lets through what is quoted by the rules of RFC 4180, and stops at what is not.
//!
//! The csv crate reads malformed quotes somehow: a stray one can swallow all rows behind it, or vanish. Nothing it then
//! returns can be trusted, so it never gets to see them. Invariant: the bytes in front of the first fault go through
//! unchanged; the fault is an error that has a [`Malformed`] inside, then and for ever.

use std::fmt;
use std::io::{self, BufRead, Read};

/// What is wrong with the quotes, and where.
#[derive(Clone, Debug)]
pub(crate) struct Malformed {
    pub(crate) line: u64,
    what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl std::error::Error for Malformed {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In front of a field.
    Start,
    /// In a field without quotes.
    Plain,
    /// In a field with quotes, which was opened in this line.
    Quoted { line: u64 },
    /// Behind a quote in such a field: it ends, or a quote is doubled.
    Closing { line: u64 },
}

/// See the module.
pub(crate) struct Quotes<R> {
    inner: R,
    check: QuoteCheck,
    malformed: Option<Malformed>,
}

impl<R: BufRead> Quotes<R> {
    pub(crate) fn new(inner: R) -> Self {
        let check = QuoteCheck {
            state: State::Start,
            line: 1,
            after_cr: false,
        };
        Self {
            inner,
            check,
            malformed: None,
        }
    }
}

struct QuoteCheck {
    state: State,
    /// Of the next byte.
    line: u64,
    after_cr: bool,
}

impl QuoteCheck {
    /// Checks the next byte.
    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        let wrong = |what| {
            let line = self.line;
            Err(Malformed { line, what })
        };
        let next = match (self.state, byte) {
            (State::Quoted { line }, b'"') => State::Closing { line },
            (State::Closing { line }, b'"') => State::Quoted { line },
            (State::Quoted { line }, _) => State::Quoted { line },
            (State::Start, b'"') => State::Quoted { line: self.line },
            (_, b',' | b'\n' | b'\r') => State::Start,
            (State::Plain, b'"') => {
                return wrong(
                    "a quote (\") stands within a field that does not begin with one (such a field is quoted as a whole, and \
                     quotes in it are doubled)",
                );
            }
            (State::Closing { .. }, _) => {
                return wrong(
                    "there is text between the closing quote of a field and the next comma (a quote within a quoted field \
                     is doubled)",
                );
            }
            (State::Start | State::Plain, _) => State::Plain,
        };
        self.state = next;
        self.line += u64::from(byte == b'\r' || byte == b'\n' && !self.after_cr);
        self.after_cr = byte == b'\r';
        Ok(())
    }

    fn end(&self) -> Result<(), Malformed> {
        match self.state {
            State::Quoted { line } => {
                let what = "a quoted field begins here, and its closing quote never comes";
                Err(Malformed { line, what })
            }
            State::Start | State::Plain | State::Closing { .. } => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Quotes<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Some(malformed) = &self.malformed {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                malformed.clone(),
            ));
        }
        let bytes = self.inner.fill_buf()?;
        let mut checked = match bytes.is_empty() {
            true => self.check.end(),
            false => Ok(()),
        };
        let mut good = 0;
        for (&byte, place) in bytes.iter().zip(out) {
            checked = self.check.step(byte);
            if checked.is_err() {
                break;
            }
            *place = byte;
            good += 1;
        }
        self.inner.consume(good);
        self.malformed = checked.err();
        match &self.malformed {
            Some(malformed) if good == 0 => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                malformed.clone(),
            )),
            _ => Ok(good),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes through, and the line of the fault.
    fn read(text: &str, at_once: usize) -> (String, Option<u64>) {
        let reader = io::BufReader::with_capacity(at_once, text.as_bytes());
        let mut through = Vec::new();
        let read = Quotes::new(reader).read_to_end(&mut through);
        let line = read.err().map(|error| {
            let malformed = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<Malformed>());
            malformed.unwrap().line
        });
        (String::from_utf8(through).unwrap(), line)
    }

    #[test]
    fn what_is_well_quoted_goes_through() {
        for text in [
            "",
            "a,b\n1,2\n",
            "\"a\",\"b\"\r\n\"1\n\"\"2\"\"\",\r\n",
            "\"\",\"\"\"\"\n,,\n",
            "a\rb\r\"c\"",
            "it's,'fine'\n",
        ] {
            for at_once in [1, 2, 4_096] {
                assert_eq!(read(text, at_once), (text.to_owned(), None));
            }
        }
    }

    #[test]
    fn what_is_not_stops_at_its_line_with_all_before_it() {
        for (text, through, line) in [
            ("a,b\n1,2\n3,x\"4\n5,6\n", "a,b\n1,2\n3,x", 3),
            ("a,b,c\"\n1,2,3\n", "a,b,c", 1),
            ("n\n\"12 inch\" screen\n", "n\n\"12 inch\"", 2),
            ("n\r\n1\r\n\"2\"x\r\n", "n\r\n1\r\n\"2\"", 3),
            ("a,\"b\n1,2\n3,4\n", "a,\"b\n1,2\n3,4\n", 1),
            ("a\n1\n\"", "a\n1\n\"", 3),
            ("a\r1\r \"x\"", "a\r1\r ", 3),
        ] {
            for at_once in [1, 2, 4_096] {
                assert_eq!(
                    read(text, at_once),
                    (through.to_owned(), Some(line)),
                    "{text:?}"
                );
            }
        }
    }
}
