//! `quota`: how much a principal, or a keyspace, may store, send and hold open.

use clap::{ArgGroup, Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use storage_client::http::Method;

use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::output::Output;
use crate::size;
use crate::warnings;

const EXAMPLES: &str = "\
Examples:
  storage quota set tenant-a --keyspace tenant-a --bytes 10GiB --entries 1000000
  storage quota set robots --principal 'cert:robot-*' --commits-per-second 100 --bytes-per-second 1MiB --sessions 10
  storage quota set operators --principal role:operators --watches 1000
  storage quota list
  storage quota usage tenant-a
  storage quota rm robots

A quota holds for each principal or keyspace that it matches by itself; where several match, the smallest number holds. Bytes and
entries are counted for keyspaces alone: give each tenant one. Needs admin of the keyspace \"system\", to which the URL need not
lead.";

/// The longest name of a quota, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Shows and changes quotas
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Quota {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Set(Set),
    /// Prints NAME<TAB>PRINCIPAL or keyspace KEYSPACE<TAB>LIMITS lines, with what is used where it is known
    List,
    /// Prints what a keyspace holds, and what it may have by all quotas together
    Usage {
        /// Keyspace
        keyspace: String,
    },
    /// Removes a quota
    Rm {
        /// Quota, as `quota list` has it
        name: String,
    },
}

const SET_EXAMPLES: &str = "\
Examples:
  storage quota set tenant-a --keyspace tenant-a --bytes 10GiB --entries 1000000
  storage quota set robots --principal 'cert:robot-*' --commits-per-second 100 --sessions 10

Takes the place of the quota of this name, with all its limits. It holds at once; what is above a limit already stays, and
nothing is added. That it limits nothing is told on stderr. Sizes are numbers of bytes, or such as 64KiB, 10MiB, 1GiB.";

/// Stores a quota
#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
#[command(group(ArgGroup::new("target").required(true).args(["principal", "keyspace"])))]
#[command(group(ArgGroup::new("limit").required(true).multiple(true).args([
    "bytes", "entries", "commits_per_second", "bytes_per_second", "sessions", "watches",
])))]
struct Set {
    /// Name of the quota
    name: String,
    /// For each of these: cert:NAME, user:NAME, anonymous, or role:NAME; * stands for any characters (not in role:NAME)
    #[arg(long, value_name = "P")]
    principal: Option<String>,
    /// For each of these keyspaces, whoever uses them; * stands for any characters
    #[arg(long, value_name = "K")]
    keyspace: Option<String>,
    /// Bytes of the keys and values that a keyspace holds
    #[arg(long, value_name = "N", value_parser = size::parse, conflicts_with = "principal")]
    bytes: Option<u64>,
    /// Entries that a keyspace holds
    #[arg(long, value_name = "N", conflicts_with = "principal")]
    entries: Option<u64>,
    /// Commits in a second
    #[arg(long, value_name = "N")]
    commits_per_second: Option<u64>,
    /// Bytes of commits in a second
    #[arg(long, value_name = "N", value_parser = size::parse)]
    bytes_per_second: Option<u64>,
    /// Sessions at a time
    #[arg(long, value_name = "N")]
    sessions: Option<u64>,
    /// Watches at a time
    #[arg(long, value_name = "N")]
    watches: Option<u64>,
}

impl Set {
    /// As the server takes it.
    fn record(&self) -> Value {
        let text = |text: &Option<String>| text.clone().map(Value::from);
        let number = |number: Option<u64>| number.map(Value::from);
        let fields = [
            ("principal", text(&self.principal)),
            ("keyspace", text(&self.keyspace)),
            ("bytes", number(self.bytes)),
            ("entries", number(self.entries)),
            ("commits_per_second", number(self.commits_per_second)),
            ("bytes_per_second", number(self.bytes_per_second)),
            ("sessions", number(self.sessions)),
            ("watches", number(self.watches)),
        ];
        let fields = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(fields.collect())
    }
}

/// Where a quota comes from.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Origin {
    /// The configuration, of which it is this one.
    Config(u64),
    /// The store, under this name.
    Name(String),
}

/// What a quota says: what it is for, and limits. A newer server may have others.
#[derive(Debug, Deserialize)]
struct Record {
    principal: Option<String>,
    keyspace: Option<String>,
    #[serde(flatten)]
    limits: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    from: Origin,
    quota: Record,
    /// What a keyspace holds, where the quota is for one.
    #[serde(default)]
    usage: Map<String, Value>,
}

impl Listed {
    fn line(&self) -> String {
        let name = match &self.from {
            Origin::Config(place) => format!("quota[{place}] of the configuration"),
            Origin::Name(name) => escape::field(name.as_bytes(), false).into_owned(),
        };
        let whom = match (&self.quota.principal, &self.quota.keyspace) {
            (Some(principal), _) => principal.clone(),
            (None, keyspace) => format!("keyspace {}", keyspace.as_deref().unwrap_or_default()),
        };
        let whom = escape::text(whom.as_bytes());
        format!(
            "{name}\t{whom}\t{}",
            limits(&self.quota.limits, &self.usage)
        )
    }
}

/// Limits on a line, each with what is used of it: `bytes=5/10GiB sessions=10`.
fn limits(limits: &Map<String, Value>, used: &Map<String, Value>) -> String {
    let one = |(name, limit): (&String, &Value)| {
        let used = used.get(name).map(|used| format!("{used}/"));
        let limit = match limit.as_u64() {
            Some(bytes) if name.starts_with("bytes") => size::shown(bytes),
            _ => limit.to_string(),
        };
        let text = format!("{name}={}{limit}", used.unwrap_or_default());
        escape::text(text.as_bytes()).into_owned()
    };
    let all: Vec<String> = limits.iter().map(one).collect();
    all.join(" ")
}

impl Quota {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        match self.command {
            Command::Set(set) => {
                check_name(&set.name)?;
                let quota = set.record();
                let path = api::path(&["quotas", &set.name]);
                let api = Api::open(app).await?;
                api.change(Method::PUT, &path, Some(&quota)).await?;
                show(
                    app,
                    out,
                    &json!({ "from": { "name": set.name }, "quota": quota }),
                )?;
                out.flush()?;
                warnings::tell_of(&api, "quotas", "quota", &set.name).await;
                Ok(Exit::Done)
            }
            Command::List => list(app, out).await,
            Command::Usage { keyspace } => usage_of(app, out, &keyspace).await,
            Command::Rm { name } => {
                check_name(&name)?;
                let api = Api::open(app).await?;
                let path = api::path(&["quotas", &name]);
                api.change(Method::DELETE, &path, None).await?;
                Ok(Exit::Done)
            }
        }
    }
}

/// What the server takes as a name, to be said before anything is changed.
fn check_name(name: &str) -> anyhow::Result<()> {
    match (1..=NAME_BYTES_MAX).contains(&name.len()) {
        true => Ok(()),
        false => Err(usage(format!(
            "the name of a quota has 1 to {NAME_BYTES_MAX} bytes"
        ))),
    }
}

fn show(app: &App, out: &mut Output, listed: &Value) -> anyhow::Result<()> {
    match app.json() {
        true => out.line(&escape::json_value(listed)),
        false => out.line(&api::read::<Listed>(listed)?.line()),
    }
}

async fn list(app: &App, out: &mut Output) -> anyhow::Result<Exit> {
    let api = Api::open(app).await?;
    let answer = api.ask(&api::path(&["quotas"])).await?;
    for quota in api::list(&answer, "quotas")? {
        show(app, out, quota)?;
    }
    out.flush()?;
    warnings::tell_all(&answer);
    Ok(Exit::Done)
}

async fn usage_of(app: &App, out: &mut Output, keyspace: &str) -> anyhow::Result<Exit> {
    #[derive(Deserialize)]
    struct Answer {
        usage: Map<String, Value>,
        limits: Map<String, Value>,
    }
    let api = Api::open(app).await?;
    let path = api::with_query(&api::path(&["usage"]), &[("keyspace", keyspace.as_bytes())]);
    let answer = api.ask(&path).await?;
    if app.json() {
        out.line(&escape::json_value(&answer))?;
        return Ok(Exit::Done);
    }
    let Answer { usage, limits } = api::read(&answer)?;
    for (name, used) in &usage {
        let text = match limits.get(name) {
            Some(limit) => format!("{name}: {used} of {limit}"),
            None => format!("{name}: {used}"),
        };
        out.line(&escape::text(text.as_bytes()))?;
    }
    for (name, limit) in limits.iter().filter(|(name, _)| !usage.contains_key(*name)) {
        out.line(&escape::text(format!("{name}: at most {limit}").as_bytes()))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        set: Set,
    }

    fn parse(arguments: &str) -> Result<Value, String> {
        let line = Line::try_parse_from(["set"].into_iter().chain(arguments.split(' ')));
        line.map(|line| line.set.record())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_quota_is_what_was_said_and_nothing_else() {
        assert_eq!(
            parse("n --keyspace t-* --bytes 10GiB --entries 5").unwrap(),
            json!({ "keyspace": "t-*", "bytes": 10u64 << 30, "entries": 5 })
        );
        assert_eq!(
            parse(
                "n --principal cert:a --commits-per-second 3 --bytes-per-second 1KiB --watches 2"
            )
            .unwrap(),
            json!({ "principal": "cert:a", "commits_per_second": 3, "bytes_per_second": 1024, "watches": 2 })
        );
        for bad in [
            "n --principal cert:a",
            "n --sessions 1",
            "n --principal a --keyspace b --sessions 1",
            "n --principal a --bytes 1",
            "n --principal a --entries 1",
            "n --keyspace a --bytes 1GB",
            "n --keyspace a --sessions x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_has_the_limits_and_what_is_used_of_them() {
        let listed: Listed = serde_json::from_value(json!({
            "from": { "name": "t" },
            "quota": { "keyspace": "t", "bytes": 1u64 << 20, "entries": 7, "new_one": 3 },
            "usage": { "bytes": 5, "entries": 2 },
        }))
        .unwrap();
        assert_eq!(
            listed.line(),
            "t\tkeyspace t\tbytes=5/1MiB entries=2/7 new_one=3"
        );
        let listed: Listed = serde_json::from_value(json!({
            "from": { "config": 0 },
            "quota": { "principal": "role:x", "sessions": 1 },
        }))
        .unwrap();
        assert_eq!(
            listed.line(),
            "quota[0] of the configuration\trole:x\tsessions=1"
        );
    }
}
