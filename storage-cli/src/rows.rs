//! The rows of a file to import, one by one.
//!
//! Blocking, for a thread of its own; never more than a row in memory. Each error names the file and the line.
//! Invariant: rows come out in the file's order.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, BufRead, Read};
use std::path::Path;

use bytes::Bytes;
use clap::ValueEnum;
use csv::StringRecord;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use storage_protocol::{Key, Lifetime, Operation};

use crate::failure::usage;
use crate::json::{self, Item};
use crate::quotes::{Malformed, Quotes};
use crate::template::{Template, some};
use crate::unpack::unreadable;

/// No line of JSON is longer: a value of the largest size that a server may allow, with room for its escapes.
const LINE_BYTES_MAX: u64 = 2 << 30;

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A header line, then a row per record; each becomes a JSON object of strings.
    Csv,
    /// A JSON object per line.
    Jsonl,
}

impl Format {
    /// By the file's name, or for stdin by elimination: CSV has to be said.
    pub(crate) fn of(file: &Path) -> anyhow::Result<Self> {
        let name = file.as_os_str().to_ascii_lowercase();
        let name = Path::new(&name);
        let extension = |name: &Path| name.extension().and_then(OsStr::to_str).map(str::to_owned);
        let told = match extension(name).as_deref() {
            Some("gz") => name.file_stem().and_then(|stem| extension(Path::new(stem))),
            _ => extension(name),
        };
        match told.as_deref() {
            Some("csv") => Ok(Self::Csv),
            Some("jsonl" | "ndjson" | "json") => Ok(Self::Jsonl),
            _ if file == Path::new("-") => Ok(Self::Jsonl),
            _ => Err(usage(format!(
                "{}: the name does not tell the format; give --format csv or --format jsonl",
                file.display()
            ))),
        }
    }
}

/// Where the names of a CSV file's columns come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Header {
    /// The file's first line.
    #[default]
    FirstLine,
    /// These; the first line is a row.
    Given(Vec<String>),
    /// They are 1, 2, 3; the first line is a row.
    Numbered,
}

/// How the rows of a file are to be read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) format: Format,
    pub(crate) header: Header,
    /// Of the key; `None`: each line says it.
    pub(crate) template: Option<Template>,
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
pub(crate) struct Row {
    pub(crate) line: u64,
    pub(crate) operation: Operation,
}

/// Reads rows. The first error is the last item.
pub(crate) struct Rows {
    /// What errors call it.
    file: String,
    form: Form,
}

enum Form {
    Csv(Box<Csv>),
    Jsonl {
        reader: Box<dyn BufRead + Send>,
        template: Option<Template>,
        line: u64,
    },
}

impl Rows {
    /// Reads the header too, so that a wrong template fails before anything is written.
    pub(crate) fn new(
        file: &Path,
        reader: Box<dyn BufRead + Send>,
        reading: Reading,
    ) -> anyhow::Result<Self> {
        let name = file.display().to_string();
        let form = match (reading.format, reading.template) {
            (Format::Jsonl, _) if reading.header != Header::default() => {
                return Err(usage(format!(
                    "{name}: JSON lines name their fields; --header and --no-header are for CSV"
                )));
            }
            (Format::Jsonl, template) => Form::Jsonl {
                reader,
                template,
                line: 0,
            },
            (Format::Csv, Some(template)) => {
                Form::Csv(Box::new(Csv::new(file, reader, reading.header, template)?))
            }
            (Format::Csv, None) => {
                return Err(usage(format!(
                    "{name}: rows of CSV have no key; give a template, such as --key 'weather/{{origin}}/{{time_hour}}'"
                )));
            }
        };
        Ok(Self { file: name, form })
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Row>> {
        let file = &self.file;
        match &mut self.form {
            Form::Csv(csv) => csv.next(file),
            Form::Jsonl {
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

/// The rows of a CSV file.
struct Csv {
    /// What the csv crate's line numbers fall short by; see [`line_lag`].
    lag: u64,
    reader: csv::Reader<Quotes<Box<dyn BufRead + Send>>>,
    columns: Vec<String>,
    template: Template,
    record: StringRecord,
    /// The record is a row that was read, and not returned yet.
    waiting: bool,
}

impl Csv {
    fn new(
        path: &Path,
        mut reader: Box<dyn BufRead + Send>,
        header: Header,
        template: Template,
    ) -> anyhow::Result<Self> {
        let file = path.display().to_string();
        let lag = line_lag(&mut reader).map_err(|error| unreadable(path, &error))?;
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .from_reader(Quotes::new(reader));
        let mut record = StringRecord::new();
        let first = reader.read_record(&mut record);
        let there = first.map_err(|error| explain_csv(&file, lag, &error))?;
        let waiting = there && header != Header::FirstLine;
        let columns: Vec<String> = match header {
            Header::FirstLine => record.iter().map(str::to_owned).collect(),
            Header::Given(names) => names,
            Header::Numbered => (1..=record.len()).map(|n| n.to_string()).collect(),
        };
        // Without a single line there is no row either, whatever the key is made of.
        if there {
            let line = line_of(record.position(), lag);
            check_columns(&columns).map_err(|what| usage(format!("{file}:{line}: {what}")))?;
            template.check_columns(&columns)?;
        }
        Ok(Self {
            lag,
            reader,
            columns,
            template,
            record,
            waiting,
        })
    }

    fn next(&mut self, file: &str) -> anyhow::Result<Option<Row>> {
        if !std::mem::take(&mut self.waiting) {
            let read = self.reader.read_record(&mut self.record);
            if !read.map_err(|error| explain_csv(file, self.lag, &error))? {
                return Ok(None);
            }
        }
        let line = line_of(self.record.position(), self.lag);
        let operation = self
            .operation()
            .map_err(|what| usage(format!("{file}:{line}: {what}")))?;
        Ok(Some(Row { line, operation }))
    }

    fn operation(&self) -> Result<Operation, String> {
        let (columns, record) = (&self.columns, &self.record);
        if columns.len() != record.len() {
            let (is, expected) = (record.len(), columns.len());
            return Err(format!("the row has {is} columns, the header {expected}"));
        }
        let key = self.template.fill(|name, key| {
            let place = columns.iter().position(|column| column == name);
            let value = place.and_then(|place| record.get(place));
            key.push_str(value.ok_or_else(|| format!("the column {name:?} is missing"))?);
            Ok::<_, String>(())
        })?;
        let row = CsvRow { columns, record };
        let value = serde_json::to_vec(&row).map_err(|error| error.to_string())?;
        Ok(put(key, value.into()))
    }
}

/// Each column needs a name of its own: they are the fields of the rows' objects.
fn check_columns(columns: &[String]) -> Result<(), String> {
    let nameless: Vec<_> = (1..)
        .zip(columns)
        .filter(|(_, name)| name.is_empty())
        .map(|(place, _): (usize, _)| place.to_string())
        .collect();
    if !nameless.is_empty() {
        return Err(format!(
            "of {} columns these have no name: {}. Name them in the file, or give all names with --header and leave that \
             line out",
            columns.len(),
            some(nameless.iter().map(String::as_str))
        ));
    }
    let mut seen = HashSet::new();
    match columns.iter().find(|name| !seen.insert(*name)) {
        Some(twice) => Err(format!("the column {twice:?} stands twice")),
        None => Ok(()),
    }
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
        let Some(value) = field(&fields, name) else {
            let there = some(fields.keys().map(String::as_str));
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

/// The field of this name, or of this path: `a.b` is the field `b` of the object `a`, unless there is a field `a.b`.
fn field<'a>(fields: &BTreeMap<String, &'a RawValue>, path: &str) -> Option<&'a RawValue> {
    if let Some(value) = fields.get(path) {
        return Some(value);
    }
    path.match_indices('.').find_map(|(dot, _)| {
        let inner = fields.get(path.get(..dot)?)?;
        let inner: BTreeMap<String, &'a RawValue> = serde_json::from_str(inner.get()).ok()?;
        field(&inner, path.get(dot + 1..)?)
    })
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

/// The line that a record begins in.
fn line_of(position: Option<&csv::Position>, lag: u64) -> u64 {
    match position {
        Some(position) if position.byte() > 0 => position.line() + lag,
        Some(_) | None => 1,
    }
}

/// The csv crate's errors, with the line in front.
fn explain_csv(file: &str, lag: u64, error: &csv::Error) -> anyhow::Error {
    let mut line = line_of(error.position(), lag);
    let what = match error.kind() {
        csv::ErrorKind::Io(error) => {
            let inner = error.get_ref();
            let Some(malformed) = inner.and_then(|inner| inner.downcast_ref::<Malformed>()) else {
                return usage(format!("{file} cannot be read: {error}"));
            };
            line = malformed.line;
            malformed.to_string()
        }
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
    use std::io::Cursor;

    use super::*;

    fn rows(text: &[u8], reading: Reading) -> anyhow::Result<Rows> {
        Rows::new(
            Path::new("f"),
            Box::new(Cursor::new(text.to_vec())),
            reading,
        )
    }

    fn reading(format: Format, template: Option<&str>) -> Reading {
        let template = template.map(|template| template.parse().unwrap());
        Reading {
            format,
            header: Header::default(),
            template,
        }
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
        all(rows(text.as_bytes(), reading(Format::Csv, Some(template)))?)
    }

    fn jsonl(text: &str, template: Option<&str>) -> anyhow::Result<Vec<(u64, String, String)>> {
        all(rows(text.as_bytes(), reading(Format::Jsonl, template))?)
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
        let crlf = "z,a\r\n1,\"x\"\"\ny\"\r\n2,\r\n";
        assert_eq!(csv(crlf, "k/{z}").unwrap(), expected);
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
        let no_utf8 = rows(b"a\nx\n\xff\n", reading(Format::Csv, template)).unwrap();
        let error = all(no_utf8).unwrap_err().to_string();
        assert!(error.contains("f:3: column 1 is no UTF-8"), "{error}");
        let error = rows_error("a\n1\n");
        assert!(error.contains("give a template"), "{error}");
    }

    fn rows_error(text: &str) -> String {
        let rows = rows(text.as_bytes(), reading(Format::Csv, None));
        rows.err().unwrap().to_string()
    }

    #[test]
    fn names_of_columns_come_from_the_file_or_from_the_command_line() {
        let with = |header, text: &str, template| {
            let reading = Reading {
                header,
                ..reading(Format::Csv, Some(template))
            };
            all(rows(text.as_bytes(), reading)?)
        };
        let given = || Header::Given(vec!["x".to_owned(), "y".to_owned()]);
        for text in ["1,2\n3,4\n", "1,2\r\n3,4"] {
            assert_eq!(
                with(given(), text, "{x}").unwrap(),
                [
                    row(1, "1", r#"{"x":"1","y":"2"}"#),
                    row(2, "3", r#"{"x":"3","y":"4"}"#)
                ]
            );
            assert_eq!(
                with(Header::Numbered, text, "{2}").unwrap(),
                [
                    row(1, "2", r#"{"1":"1","2":"2"}"#),
                    row(2, "4", r#"{"1":"3","2":"4"}"#)
                ]
            );
        }
        let error = |header, text: &str| with(header, text, "{x}").unwrap_err().to_string();
        assert!(error(given(), "1\n").contains("f:1: the row has 1 columns, the header 2"));
        assert!(error(Header::Numbered, "1,2\n").contains("\"x\"; there are: 1, 2"));
        // Nothing is nothing, with a header or without.
        for header in [Header::FirstLine, given(), Header::Numbered] {
            assert_eq!(with(header, "", "{z}").unwrap(), []);
        }
        let reading = Reading {
            header: Header::Numbered,
            ..reading(Format::Jsonl, Some("{a}"))
        };
        let error = rows(b"{}", reading).err().unwrap().to_string();
        assert!(error.contains("are for CSV"), "{error}");
    }

    #[test]
    fn malformed_quotes_are_refused_behind_the_rows_before_them() {
        let template = Some("{n}");
        let mut rows = rows(b"n,t\n1,a\n2,x\"y\n3,b\n", reading(Format::Csv, template)).unwrap();
        assert_eq!(rows.next().unwrap().unwrap().line, 2);
        let error = rows.next().unwrap_err().to_string();
        assert!(error.contains("f:3: a quote (\") stands within"), "{error}");
        for (text, why) in [
            ("n,\"t\n1,a\n2,b\n", "f:1: a quoted field begins here"),
            ("n,t\"\n1,a\n", "f:1: a quote"),
            (
                "n\n\"12 inch\" screen\n",
                "f:2: there is text between the closing quote",
            ),
        ] {
            let error = csv(text, "{n}").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_column_without_a_name_is_named_by_its_place() {
        let error = csv("id,name,,\n1,a,,\n", "{id}").unwrap_err().to_string();
        assert!(
            error.contains("f:1: of 4 columns these have no name: 3, 4."),
            "{error}"
        );
    }

    #[test]
    fn a_path_leads_to_a_nested_field_and_a_whole_name_wins() {
        let text =
            r#"{"_id":{"$oid":"5f","n":{"k":7}},"a.b":"dotted","a":{"b":"nested","c.d":true}}"#;
        let key = |template| jsonl(text, Some(template)).map(|rows| rows[0].1.clone());
        assert_eq!(key("{_id.$oid}/{_id.n.k}").unwrap(), "5f/7");
        assert_eq!(key("{a.b}/{a.c.d}").unwrap(), "dotted/true");
        for (template, why) in [
            ("{_id.x}", "no field \"_id.x\"; it has: _id, a, a.b"),
            ("{a.b.c}", "no field \"a.b.c\""),
            ("{_id.n}", "no string, number or boolean"),
        ] {
            let error = key(template).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_there_is_is_told_within_bounds() {
        let names: Vec<_> = (0..3_000).map(|n| format!("column{n}")).collect();
        let error = csv(&format!("{}\n", names.join(",")), "{x}")
            .unwrap_err()
            .to_string();
        assert!(error.len() < 600 && error.contains("and 29"), "{error}");
    }

    #[test]
    fn a_format_is_told_by_the_name() {
        let format_of = |name: &str| Format::of(Path::new(name));
        assert_eq!(format_of("a/Weather.CSV.gz").unwrap(), Format::Csv);
        assert_eq!(format_of("x.jsonl").unwrap(), Format::Jsonl);
        assert_eq!(format_of("-").unwrap(), Format::Jsonl);
        assert!(
            format_of("x.txt")
                .unwrap_err()
                .to_string()
                .contains("--format csv")
        );
    }
}
