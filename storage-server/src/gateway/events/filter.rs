//! What a client says: `register FILTER` and `deregister FILTER`; and which events a filter is for.
//!
//! A filter has three positions, `TYPE.ACTION.KEY`, split at the first two dots, so that a key may have dots. Each is `*`
//! or a list of names with commas between them; white space around a name does not count. In a name `\1`, `\2` and `\3`
//! stand for a dot, a comma and a star. Names are compared exactly, upper and lower case differ.
//!
//! Nothing here knows a socket: a text becomes a [`Command`] or a [`CommandError`], in time and memory proportional to it.

use storage_protocol::{Key, KeyRange, Position};

/// The longest command, in bytes.
pub(crate) const COMMAND_BYTES_MAX: usize = 64 << 10;
/// What a name in a list takes beside its text, in bytes: what [`Filter::cost`] counts for it.
const NAME_BYTES: usize = 64;
/// The word before the position of a replay.
const SINCE: &str = "since=";

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Events that match from now on; with `since` first those after it.
    Register {
        /// Which.
        filter: Filter,
        /// Where a replay begins.
        since: Option<Since>,
    },
    /// No more for the registration with this very text.
    Deregister {
        /// Which.
        filter: Filter,
    },
}

/// A place in the history, as a client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// A revision of the present history.
    Revision(u64),
    /// A revision of a history that is named.
    Position(Position),
}

/// Why a text is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("a command has {0} bytes, at most {COMMAND_BYTES_MAX} are taken (command_bytes_max)")]
    TooLong(usize),
    #[error("a command is: register TYPE.ACTION.KEY, or: deregister TYPE.ACTION.KEY")]
    UnknownVerb,
    #[error("there is no filter: TYPE.ACTION.KEY, each a name, a list a,b or *")]
    NoFilter,
    #[error("a filter has three parts with dots between them: TYPE.ACTION.KEY")]
    ShortFilter,
    #[error("since= takes a revision, or a position EPOCH:REVISION")]
    BadSince,
    #[error("deregister takes no since=")]
    SinceWithoutRegister,
}

/// Reads a command.
///
/// # Errors
/// [`CommandError`].
pub(crate) fn parse_command(text: &str) -> Result<Command, CommandError> {
    if text.len() > COMMAND_BYTES_MAX {
        return Err(CommandError::TooLong(text.len()));
    }
    let text = text.trim();
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let is_register = match verb {
        "register" => true,
        "deregister" => false,
        _ => return Err(CommandError::UnknownVerb),
    };
    let (filter, since) = split_since(rest)?;
    let filter = Filter::parse(filter)?;
    match (is_register, since) {
        (true, since) => Ok(Command::Register { filter, since }),
        (false, None) => Ok(Command::Deregister { filter }),
        (false, Some(_)) => Err(CommandError::SinceWithoutRegister),
    }
}

/// Cuts the last word off if it says where a replay begins.
fn split_since(text: &str) -> Result<(&str, Option<Since>), CommandError> {
    let Some((filter, since)) = text.rsplit_once(' ') else {
        return Ok((text, None));
    };
    let Some(since) = since.strip_prefix(SINCE) else {
        return Ok((text, None));
    };
    let is_number = !since.is_empty() && since.bytes().all(|byte| byte.is_ascii_digit());
    let since = match is_number {
        true => since.parse().ok().map(Since::Revision),
        false => since.parse().ok().map(Since::Position),
    };
    let since = since.ok_or(CommandError::BadSince)?;
    Ok((filter.trim_end(), Some(since)))
}

/// Which events are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    text: String,
    types: Names,
    actions: Names,
    keys: Names,
}

impl Filter {
    /// # Errors
    /// [`CommandError::NoFilter`] and [`CommandError::ShortFilter`].
    pub(crate) fn parse(text: &str) -> Result<Self, CommandError> {
        if text.trim().is_empty() {
            return Err(CommandError::NoFilter);
        }
        let mut parts = text.splitn(3, '.');
        let (Some(types), Some(actions), Some(keys)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(CommandError::ShortFilter);
        };
        Ok(Self {
            text: text.to_owned(),
            types: Names::parse(types),
            actions: Names::parse(actions),
            keys: Names::parse(keys),
        })
    }

    /// As it was sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is for an event. `actions`: all words that its action goes by.
    pub(crate) fn matches(&self, kind: &str, actions: &[&str], key: &str) -> bool {
        self.has_key(kind, key) && actions.iter().any(|action| self.actions.have(action))
    }

    /// Whether it is for events of this object, by the one action or the other.
    pub(crate) fn has_key(&self, kind: &str, key: &str) -> bool {
        self.keys.have(key) && self.types.have(kind)
    }

    /// The smallest range with the keys `TYPE/KEY` of all events that it can be for. `None`: there are none, since its
    /// keys are longer than `key_bytes_max`.
    pub(crate) fn range(&self, key_bytes_max: usize) -> Option<KeyRange> {
        let Names::Listed(types) = &self.types else {
            return Some(KeyRange::all());
        };
        // A type is what stands before the first slash.
        let types = types.iter().filter(|kind| !kind.contains('/'));
        let ranges = types.flat_map(|kind| match &self.keys {
            Names::All => vec![KeyRange::prefix(format!("{kind}/"))],
            // They are sorted, so all others lie between these two.
            Names::Listed(keys) => [keys.first(), keys.last()]
                .into_iter()
                .flatten()
                .map(|key| KeyRange::single(format!("{kind}/{key}")))
                .collect(),
        });
        ranges
            .filter_map(|range| within(range, key_bytes_max))
            .reduce(|a, b| hull(&a, &b))
    }

    /// What it counts in the memory that the registrations of a socket may take, in bytes.
    pub(crate) fn cost(&self) -> usize {
        let names = [&self.types, &self.actions, &self.keys];
        self.text.len() + names.map(Names::cost).into_iter().sum::<usize>()
    }
}

/// The smallest range with both.
pub(crate) fn hull(a: &KeyRange, b: &KeyRange) -> KeyRange {
    KeyRange {
        start: a.start.clone().min(b.start.clone()),
        end: match (&a.end, &b.end) {
            (Some(a), Some(b)) => Some(a.clone().max(b.clone())),
            _ => None,
        },
    }
}

/// A range with the same keys of at most this length, and bounds that a watch takes. `None` if there are no such keys.
fn within(range: KeyRange, key_bytes_max: usize) -> Option<KeyRange> {
    let cut = |key: &Key| key.slice(..key.len().min(key_bytes_max));
    let KeyRange { start, end } = &range;
    if start.len() <= key_bytes_max {
        return Some(range);
    }
    // The bounds of a key that is too long. As one of several names it stands for those between.
    let end = end.as_ref().and_then(|end| KeyRange::prefix(cut(end)).end);
    let start = cut(start);
    Some(KeyRange { start, end })
}

/// One position of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    All,
    /// Sorted, each once.
    Listed(Box<[Box<str>]>),
}

impl Names {
    fn parse(text: &str) -> Self {
        let names = text.split(',').map(str::trim);
        if names.clone().any(|name| name == "*") {
            return Self::All;
        }
        let mut names: Vec<Box<str>> = names.map(unescaped).collect();
        names.sort_unstable();
        names.dedup();
        Self::Listed(names.into())
    }

    fn have(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(names) => names
                .binary_search_by(|listed| listed.as_ref().cmp(name))
                .is_ok(),
        }
    }

    fn cost(&self) -> usize {
        match self {
            Self::All => 0,
            Self::Listed(names) => names.iter().map(|name| name.len() + NAME_BYTES).sum(),
        }
    }
}

fn unescaped(name: &str) -> Box<str> {
    if !name.contains('\\') {
        return name.into();
    }
    // One pass: what an escape stands for is not looked at again.
    let mut plain = String::with_capacity(name.len());
    let mut rest = name.chars();
    while let Some(c) = rest.next() {
        let escaped = match (c, rest.as_str().bytes().next()) {
            ('\\', Some(b'1')) => '.',
            ('\\', Some(b'2')) => ',',
            ('\\', Some(b'3')) => '*',
            _ => {
                plain.push(c);
                continue;
            }
        };
        plain.push(escaped);
        rest.next();
    }
    plain.into()
}

#[cfg(test)]
mod tests;
