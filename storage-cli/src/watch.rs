//! `watch`: what is committed, line by line, as it happens.
//!
//! `Every` prints one line per commit, `--latest` one per key that changed. Each line is flushed, so that a pipe sees
//! it at once. It ends by a signal or after `--count` lines, both with exit code 0.

use std::ffi::OsString;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use storage_protocol::{
    ChangeKind, CommitRecord, Continuity, Epoch, Key, KeyState, Position, ResyncReason, Storage,
    StorageError, Value, WatchEvent, WatchMode, WatchOptions, WatchStart,
};

use crate::app::App;
use crate::escape;
use crate::failure::{Exit, StdoutClosed, epoch_words};
use crate::json::Object;
use crate::output::{Output, stdout_closed};
use crate::tell;
use crate::text::Form;

const EXAMPLES: &str = "\
Examples:
  storage watch --prefix weather/
  storage watch --json --count 1                        # waits for one commit
  storage watch --after 00000000000000e1:120            # goes on where a former one ended
  storage watch --latest --interval 1s --beginning      # the present state, then what changes

One line per commit: REVISION [LABEL] put KEY=VALUE remove KEY signal KEY=BYTES; keys and values are escaped as `scan` does,
and stand in quotes where a space in them would end them. With --latest one line per key that changed: REVISION put KEY=VALUE
or REVISION removed KEY. With --json, --latest also prints {\"progress\":\"EPOCH:REVISION\"} when all up to there was told, and
{\"reset\":true} when keys not told before the next progress are gone.
Says `watching from EPOCH:REVISION` on stderr when it is attached, and when the connection is lost and comes back. Ctrl-C
ends it.";

/// Prints commits, or changed keys, as they happen
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Watch {
    /// Keys that begin with this [default: all]
    #[arg(long, value_name = "P")]
    prefix: Option<OsString>,
    /// Begin after this position [default: now]
    #[arg(long, value_name = "EPOCH:REVISION")]
    after: Option<Position>,
    /// Begin with the first commit of all, which fails once the log does not have it any more; or with --latest with
    /// the present state
    #[arg(long, conflicts_with = "after")]
    beginning: bool,
    /// The present state of each key that changed, instead of each commit
    #[arg(long)]
    latest: bool,
    /// Tell changed keys at most this often, such as 1s
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration, requires = "latest")]
    interval: Option<Duration>,
    /// End after N commits (with --latest: N keys)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl Watch {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let range = app.form().arguments().prefix(self.prefix.as_deref())?;
        let start = match self.after {
            Some(position) => WatchStart::After(position),
            None if self.beginning => WatchStart::Beginning,
            None => WatchStart::Now,
        };
        let mode = match self.latest {
            true => WatchMode::Latest {
                min_interval: self.interval.unwrap_or_default(),
            },
            false => WatchMode::Every,
        };
        let open = async {
            let storage = app.connect().await?;
            Ok(storage.watch(range, WatchOptions { start, mode }).await?)
        };
        let mut watch = app.unless_interrupted(open).await?;
        app.tell_outages();
        let mut closed = pin!(stdout_closed());
        tell(format_args!("watching from {}", watch.start()));
        let mut left = self.count;
        while left != Some(0) {
            let event = tokio::select! {
                biased;
                () = app.interrupt.cancelled() => break,
                () = closed.as_mut() => return Err(StdoutClosed.into()),
                event = watch.next() => event?.ok_or_else(ended)?,
            };
            let counts = matches!(event, WatchEvent::Commit(_) | WatchEvent::State { .. });
            // Of the history that the event belongs to: it may change with a break.
            let epoch = watch.status().position.epoch;
            if let Some(line) = self.show(&event, epoch, app) {
                out.line(&line)?;
                out.flush()?;
            }
            if counts && let Some(left) = &mut left {
                *left -= 1;
            }
        }
        Ok(Exit::Done)
    }

    /// The line of an event, if it has one.
    fn show(&self, event: &WatchEvent, epoch: Epoch, app: &App) -> Option<String> {
        let (form, json) = (app.form(), app.json());
        match event {
            WatchEvent::Commit(record) if json => Some(commit_object(record, epoch).finish()),
            WatchEvent::Commit(record) => Some(commit_text(record, form)),
            WatchEvent::State { key, state } if json => Some(state_object(key, state).finish()),
            WatchEvent::State { key, state } => Some(state_text(key, state, form)),
            WatchEvent::Progress { position, .. } if json && self.latest => {
                let position = position.to_string();
                Some(Object::new().text("progress", &position).finish())
            }
            WatchEvent::Progress { .. } => None,
            WatchEvent::Reset if json => Some(Object::new().raw("reset", "true").finish()),
            WatchEvent::Reset => {
                tell("reset: keys that are not told now are gone");
                None
            }
            WatchEvent::Continuity(continuity) => show_continuity(continuity, json),
            // A newer library may tell more.
            _ => None,
        }
    }
}

/// What a break meant: a line for machines, a word to people on stderr.
fn show_continuity(continuity: &Continuity, json: bool) -> Option<String> {
    if json {
        let text = continuity_words(continuity);
        let word = text.split(':').next().unwrap_or_default().to_owned();
        return Some(
            Object::new()
                .text("continuity", &word)
                .text("message", &text)
                .finish(),
        );
    }
    if let Some(text) = people(continuity) {
        tell(text);
    }
    None
}

/// `None`: the watch ended where it stood, so there is nothing to tell but why, which follows.
fn people(continuity: &Continuity) -> Option<String> {
    match continuity {
        Continuity::Lost { from, to } if from == to => None,
        other => Some(continuity_words(other)),
    }
}

fn continuity_words(continuity: &Continuity) -> String {
    match continuity {
        Continuity::Continuous => "continuous: nothing was missed".to_owned(),
        Continuity::Resynced {
            why: ResyncReason::Compacted { .. },
        } => "resynced: steps are missing (the history is compacted); what changed follows"
            .to_owned(),
        Continuity::Resynced {
            why: ResyncReason::EpochChanged { epoch, fork },
        } => {
            let what = epoch_words(*epoch, *fork);
            format!("resynced: {what}; everything follows anew")
        }
        Continuity::Resynced {
            why: ResyncReason::AccessChanged,
        } => "resynced: what may be watched has changed; everything follows anew".to_owned(),
        Continuity::Resynced { .. } => {
            "resynced: steps are missing; what changed follows".to_owned()
        }
        Continuity::Lost { from, to } => {
            format!("lost: what happened from {from} to {to} is not told")
        }
        // A newer library may tell more.
        other => format!("{other:?}"),
    }
}

/// A watch ends with an error; if one ever ends without, that is the server's doing.
fn ended() -> StorageError {
    StorageError::Closed {
        reason: "the watch ended".into(),
        outcome: storage_protocol::Outcome::NotExecuted,
    }
}

fn commit_object(record: &CommitRecord, epoch: Epoch) -> Object {
    let changes = record.changes.iter().map(|change| {
        let (name, fields) = change_object(&change.key, &change.kind);
        Object::new().object(name, fields)
    });
    let head = Object::new()
        .number("revision", record.revision.0)
        .text("epoch", &epoch.to_string())
        .number("time_ms", record.time.0);
    let head = match &record.label {
        Some(label) => head.text("label", label),
        None => head.raw("label", "null"),
    };
    head.text("principal", &record.principal)
        .list("changes", changes)
}

fn change_object(key: &Key, kind: &ChangeKind) -> (&'static str, Object) {
    let fields = Object::new().bytes("key", key);
    let with_previous = |fields: Object, previous: &Option<Value>| match previous {
        Some(previous) => fields.bytes("previous", previous),
        None => fields,
    };
    match kind {
        ChangeKind::Put {
            value,
            lifetime,
            previous,
        } => {
            let fields = fields.bytes("value", value).lifetime(*lifetime);
            ("put", with_previous(fields, previous))
        }
        ChangeKind::Removed { previous } => ("remove", with_previous(fields, previous)),
        ChangeKind::Signalled { bytes } => ("signal", fields.bytes("value", bytes)),
    }
}

fn commit_text(record: &CommitRecord, form: Form) -> String {
    let mut text = record.revision.to_string();
    if let Some(label) = &record.label {
        // Its end is the bracket, whatever is in it.
        let label = escape::text(label.as_bytes()).replace(']', "\\]");
        text.push_str(&format!(" [{label}]"));
    }
    for change in &record.changes {
        let key = form.key_field(&change.key);
        text.push_str(&match &change.kind {
            ChangeKind::Put { value, .. } => format!(" put {key}={}", form.value_field(value)),
            ChangeKind::Removed { .. } => format!(" remove {key}"),
            ChangeKind::Signalled { bytes } => {
                format!(" signal {key}={}", form.value_field(bytes))
            }
        });
    }
    text
}

fn state_object(key: &Key, state: &KeyState) -> Object {
    match state {
        KeyState::Live(entry) => Object::new().object("put", Object::new().entry(key, entry)),
        KeyState::Removed(revision) => {
            let fields = Object::new()
                .bytes("key", key)
                .number("revision", revision.0);
            Object::new().object("removed", fields)
        }
    }
}

fn state_text(key: &Key, state: &KeyState, form: Form) -> String {
    let (revision, key) = (state.revision(), form.key_field(key));
    match state {
        KeyState::Live(entry) => {
            format!("{revision} put {key}={}", form.value_field(&entry.value))
        }
        KeyState::Removed(_) => format!("{revision} removed {key}"),
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Change, Entry, EntryLifetime, Revision, UnixMillis};

    use super::*;

    const TEXT: Form = Form { hex: false };

    fn record(label: Option<&str>) -> CommitRecord {
        let change = |key: &'static str, kind| Change {
            key: key.into(),
            kind,
        };
        let put = ChangeKind::Put {
            value: "1".into(),
            lifetime: EntryLifetime::Until(UnixMillis(99)),
            previous: Some("0".into()),
        };
        let changes = vec![
            change("a", put),
            change("b", ChangeKind::Removed { previous: None }),
            change(
                "c",
                ChangeKind::Signalled {
                    bytes: vec![255].into(),
                },
            ),
        ];
        let label = label.map(str::to_owned);
        CommitRecord::new(Revision(7), UnixMillis(5), label, "cert:me".into(), changes)
    }

    #[test]
    fn a_commit_is_one_line() {
        assert_eq!(
            commit_text(&record(Some("x\ny")), TEXT),
            "7 [x\\ny] put a=1 remove b signal c=\\xff"
        );
        assert_eq!(
            commit_text(&record(None), Form { hex: true }),
            "7 put 61=31 remove 62 signal 63=ff"
        );
        assert_eq!(
            commit_object(&record(None), Epoch(0xe)).finish(),
            "{\"revision\":7,\"epoch\":\"000000000000000e\",\"time_ms\":5,\"label\":null,\"principal\":\"cert:me\",\
             \"changes\":[{\"put\":{\"key\":\"a\",\"value\":\"1\",\"expires_ms\":99,\"previous\":\"0\"}},\
             {\"remove\":{\"key\":\"b\"}},{\"signal\":{\"key\":\"c\",\"value_b64\":\"/w==\"}}]}"
        );
    }

    #[test]
    fn a_state_is_one_line() {
        let key = Key::from("k");
        let entry = Entry {
            value: "v".into(),
            revision: Revision(7),
            lifetime: EntryLifetime::Session,
        };
        let (live, removed) = (KeyState::Live(entry), KeyState::Removed(Revision(8)));
        assert_eq!(state_text(&key, &live, TEXT), "7 put k=v");
        assert_eq!(state_text(&key, &removed, TEXT), "8 removed k");
        assert_eq!(
            state_object(&key, &live).finish(),
            r#"{"put":{"key":"k","value":"v","revision":7,"session":true}}"#
        );
        assert_eq!(
            state_object(&key, &removed).finish(),
            r#"{"removed":{"key":"k","revision":8}}"#
        );
    }

    #[test]
    fn what_was_not_lost_is_not_told_to_people() {
        let at = |revision| Position {
            epoch: Epoch(1),
            revision: Revision(revision),
        };
        let lost = |from, to| Continuity::Lost {
            from: at(from),
            to: at(to),
        };
        assert_eq!(
            people(&lost(3, 4)).unwrap(),
            "lost: what happened from 0000000000000001:3 to 0000000000000001:4 is not told"
        );
        assert_eq!(people(&lost(4, 4)), None);
        // Machines are told of each break.
        let line = show_continuity(&lost(4, 4), true).unwrap();
        assert!(line.starts_with("{\"continuity\":\"lost\""), "{line}");
    }
}
