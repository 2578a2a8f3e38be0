//! The session file of an import: which rows went into which commit of which session, so that an import that was killed
//! goes on where it was and no row takes effect twice.
//!
//! JSON lines, appended. A commit's line is on disk before the commit goes out, so whatever a crash of this process leaves
//! behind, every commit that may have been executed has its line; the server tells, by the session's numbers, which were.
//! A last line that was cut short by a crash is no line. What it says holds for one history of one store: it names the
//! epoch, and the last revision that is known of it.
//!
//! Invariants: a line's rows are a batch that the same file and options cut again. A file that does not begin with
//! [`MAGIC`] is not ours, and is not changed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use storage_protocol::{Epoch, Position, Revision, SessionId};

use crate::failure::usage;
use crate::target::sync_folder;
use storage_client::SavedSession;

/// How a session file begins, its format's number included.
const MAGIC: &str = "{\"storage_import_session\":1}\n";

/// What is imported, and how it is cut: on this the rows of each commit depend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// Of the file's bytes, in hex.
    pub(crate) sha256: String,
    pub(crate) keyspace: String,
    pub(crate) key: Option<String>,
    pub(crate) format: String,
    pub(crate) batch: u32,
}

/// A row of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first one.
    Import(Source),
    /// From here on numbers are of this session. Of the same one again: a new incarnation of it. `epoch`: of the store's
    /// history, in hex.
    Session {
        id: String,
        incarnation: u64,
        epoch: String,
    },
    /// This commit is about to go out.
    Commit { number: u64, row: u64, rows: u64 },
    /// It was executed.
    Done { number: u64, revision: u64 },
    /// It was refused, and will not be executed under this number.
    Refused { number: u64 },
    /// All rows are committed.
    Complete { rows: u64 },
}

/// Rows that went into a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) number: u64,
    pub(crate) row: u64,
    pub(crate) rows: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    session: Option<(SessionId, u64)>,
    /// Up to where the store's history is known: the epoch of the last session, and the last revision that was told.
    position: Option<Position>,
    /// The highest number of the session.
    sent: u64,
    /// Without a known outcome, by ascending numbers.
    pub(crate) unanswered: Vec<Sent>,
    /// Row ranges that were committed, as first row and count, by ascending rows.
    done: Vec<(u64, u64)>,
    /// All is committed: so many rows.
    pub(crate) complete: Option<u64>,
}

impl Journal {
    /// Opens it, or begins it; only one process at a time. Blocks on the disk.
    pub(crate) fn open(path: &Path, source: &Source) -> anyhow::Result<Self> {
        let name = path.display();
        // A FIFO or a device keeps nothing.
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(usage(format!(
                "{name} is no regular file, so it cannot be a session file"
            )));
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("{name} cannot be opened"))?;
        file.try_lock()
            .map_err(|_| usage(format!("{name} is in use by another import")))?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            session: None,
            position: None,
            sent: 0,
            unanswered: Vec::new(),
            done: Vec::new(),
            complete: None,
        };
        let was = journal
            .read()
            .with_context(|| format!("{name} cannot be read"))?;
        match was {
            None => {
                journal.begin(source)?;
                sync_folder(path).with_context(|| format!("the folder of {name}"))?;
            }
            Some(was) if was == *source => {}
            Some(was) => {
                return Err(usage(format!(
                    "{name} belongs to another import: {}. Give another --session-file, or remove it",
                    difference(&was, source)
                )));
            }
        }
        Ok(journal)
    }

    /// Reads what is there; what it says that is imported, if it says anything. Only a file that is ours is repaired.
    fn read(&mut self) -> anyhow::Result<Option<Source>> {
        let mut head = Vec::new();
        (&self.file)
            .take(MAGIC.len() as u64)
            .read_to_end(&mut head)?;
        if head.is_empty() {
            return Ok(None);
        }
        if head != MAGIC.as_bytes() {
            return Err(usage(
                "it is no session file of an import, and was left as it is",
            ));
        }
        let mut source = None;
        let mut whole = head.len() as u64;
        let mut reader = BufReader::new(&self.file);
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            let bytes = reader.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            whole += bytes as u64;
            let parsed: Line = serde_json::from_slice(&line)
                .map_err(|error| usage(format!("a line of it is damaged: {error}")))?;
            lines.push(parsed);
        }
        for line in lines {
            match line {
                Line::Import(read) => source = Some(read),
                line => self.apply(&line)?,
            }
        }
        // What a crash cut short was never acted upon.
        self.file.set_len(whole)?;
        self.file.seek(SeekFrom::End(0))?;
        Ok(source)
    }

    fn apply(&mut self, line: &Line) -> anyhow::Result<()> {
        match *line {
            Line::Import(_) => {}
            Line::Session {
                ref id,
                incarnation,
                ref epoch,
            } => {
                let id = parse_session(id)?;
                let epoch = parse_epoch(epoch)?;
                check_number("incarnation", incarnation)?;
                if self.position.is_none_or(|position| position.epoch != epoch) {
                    // What is known of an earlier history is known of this one: that was asked before.
                    let revision = self.position.map_or(Revision(0), |known| known.revision);
                    self.position = Some(Position { epoch, revision });
                }
                if self.session.is_none_or(|(known, _)| known != id) {
                    self.sent = 0;
                    self.unanswered.clear();
                }
                self.session = Some((id, incarnation));
            }
            Line::Commit { number, row, rows } => {
                check_number("commit", number)?;
                self.sent = self.sent.max(number);
                self.unanswered.push(Sent { number, row, rows });
            }
            Line::Done { number, revision } => {
                if let Some(position) = &mut self.position {
                    position.revision = position.revision.max(Revision(revision));
                }
                if let Some(sent) = self.take(number) {
                    // Answers come in the order of numbers, which may not be that of rows.
                    let place = self.done.partition_point(|(row, _)| *row < sent.row);
                    self.done.insert(place, (sent.row, sent.rows));
                }
            }
            Line::Refused { number } => {
                self.take(number);
            }
            Line::Complete { rows } => self.complete = Some(rows),
        }
        Ok(())
    }

    fn take(&mut self, number: u64) -> Option<Sent> {
        let place = self
            .unanswered
            .iter()
            .position(|sent| sent.number == number)?;
        Some(self.unanswered.remove(place))
    }

    /// Makes an empty file ours, by one write.
    fn begin(&mut self, source: &Source) -> anyhow::Result<()> {
        let line = Line::Import(source.clone());
        match self.file.metadata() {
            Ok(metadata) if metadata.len() > 0 => self.append_behind("", &line),
            _ => self.append_behind(MAGIC, &line),
        }
    }

    fn append(&mut self, line: &Line) -> anyhow::Result<()> {
        self.append_behind("", line)
    }

    fn append_behind(&mut self, head: &str, line: &Line) -> anyhow::Result<()> {
        let name = self.path.display();
        let failed = || format!("{name} cannot be written");
        let mut text = head.as_bytes().to_vec();
        serde_json::to_writer(&mut text, line).with_context(failed)?;
        text.push(b'\n');
        self.file.write_all(&text).with_context(failed)?;
        // An answer may get lost in a crash: the server knows it. What goes out must be known before.
        if !matches!(line, Line::Done { .. } | Line::Refused { .. }) {
            self.file.sync_data().with_context(failed)?;
        }
        Ok(())
    }

    fn note(&mut self, line: &Line) -> anyhow::Result<()> {
        self.append(line)?;
        self.apply(line)
    }

    /// Its file, for messages.
    pub(crate) fn name(&self) -> impl std::fmt::Display + '_ {
        self.path.display()
    }

    /// Where the history of the store stood, as far as it is known here.
    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }

    /// The session to resume, if there was one.
    pub(crate) fn saved(&self) -> Option<SavedSession> {
        let (id, incarnation) = self.session?;
        Some(SavedSession {
            id,
            incarnation,
            sent: self.sent,
            unanswered: self.unanswered.iter().map(|sent| sent.number).collect(),
        })
    }

    /// From here on numbers are of this session; those without an answer of another are given back, unknown for ever.
    pub(crate) fn begin_session(
        &mut self,
        id: SessionId,
        incarnation: u64,
        epoch: Epoch,
    ) -> anyhow::Result<Vec<Sent>> {
        let before = self.unanswered.clone();
        let (id, epoch) = (hex::encode(id.0), epoch.to_string());
        self.note(&Line::Session {
            id,
            incarnation,
            epoch,
        })?;
        if self.unanswered.is_empty() {
            Ok(before)
        } else {
            Ok(Vec::new())
        }
    }

    /// Notes how often the session came back by itself: the next run has to be above all of that, also where the clock was
    /// set back meanwhile.
    pub(crate) fn came_back(&mut self, id: SessionId, incarnation: u64) -> anyhow::Result<()> {
        match (self.session, self.position) {
            (Some((known, before)), Some(position)) if known == id && before < incarnation => self
                .note(&Line::Session {
                    id: hex::encode(id.0),
                    incarnation,
                    epoch: position.epoch.to_string(),
                }),
            // Another session is another matter: what was sent in this one is not known then.
            _ => Ok(()),
        }
    }

    /// Whether these rows are committed.
    pub(crate) fn is_done(&self, row: u64, rows: u64) -> bool {
        self.done.binary_search(&(row, rows)).is_ok()
    }

    /// The commit that these rows went out in, if its outcome is not known.
    pub(crate) fn unanswered_number(&self, row: u64, rows: u64) -> Option<u64> {
        let sent = self
            .unanswered
            .iter()
            .find(|sent| (sent.row, sent.rows) == (row, rows))?;
        Some(sent.number)
    }

    /// The rows of the journal that a batch with this first row does not fit to: the file is cut in another way now.
    pub(crate) fn contradicts(&self, row: u64, rows: u64) -> bool {
        let overlaps = |first: u64, count: u64| {
            first < row + rows && row < first + count && (first, count) != (row, rows)
        };
        // Batches are short and sorted: only the neighbours can overlap.
        let place = self.done.partition_point(|(first, _)| *first < row);
        let near = self.done.iter().skip(place.saturating_sub(1)).take(3);
        near.copied().any(|(first, count)| overlaps(first, count))
            || self
                .unanswered
                .iter()
                .any(|sent| overlaps(sent.row, sent.rows))
    }

    /// Whether rows behind this one were committed, or may have been: it was refused before, and comes after them now.
    pub(crate) fn is_overtaken(&self, row: u64) -> bool {
        // Those without an answer come again under their numbers, which are lower than the one that this row gets.
        self.done.last().is_some_and(|(last, _)| *last > row)
            || self.unanswered.iter().any(|sent| sent.row > row)
    }

    /// Notes, durably, that these rows are about to go out; gives the commit's number.
    pub(crate) fn send(&mut self, row: u64, rows: u64, sent_before: u64) -> anyhow::Result<u64> {
        let number = self.sent.max(sent_before) + 1;
        self.note(&Line::Commit { number, row, rows })?;
        Ok(number)
    }

    pub(crate) fn executed(&mut self, number: u64, revision: Revision) -> anyhow::Result<()> {
        let revision = revision.0;
        self.note(&Line::Done { number, revision })
    }

    pub(crate) fn refused(&mut self, number: u64) -> anyhow::Result<()> {
        self.note(&Line::Refused { number })
    }

    pub(crate) fn completed(&mut self, rows: u64) -> anyhow::Result<()> {
        self.note(&Line::Complete { rows })
    }
}

fn parse_session(hex_id: &str) -> anyhow::Result<SessionId> {
    let mut id = [0; 16];
    hex::decode_to_slice(hex_id, &mut id)
        .map_err(|_| usage(format!("{hex_id:?} is no session's id")))?;
    Ok(SessionId(id))
}

/// Nothing that counts up from 0 comes to this: the file is damaged.
fn check_number(what: &str, number: u64) -> anyhow::Result<()> {
    match number {
        0..=SavedSession::NUMBER_MAX => Ok(()),
        _ => Err(usage(format!("{number} is no number of a {what}"))),
    }
}

fn parse_epoch(hex: &str) -> anyhow::Result<Epoch> {
    let epoch = u64::from_str_radix(hex, 16);
    epoch
        .map(Epoch)
        .map_err(|_| usage(format!("{hex:?} is no epoch")))
}

fn difference(was: &Source, is: &Source) -> String {
    let text = |key: &Option<String>| key.clone().unwrap_or_else(|| "none".to_owned());
    if was.keyspace != is.keyspace {
        format!("its keyspace is {}, this is {}", was.keyspace, is.keyspace)
    } else if was.sha256 != is.sha256 {
        "the file has other content".to_owned()
    } else if was.format != is.format {
        format!("its --format is {}, this is {}", was.format, is.format)
    } else if was.key != is.key {
        format!("its --key is {}, this is {}", text(&was.key), text(&is.key))
    } else {
        format!("its --batch is {}, this is {}", was.batch, is.batch)
    }
}

/// The SHA-256 of a file's bytes, in hex. Blocks on the disk.
pub(crate) fn digest_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            bytes => hash.update(buffer.get(..bytes).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source {
            sha256: "00".into(),
            keyspace: "models".into(),
            key: None,
            format: "Jsonl".into(),
            batch: 2,
        }
    }

    const ID: SessionId = SessionId([7; 16]);
    const EPOCH: Epoch = Epoch(0xe);

    #[test]
    fn what_was_noted_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let mut journal = Journal::open(&path, &source()).unwrap();
        assert!(journal.saved().is_none());
        assert_eq!(journal.position(), None);
        journal.begin_session(ID, 3, EPOCH).unwrap();
        assert_eq!(journal.send(1, 2, 0).unwrap(), 1);
        assert_eq!(journal.send(3, 2, 0).unwrap(), 2);
        assert_eq!(journal.send(5, 2, 0).unwrap(), 3);
        journal.executed(1, Revision(41)).unwrap();
        journal.refused(3).unwrap();
        drop(journal);
        // A crash in the middle of a line.
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"commit\":{\"numb").unwrap();
        drop(file);
        let mut journal = Journal::open(&path, &source()).unwrap();
        let saved = journal.saved().unwrap();
        assert_eq!((saved.id, saved.incarnation, saved.sent), (ID, 3, 3));
        assert_eq!(saved.unanswered, [2]);
        assert_eq!(
            journal.position().unwrap().to_string(),
            "000000000000000e:41"
        );
        assert!(journal.is_done(1, 2) && !journal.is_done(3, 2));
        assert_eq!(journal.unanswered_number(3, 2), Some(2));
        assert!(journal.contradicts(2, 2) && journal.contradicts(3, 1));
        assert!(!journal.contradicts(5, 9) && !journal.contradicts(1, 2));
        // A batch that was refused is answered after later ones: what is done is found all the same.
        let number = journal.send(7, 2, 0).unwrap();
        journal.executed(number, Revision(40)).unwrap();
        assert!(journal.is_overtaken(5));
        let number = journal.send(5, 2, 0).unwrap();
        journal.executed(number, Revision(40)).unwrap();
        assert!(journal.is_done(1, 2) && journal.is_done(5, 2) && journal.is_done(7, 2));
        // The same session goes on; of another, what has no answer is unknown.
        assert_eq!(journal.begin_session(ID, 4, EPOCH).unwrap(), []);
        let lost = journal
            .begin_session(SessionId([8; 16]), 0, Epoch(0xf))
            .unwrap();
        assert_eq!(lost.iter().map(|sent| sent.number).collect::<Vec<_>>(), [2]);
        assert_eq!(journal.send(3, 2, 0).unwrap(), 1);
        journal.completed(6).unwrap();
        drop(journal);
        let journal = Journal::open(&path, &source()).unwrap();
        assert_eq!(journal.complete, Some(6));
        assert_eq!(
            journal.position().unwrap().to_string(),
            "000000000000000f:41"
        );
    }

    /// The server applies a commit that may still come again under its number before those with higher numbers.
    #[test]
    fn rows_without_an_answer_overtake_those_that_were_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let mut journal = Journal::open(&path, &source()).unwrap();
        journal.begin_session(ID, 3, EPOCH).unwrap();
        assert_eq!(journal.send(5, 2, 0).unwrap(), 1);
        assert_eq!(journal.send(9, 2, 0).unwrap(), 2);
        journal.refused(1).unwrap();
        assert!(journal.is_overtaken(5));
        assert!(!journal.is_overtaken(9) && !journal.is_overtaken(11));
    }

    #[test]
    fn another_import_and_another_process_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let journal = Journal::open(&path, &source()).unwrap();
        let error = Journal::open(&path, &source()).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(journal);
        let mut other = source();
        other.batch = 3;
        let error = Journal::open(&path, &other).unwrap_err().to_string();
        assert!(error.contains("--batch is 2, this is 3"), "{error}");
    }

    #[test]
    fn numbers_that_leave_nothing_above_them_are_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        for line in [
            Line::Session {
                id: hex::encode(ID.0),
                incarnation: u64::MAX,
                epoch: EPOCH.to_string(),
            },
            Line::Commit {
                number: 1 << 63,
                row: 1,
                rows: 1,
            },
        ] {
            let text = serde_json::to_string(&line).unwrap();
            std::fs::write(&path, format!("{MAGIC}{text}\n")).unwrap();
            let error = format!("{:#}", Journal::open(&path, &source()).unwrap_err());
            assert!(error.contains("is no number of a"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let torn = &MAGIC[..MAGIC.len() - 2];
        for foreign in ["precious", "precious\n", "{\"import\":{}}\n", "{}\n{", torn] {
            std::fs::write(&path, foreign).unwrap();
            let error = format!("{:#}", Journal::open(&path, &source()).unwrap_err());
            assert!(error.contains("no session file of an import"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
        let damaged = format!("{MAGIC}no line of ours\nor this");
        std::fs::write(&path, &damaged).unwrap();
        let error = format!("{:#}", Journal::open(&path, &source()).unwrap_err());
        assert!(error.contains("damaged"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        let error = Journal::open(folder.path(), &source())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no regular file"), "{error}");
        // An empty one holds nothing that could be lost, and a header alone is a beginning.
        for begun in ["", MAGIC] {
            std::fs::write(&path, begun).unwrap();
            drop(Journal::open(&path, &source()).unwrap());
            assert!(Journal::open(&path, &source()).unwrap().saved().is_none());
        }
    }
}
