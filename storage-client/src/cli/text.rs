//! Keys and values between people and bytes: arguments in, text out.
//!
//! An argument is text, `@FILE` or `-`; with `--hex`, text is hexadecimal both ways, while files and stdin are bytes
//! as they are. Text that cannot be printed as it is is escaped as a whole, in the way of Rust's byte strings.

use std::borrow::Cow;
use std::io::Read;

use bytes::Bytes;
use storage_protocol::KeyRange;

use super::failure::usage;

/// How keys and values are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Hexadecimal.
    pub(super) hex: bool,
}

impl Form {
    /// For the arguments of one command line.
    pub(super) fn arguments(self) -> Arguments {
        Arguments {
            hex: self.hex,
            stdin_taken: false,
        }
    }

    /// A key or value as text on one line.
    pub(super) fn show(self, bytes: &[u8]) -> Cow<'_, str> {
        if self.hex {
            return hex::encode(bytes).into();
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.chars().any(char::is_control) => text.into(),
            _ => bytes.escape_ascii().to_string().into(),
        }
    }
}

/// Reads arguments into bytes; stdin serves one of them.
#[derive(Debug)]
pub(super) struct Arguments {
    hex: bool,
    stdin_taken: bool,
}

impl Arguments {
    /// The bytes that an argument means; `name` is what errors call it.
    pub(super) fn bytes(&mut self, name: &str, argument: &str) -> anyhow::Result<Bytes> {
        if argument == "-" {
            if std::mem::replace(&mut self.stdin_taken, true) {
                return Err(usage(format!("{name}: - (stdin) can stand only once")));
            }
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|error| usage(format!("{name}: stdin cannot be read: {error}")))?;
            return Ok(bytes.into());
        }
        let text = match argument.strip_prefix('@') {
            Some(literal) if literal.starts_with('@') => literal,
            Some(file) => {
                let bytes = std::fs::read(file)
                    .map_err(|error| usage(format!("{name}: {file} cannot be read: {error}")))?;
                return Ok(bytes.into());
            }
            None => argument,
        };
        if self.hex {
            let bytes = hex::decode(text)
                .map_err(|error| usage(format!("{name}: {text:?} is not hexadecimal: {error}")))?;
            return Ok(bytes.into());
        }
        Ok(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// The range of `--prefix`: every key where it is not given.
    pub(super) fn prefix(&mut self, prefix: Option<&str>) -> anyhow::Result<KeyRange> {
        match prefix {
            None => Ok(KeyRange::all()),
            Some(prefix) => Ok(KeyRange::prefix(self.bytes("--prefix", prefix)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Form = Form { hex: false };
    const HEX: Form = Form { hex: true };

    fn read(form: Form, argument: &str) -> anyhow::Result<Bytes> {
        form.arguments().bytes("KEY", argument)
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
        let error = arguments.bytes("VALUE", "-").unwrap_err().to_string();
        assert!(
            error.contains("VALUE: - (stdin) can stand only once"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_printable_text_is_escaped() {
        assert_eq!(
            TEXT.show("grün {\"a\":\"\\n\"}".as_bytes()),
            "grün {\"a\":\"\\n\"}"
        );
        assert_eq!(TEXT.show(b"a\tb\n"), "a\\tb\\n");
        assert_eq!(TEXT.show(&[0, 255, b'\\']), "\\x00\\xff\\\\");
        assert_eq!(TEXT.show("\u{85}".as_bytes()), "\\xc2\\x85");
        assert_eq!(HEX.show(b"a\n"), "610a");
    }
}
