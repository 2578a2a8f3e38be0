//! A history as JSON lines, for people and for other checkers.
//!
//! One object a line, sorted by time; `t` is nanoseconds since the run began, `event` says what it is:
//!
//! | event | other fields |
//! | --- | --- |
//! | `invoke` | `client`, `op` (its count), `request`: `{"get":{"keys":[..]}}`, `{"scan":{"range":{"from":..,"to":..}}}` or `{"commit":{"checks":[[KEY,"absent" or {"at":REVISION}],..],"writes":[[KEY,{"put":VALUE} or "remove" or {"signal":BYTES}],..]}}` |
//! | `return` | `client`, `op`, `outcome`: `{"read":{"revision":..,"values":[[KEY,{"value":..,"revision":..} or null],..]}}`, `{"committed":{"revision":..}}`, `{"refused":{"key":..,"actual":REVISION or null}}`, `{"not_executed":{"error":..}}` or `{"unknown":{"error":..}}` |
//! | `watch` | `watch` (its name), `mode`, `range`, and `told`: what happened on it, with `opened`, `commit`, `state`, `asked`, `mark`, `reset`, `continuous`, `resynced`, `lost` or `broke` in it |
//! | `replica` | `client`, `op`, `values`, `proven` (the revision), `age` (nanoseconds) |
//! | `log` | `commit`: one of the store's log, in its order, at the end; `t` is 0 |
//!
//! A checker of registers (Porcupine, Knossos) takes `invoke` and `return` of one key at a time; a call that is
//! `unknown` is one that never returned, one that is `not_executed` never was.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::History;

/// Writes a history into the folder that `HISTORY_DIR` names, if it does.
///
/// # Errors
/// As the file system has it.
pub fn keep(history: &History) -> io::Result<Option<PathBuf>> {
    match std::env::var_os("HISTORY_DIR") {
        Some(folder) => save(history, Path::new(&folder)).map(Some),
        None => Ok(None),
    }
}

/// Writes a history into `seed-SEED.jsonl` of a folder.
///
/// # Errors
/// As the file system has it.
pub fn save(history: &History, folder: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("seed-{}.jsonl", history.seed));
    let mut file = BufWriter::new(File::create(&path)?);
    for line in lines(history) {
        writeln!(file, "{line}")?;
    }
    file.flush()?;
    Ok(path)
}

/// The lines.
#[must_use]
pub fn lines(history: &History) -> Vec<Value> {
    let mut lines = Vec::new();
    for call in &history.calls {
        let (client, op) = (call.id.client, call.id.number);
        lines.push(json!({
            "t": call.invoked, "event": "invoke", "client": client, "op": op, "request": call.request,
        }));
        lines.push(json!({
            "t": call.returned, "event": "return", "client": client, "op": op, "outcome": call.outcome,
        }));
    }
    for stream in &history.watches {
        for (at, told) in &stream.events {
            lines.push(json!({
                "t": at, "event": "watch", "watch": stream.name, "mode": stream.mode, "range": stream.range,
                "told": told,
            }));
        }
    }
    for read in &history.replica_reads {
        lines.push(json!({
            "t": read.at, "event": "replica", "client": read.id.client, "op": read.id.number,
            "values": read.values, "proven": read.proven, "age": read.age,
        }));
    }
    lines.sort_by_key(|line| line.get("t").and_then(Value::as_u64));
    let log = history.log.iter();
    lines.extend(log.map(|commit| json!({"t": 0, "event": "log", "commit": commit})));
    lines
}

#[cfg(test)]
mod tests {
    use super::super::{Call, Expect, OpId, Outcome, Request, Write};
    use super::*;

    #[test]
    fn a_call_is_two_lines() {
        let history = History {
            calls: vec![Call {
                id: OpId {
                    client: 3,
                    number: 9,
                },
                request: Request::Commit {
                    checks: vec![("a".into(), Expect::At(4)), ("b".into(), Expect::Absent)],
                    writes: vec![
                        ("a".into(), Write::Put("v".into())),
                        ("b".into(), Write::Remove),
                    ],
                },
                invoked: 10,
                returned: 30,
                outcome: Outcome::Refused {
                    key: "a".into(),
                    actual: None,
                },
            }],
            ..History::default()
        };
        let text: Vec<_> = lines(&history).iter().map(Value::to_string).collect();
        assert_eq!(
            text,
            [
                r#"{"client":3,"event":"invoke","op":9,"request":{"commit":{"checks":[["a",{"at":4}],["b","absent"]],"writes":[["a",{"put":"v"}],["b","remove"]]}},"t":10}"#,
                r#"{"client":3,"event":"return","op":9,"outcome":{"refused":{"actual":null,"key":"a"}},"t":30}"#,
            ]
        );
    }
}
