//! Keys and values between people and bytes: arguments in, text out.
//!
//! An argument is text, `@FILE` or `-`; with `--hex`, text is hexadecimal both ways, while files and stdin are bytes
//! as they are. What does not show in print is escaped: see [`escape`].

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use storage_protocol::KeyRange;

use crate::content::Content;
use crate::escape;
use crate::failure::usage;
use crate::stdin;

/// How keys and values are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Hexadecimal.
    pub(crate) hex: bool,
}

impl Form {
    /// For the arguments of one command line.
    pub(crate) fn arguments(self) -> Arguments {
        Arguments {
            hex: self.hex,
            stdin_taken: false,
        }
    }

    /// A key or value as text on one line, alone or before a tab.
    pub(crate) fn show(self, bytes: &[u8]) -> Cow<'_, str> {
        match self.hex {
            true => hex::encode(bytes).into(),
            false => escape::text(bytes),
        }
    }

    /// A key as one field among others on a line, with a `=` behind it or a space.
    pub(crate) fn key_field(self, bytes: &[u8]) -> Cow<'_, str> {
        match self.hex {
            true => hex::encode(bytes).into(),
            false => escape::field(bytes, true),
        }
    }

    /// A value as one field among others on a line.
    pub(crate) fn value_field(self, bytes: &[u8]) -> Cow<'_, str> {
        match self.hex {
            true => hex::encode(bytes).into(),
            false => escape::field(bytes, false),
        }
    }
}

/// Reads arguments into bytes; stdin serves one of them.
#[derive(Debug)]
pub(crate) struct Arguments {
    hex: bool,
    stdin_taken: bool,
}

impl Arguments {
    /// The bytes that an argument means; `name` is what errors call it.
    pub(crate) fn bytes(&mut self, name: &str, argument: &OsStr) -> anyhow::Result<Bytes> {
        let bytes = argument.as_encoded_bytes();
        if bytes == b"-" {
            self.take_stdin(name)?;
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|error| usage(format!("{name}: stdin cannot be read: {error}")))?;
            return Ok(bytes.into());
        }
        let text = match bytes.strip_prefix(b"@") {
            Some(literal) if literal.starts_with(b"@") => literal,
            Some(_) => {
                let file = behind_the_at(argument);
                let bytes = std::fs::read(file).map_err(|error| {
                    let file = Path::new(file).display();
                    usage(format!("{name}: {file} cannot be read: {error}"))
                })?;
                return Ok(bytes.into());
            }
            None => bytes,
        };
        if self.hex {
            let bytes = hex::decode(text).map_err(|error| {
                let text = escape::text(text);
                usage(format!("{name}: \"{text}\" is not hexadecimal: {error}"))
            })?;
            return Ok(bytes.into());
        }
        Ok(Bytes::copy_from_slice(text))
    }

    /// What an argument means that may be of any size: a file is not read to its end.
    pub(crate) fn content(&mut self, name: &str, argument: &OsStr) -> anyhow::Result<Content> {
        let bytes = argument.as_encoded_bytes();
        if bytes == b"-" {
            self.take_stdin(name)?;
            return Content::of_stdin(name);
        }
        match bytes.starts_with(b"@") && !bytes.starts_with(b"@@") {
            true => Content::of_file(name, Path::new(behind_the_at(argument))),
            false => Ok(Content::Whole(self.bytes(name, argument)?)),
        }
    }

    fn take_stdin(&mut self, name: &str) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.stdin_taken, true) {
            return Err(usage(format!("{name}: - (stdin) can stand only once")));
        }
        stdin::take(name)
    }

    /// The range of `--prefix`: every key where it is not given.
    pub(crate) fn prefix(&mut self, prefix: Option<&OsStr>) -> anyhow::Result<KeyRange> {
        match prefix {
            None => Ok(KeyRange::all()),
            Some(prefix) => Ok(KeyRange::prefix(self.bytes("--prefix", prefix)?)),
        }
    }
}

/// The name of a file in an argument that begins with `@`, whatever bytes it has.
#[cfg(unix)]
fn behind_the_at(argument: &OsStr) -> &OsStr {
    use std::os::unix::ffi::OsStrExt;
    OsStr::from_bytes(argument.as_bytes().get(1..).unwrap_or_default())
}

#[cfg(not(unix))]
fn behind_the_at(argument: &OsStr) -> &OsStr {
    OsStr::new(argument.to_str().map_or("", |text| &text[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Form = Form { hex: false };
    const HEX: Form = Form { hex: true };

    fn read(form: Form, argument: &str) -> anyhow::Result<Bytes> {
        form.arguments().bytes("KEY", OsStr::new(argument))
    }

    #[test]
    fn an_argument_is_text_hex_or_a_file() {
        assert_eq!(read(TEXT, "näme").unwrap(), "näme".as_bytes());
        assert_eq!(read(TEXT, "@@home").unwrap(), "@home");
        assert_eq!(read(TEXT, "@@").unwrap(), "@");
        assert_eq!(read(TEXT, "").unwrap(), "");
        assert_eq!(read(HEX, "00fF").unwrap(), &[0, 255][..]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        std::fs::write(&file, [0, 159, b'\n']).unwrap();
        let at_file = format!("@{}", file.display());
        for form in [TEXT, HEX] {
            assert_eq!(read(form, &at_file).unwrap(), &[0, 159, b'\n'][..]);
        }
    }

    #[test]
    fn errors_name_the_argument_and_what_is_wrong() {
        let error = |form, argument| read(form, argument).unwrap_err().to_string();
        assert!(error(HEX, "0g").contains("KEY: \"0g\" is not hexadecimal"));
        assert!(error(HEX, "abc").contains("not hexadecimal"));
        assert!(error(TEXT, "@/no/such").contains("KEY: /no/such cannot be read"));
        let mut arguments = TEXT.arguments();
        arguments.stdin_taken = true;
        let error = arguments
            .bytes("VALUE", OsStr::new("-"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("VALUE: - (stdin) can stand only once"),
            "{error}"
        );
    }

    #[test]
    fn what_is_shown_is_escaped_text_or_hex() {
        assert_eq!(TEXT.show(b"a\tb\\"), "a\\tb\\\\");
        assert_eq!(TEXT.key_field(b"a=b"), "\"a=b\"");
        assert_eq!(TEXT.value_field(b"a=b"), "a=b");
        assert_eq!(HEX.show(b"a\n"), "610a");
        assert_eq!(HEX.key_field(b"a ="), "61203d");
    }

    #[cfg(unix)]
    #[test]
    fn an_argument_and_a_file_name_may_be_no_utf_8() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(OsStr::from_bytes(b"\xff"));
        std::fs::write(&file, "x").unwrap();
        let mut at_file = std::ffi::OsString::from("@");
        at_file.push(&file);
        let read = |argument: &OsStr| TEXT.arguments().bytes("KEY", argument).unwrap();
        assert_eq!(read(&at_file), "x");
        assert_eq!(read(OsStr::from_bytes(b"\xff\xfe")), &[0xff, 0xfe][..]);
    }
}
