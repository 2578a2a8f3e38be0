//! The rows of a file to import, one by one.
//!
//! Blocking, for a thread of its own; never more than a row in memory. Each error names the file and the line.
//! Invariant: rows come out in the file's order.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use bytes::Bytes;
use clap::ValueEnum;
use csv::StringRecord;
use flate2::bufread::MultiGzDecoder;
use indicatif::ProgressBar;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use storage_protocol::{Key, Lifetime, Operation};

use super::failure::usage;
use super::json::{self, Item};
use super::template::Template;

/// No line of JSON is longer: a value of the largest size that a server may allow, with room for its escapes.
const LINE_BYTES_MAX: u64 = 2 << 30;

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A header line, then a row per record; each becomes a JSON object of strings.
    Csv,
    /// A JSON object per line.
    Jsonl,
}

impl Format {
    /// By the file's name, or for stdin by elimination: CSV has to be said.
    pub(super) fn of(file: &str) -> anyhow::Result<Self> {
        let name = file.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        match Path::new(name)
            .extension()
            .and_then(|extension| extension.to_str())
        {
            Some("csv") => Ok(Self::Csv),
            Some("jsonl" | "ndjson" | "json") => Ok(Self::Jsonl),
            _ if file == "-" => Ok(Self::Jsonl),
            _ => Err(usage(format!(
                "{file}: the name does not tell the format; give --format csv or --format jsonl"
            ))),
        }
    }
}

/// Opens a file (`-`: stdin), and unpacks it where its name or its first bytes say gzip. `bar` follows the bytes read.
pub(super) fn open(file: &str, bar: &ProgressBar) -> anyhow::Result<Box<dyn BufRead + Send>> {
    let unreadable = |error| unreadable(file, &error);
    let mut raw: Box<dyn Read + Send> = if file == "-" {
        Box::new(io::stdin())
    } else {
        let opened = File::open(file).map_err(unreadable)?;
        Box::new(bar.wrap_read(opened))
    };
    let mut head = Vec::new();
    raw.by_ref()
        .take(2)
        .read_to_end(&mut head)
        .map_err(unreadable)?;
    let gzip = head == [0x1f, 0x8b] || file.to_ascii_lowercase().ends_with(".gz");
    let whole = BufReader::with_capacity(64 * 1024, Cursor::new(head).chain(raw));
    Ok(match gzip {
        true => Box::new(BufReader::with_capacity(
            64 * 1024,
            MultiGzDecoder::new(whole),
        )),
        false => Box::new(whole),
    })
}

fn unreadable(file: &str, error: &io::Error) -> anyhow::Error {
    usage(format!("{file} cannot be read: {error}"))
}

/// The csv crate takes a record to end at its CR, and counts the LF behind it into the next: in a file of CRLF lines
/// its numbers are one behind.
fn line_lag(reader: &mut dyn BufRead) -> io::Result<u64> {
    let head = reader.fill_buf()?;
    let first = head.split(|&byte| byte == b'\n').next();
    let ends_in_cr = first.is_some_and(|line| line.ends_with(b"\r"));
    Ok(u64::from(ends_in_cr))
}

/// One row as an operation.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) operation: Operation,
}

/// Reads rows. The first error is the last item.
pub(super) enum Rows {
    Csv {
        file: String,
        /// What the csv crate's line numbers fall short by; see [`line_lag`].
        lag: u64,
        reader: csv::Reader<Box<dyn BufRead + Send>>,
        columns: Vec<String>,
        template: Template,
        record: StringRecord,
    },
    Jsonl {
        file: String,
        reader: Box<dyn BufRead + Send>,
        template: Option<Template>,
        line: u64,
    },
}

impl Rows {
    /// Reads the header too, so that a wrong template fails before anything is written.
    pub(super) fn new(
        file: &str,
        mut reader: Box<dyn BufRead + Send>,
        format: Format,
        template: Option<Template>,
    ) -> anyhow::Result<Self> {
        let file = file.to_owned();
        let template = match (format, template) {
            (Format::Jsonl, template) => {
                let line = 0;
                return Ok(Self::Jsonl {
                    file,
                    reader,
                    template,
                    line,
                });
            }
            (Format::Csv, Some(template)) => template,
            (Format::Csv, None) => {
                return Err(usage(format!(
                    "{file}: rows of CSV have no key; give a template, such as --key 'weather/{{origin}}/{{time_hour}}'"
                )));
            }
        };
        let lag = line_lag(&mut reader).map_err(|error| unreadable(&file, &error))?;
        let mut reader = csv::Reader::from_reader(reader);
        let header = reader
            .headers()
            .map_err(|error| explain_csv(&file, 0, &error))?;
        let columns: Vec<String> = header.iter().map(str::to_owned).collect();
        let mut seen = HashSet::new();
        if let Some(twice) = columns.iter().find(|name| !seen.insert(*name)) {
            return Err(usage(format!(
                "{file}:1: the column {twice:?} stands twice"
            )));
        }
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        template.check_columns(&names)?;
        Ok(Self::Csv {
            file,
            lag,
            reader,
            columns,
            template,
            record: StringRecord::new(),
        })
    }

    pub(super) fn file(&self) -> &str {
        match self {
            Self::Csv { file, .. } | Self::Jsonl { file, .. } => file,
        }
    }

    pub(super) fn next(&mut self) -> anyhow::Result<Option<Row>> {
        match self {
            Self::Csv {
                file,
                lag,
                reader,
                columns,
                template,
                record,
            } => {
                let read = reader.read_record(record);
                if !read.map_err(|error| explain_csv(file, *lag, &error))? {
                    return Ok(None);
                }
                let line = record.position().map_or(0, csv::Position::line) + *lag;
                let operation = csv_operation(columns, template, record)
                    .map_err(|what| usage(format!("{file}:{line}: {what}")))?;
                Ok(Some(Row { line, operation }))
            }
            Self::Jsonl {
                file,
                reader,
                template,
                line,
            } => loop {
                *line += 1;
                let wrong = |what: String| usage(format!("{file}:{line}: {what}"));
                let Some(text) = read_line(reader).map_err(wrong)? else {
                    return Ok(None);
                };
                if text.trim().is_empty() {
                    continue;
                }
                let operation = match template {
                    None => item_operation(&text),
                    Some(template) => json_operation(template, text),
                };
                let operation = operation.map_err(wrong)?;
                let line = *line;
                return Ok(Some(Row { line, operation }));
            },
        }
    }
}

fn csv_operation(
    columns: &[String],
    template: &Template,
    record: &StringRecord,
) -> Result<Operation, String> {
    let key = template.fill(|name, key| {
        let place = columns.iter().position(|column| column == name);
        let value = place.and_then(|place| record.get(place));
        key.push_str(value.ok_or_else(|| format!("the column {name:?} is missing"))?);
        Ok::<_, String>(())
    })?;
    let row = CsvRow { columns, record };
    let value = serde_json::to_vec(&row).map_err(|error| error.to_string())?;
    Ok(put(key, value.into()))
}

/// A JSON object of strings, in the order of the columns.
struct CsvRow<'a> {
    columns: &'a [String],
    record: &'a StringRecord,
}

impl Serialize for CsvRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.columns.iter().zip(self.record))
    }
}

/// A line as `commit` takes them, without checks: those belong to one commit, and where a batch ends is not the
/// file's business.
fn item_operation(line: &str) -> Result<Operation, String> {
    match json::parse(line)? {
        Item::Operation(operation) => Ok(operation),
        Item::Check(_) => Err("a \"check\" can stand in `commit`, not in `import`".into()),
    }
}

/// The line itself is the value; its fields make the key.
fn json_operation(template: &Template, line: String) -> Result<Operation, String> {
    let fields: BTreeMap<String, &RawValue> =
        serde_json::from_str(&line).map_err(|error| json::explain(&error))?;
    let key = template.fill(|name, key| {
        let Some(value) = fields.get(name) else {
            let there: Vec<_> = fields.keys().map(String::as_str).collect();
            let there = there.join(", ");
            return Err(format!("the row has no field {name:?}; it has: {there}"));
        };
        match serde_json::from_str(value.get()).map_err(|error| json::explain(&error))? {
            serde_json::Value::String(text) => key.push_str(&text),
            serde_json::Value::Number(_) | serde_json::Value::Bool(_) => key.push_str(value.get()),
            serde_json::Value::Null
            | serde_json::Value::Array(_)
            | serde_json::Value::Object(_) => {
                return Err(format!(
                    "the field {name:?} is no string, number or boolean, so it cannot be in a key"
                ));
            }
        }
        Ok(())
    })?;
    Ok(put(key, line.into()))
}

fn put(key: Key, value: Bytes) -> Operation {
    let lifetime = Lifetime::Forever;
    Operation::Put {
        key,
        value,
        lifetime,
    }
}

/// A line without its end; `None` at the end of the file.
fn read_line(reader: &mut dyn BufRead) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    let read = reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 == LINE_BYTES_MAX {
        return Err(format!("the line is longer than {LINE_BYTES_MAX} bytes"));
    }
    if line.ends_with(b"\n") {
        line.pop();
        if line.ends_with(b"\r") {
            line.pop();
        }
    }
    String::from_utf8(line)
        .map(Some)
        .map_err(|error| format!("no UTF-8 at byte {}", error.utf8_error().valid_up_to() + 1))
}

/// The csv crate's errors, with the line in front.
fn explain_csv(file: &str, lag: u64, error: &csv::Error) -> anyhow::Error {
    let line = error.position().map_or(0, csv::Position::line) + lag;
    let what = match error.kind() {
        csv::ErrorKind::Io(error) => return unreadable(file, error),
        csv::ErrorKind::Utf8 { err, .. } => {
            format!("column {} is no UTF-8", err.field() + 1)
        }
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("the row has {len} columns, the header {expected_len}"),
        _ => error.to_string(),
    };
    usage(format!("{file}:{line}: {what}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn rows(text: &str, format: Format, template: Option<&str>) -> anyhow::Result<Rows> {
        let reader = Box::new(Cursor::new(text.as_bytes().to_vec()));
        let template = template.map(|template| template.parse().unwrap());
        Rows::new("f", reader, format, template)
    }

    fn all(mut rows: Rows) -> anyhow::Result<Vec<(u64, String, String)>> {
        let mut all = Vec::new();
        while let Some(Row { line, operation }) = rows.next()? {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            all.push((line, text(operation.key()), text(operation.value())));
        }
        Ok(all)
    }

    fn csv(text: &str, template: &str) -> anyhow::Result<Vec<(u64, String, String)>> {
        all(rows(text, Format::Csv, Some(template))?)
    }

    fn jsonl(text: &str, template: Option<&str>) -> anyhow::Result<Vec<(u64, String, String)>> {
        all(rows(text, Format::Jsonl, template)?)
    }

    fn row(line: u64, key: &str, value: &str) -> (u64, String, String) {
        (line, key.to_owned(), value.to_owned())
    }

    #[test]
    fn a_csv_row_is_an_object_of_strings_in_column_order() {
        let text = "z,a\n1,\"x\"\"\ny\"\n2,\n";
        let expected = [
            row(2, "k/1", r#"{"z":"1","a":"x\"\ny"}"#),
            row(4, "k/2", r#"{"z":"2","a":""}"#),
        ];
        assert_eq!(csv(text, "k/{z}").unwrap(), expected);
        let crlf = "\u{feff}z,a\r\n1,\"x\"\"\ny\"\r\n2,\r\n";
        assert_eq!(csv(crlf, "k/{z}").unwrap(), expected);
        assert_eq!(csv("\u{feff}a\n1", "{a}").unwrap()[0].1, "1");
    }

    #[test]
    fn a_line_of_json_is_kept_as_it_is() {
        let text = "{\"n\": 1.10, \"s\":\"ü\\n\", \"b\":true}\r\n\n{\"n\":18446744073709551616,\"s\":\"\",\"b\":false}";
        let expected = [
            row(
                1,
                "1.10/ü\n/true",
                "{\"n\": 1.10, \"s\":\"ü\\n\", \"b\":true}",
            ),
            row(
                3,
                "18446744073709551616//false",
                "{\"n\":18446744073709551616,\"s\":\"\",\"b\":false}",
            ),
        ];
        assert_eq!(jsonl(text, Some("{n}/{s}/{b}")).unwrap(), expected);
        let text = "{\"put\":{\"key\":\"a\",\"value\":\"1\"}}\n{\"remove\":{\"key\":\"b\"}}\n";
        assert_eq!(
            jsonl(text, None).unwrap(),
            [row(1, "a", "1"), row(2, "b", "")]
        );
    }

    #[test]
    fn a_bad_row_is_named_by_file_and_line() {
        let template = Some("{a}");
        for (result, why) in [
            (
                csv("a,b\n1,2\n3\n", "{a}"),
                "f:3: the row has 1 columns, the header 2",
            ),
            (
                csv("a,a\n1,2\n", "{a}"),
                "f:1: the column \"a\" stands twice",
            ),
            (csv("a,b\n1,2\n", "{c}"), "\"c\"; there are: a, b"),
            (jsonl("{\"a\":1}\n[1]", template), "f:2: "),
            (
                jsonl("{\"a\":1}\n\n{\"b\":1,\"c\":2}", template),
                "f:3: the row has no field \"a\"; it has: b, c",
            ),
            (
                jsonl("{\"a\":null}", template),
                "f:1: the field \"a\" is no string",
            ),
            (
                jsonl("{\"check\":{\"key\":\"a\",\"revision\":1}}", None),
                "f:1: a \"check\"",
            ),
            (jsonl("{\"put\":{}}", None), "f:1: neither \"key\""),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let no_utf8 = Box::new(Cursor::new(b"a\nx\n\xff\n".to_vec()));
        let rows = Rows::new("f", no_utf8, Format::Csv, Some("{a}".parse().unwrap())).unwrap();
        let error = all(rows).unwrap_err().to_string();
        assert!(error.contains("f:3: column 1 is no UTF-8"), "{error}");
        let error = rows_error("a\n1\n");
        assert!(error.contains("give a template"), "{error}");
    }

    fn rows_error(text: &str) -> String {
        rows(text, Format::Csv, None).err().unwrap().to_string()
    }

    #[test]
    fn a_format_is_told_by_the_name() {
        assert_eq!(Format::of("a/Weather.CSV.gz").unwrap(), Format::Csv);
        assert_eq!(Format::of("x.jsonl").unwrap(), Format::Jsonl);
        assert_eq!(Format::of("-").unwrap(), Format::Jsonl);
        assert!(
            Format::of("x.txt")
                .unwrap_err()
                .to_string()
                .contains("--format csv")
        );
    }

    #[test]
    fn gzip_is_told_by_its_first_bytes_and_many_members_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("packed");
        let mut packed = Vec::new();
        for part in ["a\n", "1\n"] {
            let mut encoder =
                flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
            encoder.write_all(part.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        for (bytes, expected) in [
            (&packed[..], "a\n1\n"),
            (b"a\n", "a\n"),
            (b"a", "a"),
            (b"", ""),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let mut text = String::new();
            let mut reader = open(path.to_str().unwrap(), &ProgressBar::hidden()).unwrap();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
    }
}
