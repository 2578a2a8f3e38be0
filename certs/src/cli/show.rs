//! The report of `show`: a table for people, JSON for programs.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::{Report, line};
use crate::inspect::{self, Credential, Finding, Inspection, KeyState, Kind, Level};
use crate::peer::{is_unseen, visible};
use crate::{Error, Result};

/// What the table has where there is nothing to say.
const NOTHING: &str = "-";
const HEADINGS: [&str; 10] = [
    "NAME",
    "KIND",
    "PRINCIPAL",
    "FROM",
    "UNTIL",
    "DAYS",
    "REVOKED",
    "KEY",
    "SERIAL",
    "NAMES",
];

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Folder of certificates, folder of one credential, or PEM file of certificates
    path: PathBuf,
    /// Print JSON instead of a table; its fields are in the README
    #[arg(long)]
    json: bool,
}

pub(super) fn show(args: &Show) -> Result<Report> {
    let inspection = inspect::inspect(&args.path)?;
    let text = if args.json {
        json(&inspection)?
    } else {
        table(&inspection)
    };
    Ok(Report {
        text,
        exit_code: u8::from(!inspection.usable),
    })
}

fn json(inspection: &Inspection) -> Result<String> {
    let json = serde_json::to_string_pretty(inspection).map_err(Error::crypto("write JSON"))?;
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        // Such are in strings only, and for a program the escape is the same character.
        if is_unseen(c) || (c.is_control() && c != '\n') {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    text.push('\n');
    Ok(text)
}

fn table(inspection: &Inspection) -> String {
    let mut rows = vec![HEADINGS.map(ToOwned::to_owned)];
    rows.extend(inspection.credentials.iter().map(row));
    let mut text = String::new();
    for row in &rows {
        let mut cells = String::new();
        for (column, cell) in row.iter().enumerate() {
            let widths = rows.iter().map(|row| row[column].chars().count());
            let width = widths.max().unwrap_or(0);
            let _ = write!(cells, "{cell:width$}  ");
        }
        line(&mut text, cells.trim_end());
    }
    let mut notes = String::new();
    for list in &inspection.revocation_lists {
        let (number, revoked) = (list.number, list.revoked);
        let file = visible(&list.file);
        let note = format!("{file}: CRL number {number}, {revoked} revoked");
        line(&mut notes, &note);
    }
    for finding in &inspection.findings {
        line(&mut notes, &remark(finding, None));
    }
    for credential in &inspection.credentials {
        for older in &credential.older_valid {
            let note = format!(
                "{}: an older certificate is valid until {}, serial {}",
                visible(&credential.name),
                older.valid_until.date(),
                older.serial
            );
            line(&mut notes, &note);
        }
        for finding in &credential.findings {
            line(&mut notes, &remark(finding, Some(&credential.name)));
        }
    }
    if !notes.is_empty() {
        text.push('\n');
        text += &notes;
    }
    text
}

fn row(credential: &Credential) -> [String; HEADINGS.len()] {
    let nothing = || NOTHING.to_owned();
    let key = match credential.key {
        KeyState::Matches => "matches",
        KeyState::Differs => "differs",
        KeyState::Missing => "missing",
        KeyState::Broken => "broken",
        KeyState::Unreadable => "unreadable",
        KeyState::Unknown => NOTHING,
    };
    let name = visible(&credential.name);
    let Some(details) = &credential.details else {
        let [kind, principal, from, until, days, revoked, serial, names] =
            std::array::from_fn(|_| nothing());
        let key = key.to_owned();
        return [
            name, kind, principal, from, until, days, revoked, key, serial, names,
        ];
    };
    let kind = match details.kind {
        Kind::Authority => "CA",
        Kind::Server => "server",
        Kind::Client => "client",
        Kind::ServerAndClient => "both",
        Kind::Other => "other",
    };
    let revoked = match (details.revoked, details.revoked_at) {
        (Some(true), Some(at)) => at.date().to_string(),
        (Some(true), None) => "yes".to_owned(),
        (Some(false), _) => "no".to_owned(),
        (None, _) => nothing(),
    };
    let names = match details.alternative_names.as_slice() {
        [] => nothing(),
        names => visible(&names.join(", ")),
    };
    [
        name,
        kind.to_owned(),
        details.principal.as_deref().map_or_else(nothing, visible),
        details.valid_from.date().to_string(),
        details.valid_until.date().to_string(),
        details.days_left.to_string(),
        revoked,
        key.to_owned(),
        details.serial.clone(),
        names,
    ]
}

fn remark(finding: &Finding, name: Option<&str>) -> String {
    let level = match finding.level {
        Level::Warning => "warning",
        Level::Error => "error",
    };
    let text = &finding.text;
    match name {
        Some(name) => format!("{level}: {}: {text}", visible(name)),
        None => format!("{level}: {text}"),
    }
}
