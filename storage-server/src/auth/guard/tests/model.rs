//! The access rules and the storage behind them in their simplest form: lists, and loops over all of them.
//!
//! It says in words what a step tells; a test compares them with what the server's storage told. Nothing here uses what
//! is tested. Commits are numbered from 1 within a case, in the order in which they are made.

use std::collections::BTreeMap;

use storage_protocol::{Key, KeyRange};

use super::case::{Back, Case, Commit, KEYS, Mode, Op, PREFIXES, Rule, Scan, Start, Step, Who};

/// A key of the keyspace `system` that is there, if there is any rule.
pub(super) const ADMINISTRATOR: &str = "access/root";

pub(super) struct Model {
    keyspace: String,
    rules: Vec<Rule>,
    members: Vec<&'static str>,
    page: Vec<Vec<Rule>>,
    /// How many were made so far, those of rules among them.
    commits: usize,
    /// Whether the keyspace was made.
    exists: bool,
    /// What a key has, and by which commit.
    live: BTreeMap<Key, (String, usize)>,
    /// By which commit a key was removed.
    removed: BTreeMap<Key, usize>,
    history: Vec<Made>,
    watches: Vec<Option<Watching>>,
    scans: Vec<(Who, Scan, Vec<bool>, String)>,
}

/// A commit of the keyspace.
struct Made {
    number: usize,
    by: &'static str,
    /// Of each key, what is told of it.
    changes: Vec<(Key, String)>,
}

struct Watching {
    who: Who,
    range: KeyRange,
    mode: Mode,
    /// It tells what came behind this commit.
    start: usize,
    told: usize,
    /// What could be seen when it began.
    seen: Vec<bool>,
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|taken| glob(rest, &text[taken..])),
        [c, rest @ ..] => text.first() == Some(c) && glob(rest, &text[1..]),
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    glob(pattern.as_bytes(), text.as_bytes())
}

pub(super) fn quote(key: &[u8]) -> String {
    format!("\"{}\"", key.escape_ascii())
}

pub(super) fn stamped(prefix: &[u8], number: u64) -> Key {
    [prefix, &number.to_be_bytes()].concat().into()
}

/// The first key behind all that begin with this.
fn behind(prefix: &[u8]) -> Option<Key> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(end.into());
        }
    }
    None
}

/// Where what may be done can begin or end: between two of these keys it is the same for all of them.
fn points(range: &KeyRange) -> Vec<Key> {
    let mut points: Vec<Key> = PREFIXES.iter().map(|prefix| Key::from(*prefix)).collect();
    points.extend(
        PREFIXES
            .iter()
            .filter_map(|prefix| behind(prefix.as_bytes())),
    );
    points.push(range.start.clone());
    points.extend(range.end.clone());
    points
}

/// Whether a rule gives this, to whomever it is for.
fn gives(rule: &Rule, keyspace: &str, what: &str, key: &[u8]) -> bool {
    let is_system = keyspace == "system";
    let is_there =
        matches(rule.keyspace, keyspace) && (!is_system || rule.keyspace.starts_with("system"));
    let is_given = if is_system || what == "admin" {
        rule.allow.contains(&"admin") && rule.prefix.is_empty()
    } else {
        rule.allow.contains(&what) && key.starts_with(rule.prefix.as_bytes())
    };
    keyspace != "system.secrets" && is_there && is_given
}

impl Model {
    pub(super) fn new(keyspace: &str, case: &Case) -> Self {
        let mut page = vec![case.page.clone()];
        page.extend(case.parent.clone());
        Self {
            keyspace: keyspace.to_owned(),
            rules: case.rules.clone(),
            members: case.members.clone(),
            // A token without grants may do what its minter may.
            page: page.into_iter().filter(|rules| !rules.is_empty()).collect(),
            commits: 0,
            exists: false,
            live: BTreeMap::new(),
            removed: BTreeMap::new(),
            history: Vec::new(),
            watches: Vec::new(),
            scans: Vec::new(),
        }
    }

    /// Whether a principal may do this to a key of a keyspace.
    fn allows(&self, who: Who, keyspace: &str, what: &str, key: &[u8]) -> bool {
        if keyspace == "system.secrets" {
            return false;
        }
        let gives = |rule: &Rule| gives(rule, keyspace, what, key);
        let is_for = |rule: &Rule| match rule.subject {
            "role:r" => {
                let mut members = self.members.iter();
                members.any(|member| matches(member, who.principal()))
            }
            subject => matches(subject, who.principal()),
        };
        let by_rules =
            self.rules.is_empty() || self.rules.iter().any(|rule| is_for(rule) && gives(rule));
        let by_token = who != Who::Page || self.page.iter().all(|rules| rules.iter().any(gives));
        by_rules && by_token
    }

    /// The end of a denial that comes of a token's grants: one of those that it has gives none of these keys.
    fn by_its_token(&self, who: Who, keyspace: &str, what: &str, keys: &[Key]) -> &'static str {
        let gives = |rule: &Rule| keys.iter().any(|key| gives(rule, keyspace, what, key));
        match who == Who::Page && !self.page.iter().all(|rules| rules.iter().any(gives)) {
            true => " with this token, whose grants do not allow it",
            false => "",
        }
    }

    fn may(&self, who: Who, what: &str, key: &[u8]) -> bool {
        self.allows(who, &self.keyspace, what, key)
    }

    /// Whether it can learn what a key has, by any way.
    pub(super) fn sees(&self, who: Who, key: &[u8]) -> bool {
        self.may(who, "read", key) || self.may(who, "watch", key)
    }

    /// Which keys of a range it may do this to. Two that are equal are of the same keys.
    fn part(&self, who: Who, what: &str, range: &KeyRange) -> Vec<bool> {
        let is_in = |key: Key| range.contains(&key) && self.may(who, what, &key);
        points(range).into_iter().map(is_in).collect()
    }

    fn parts(&self, who: Who, what: &str, ranges: &[KeyRange]) -> Vec<bool> {
        let parts = ranges.iter().map(|range| self.part(who, what, range));
        parts.flatten().collect()
    }

    fn denied(&self, who: Who, what: &str, which: &str, keys: &[Key]) -> String {
        let keyspace = &self.keyspace;
        let by_token = self.by_its_token(who, keyspace, what, keys);
        let who = who.principal();
        format!("access denied: {who} may not {what} {which} of the keyspace {keyspace}{by_token}")
    }

    fn denied_range(&self, who: Who, what: &str, ranges: &[KeyRange]) -> String {
        let in_it = |range: &KeyRange| {
            let points = points(range).into_iter();
            points.filter(|key| range.contains(key)).collect::<Vec<_>>()
        };
        let keys: Vec<Key> = ranges.iter().flat_map(in_it).collect();
        self.denied(who, what, "any key of this range", &keys)
    }

    fn check<'a>(
        &self,
        who: Who,
        what: &str,
        keys: impl IntoIterator<Item = &'a Key>,
    ) -> Result<(), String> {
        for key in keys {
            if !self.may(who, what, key) {
                let which = format!("the key {}", quote(key));
                return Err(self.denied(who, what, &which, std::slice::from_ref(key)));
            }
        }
        Ok(())
    }

    fn number(&self, back: Back) -> usize {
        self.commits.saturating_sub(back.0)
    }

    /// Whether a watch may tell of this key.
    pub(super) fn may_be_told(&self, watch: usize, key: &[u8]) -> bool {
        let watch = self.watches.get(watch).and_then(Option::as_ref);
        watch.is_some_and(|watch| watch.range.contains(key) && self.may(watch.who, "watch", key))
    }

    /// What is told for a step.
    pub(super) fn step(&mut self, step: &Step) -> Vec<String> {
        match step {
            Step::Get(who, keys) => vec![self.get(*who, keys)],
            Step::Scan(who, scan) => vec![match self.begin_scan(*who, scan) {
                Ok(()) => self.scan(*who, scan),
                Err(denied) => denied,
            }],
            Step::BeginScan(who, scan) => vec![match self.begin_scan(*who, scan) {
                Ok(()) => {
                    let part = self.parts(*who, "read", &scan.ranges);
                    let told = self.scan(*who, scan);
                    self.scans.push((*who, scan.clone(), part, told));
                    "a scan begins".to_owned()
                }
                Err(denied) => denied,
            }],
            Step::Commit(who, commit) => {
                let made = self.commit(*who, commit);
                vec![made.unwrap_or_else(|refused| refused)]
            }
            Step::Other { ops, .. } => vec![self.apply("server", ops, false)],
            Step::Watch(who, range, mode, start) => vec![self.watch(*who, range, *mode, *start)],
            Step::Look => self.look(),
            Step::System(who) => self.system(*who),
            Step::Grant(rule) => {
                self.rules.push(rule.clone());
                vec![self.changed()]
            }
            Step::Revoke(place) => {
                if self.rules.is_empty() {
                    return Vec::new();
                }
                self.rules.remove(place % self.rules.len());
                vec![self.changed()]
            }
            Step::Members(members) => {
                self.members = members.clone();
                vec![self.changed()]
            }
        }
    }

    fn changed(&mut self) -> String {
        self.commits += 1;
        format!("commit {}", self.commits)
    }

    fn get(&self, who: Who, keys: &[Key]) -> String {
        if let Err(denied) = self.check(who, "read", keys) {
            return denied;
        }
        let entry = |key: &Key| match self.live.get(key) {
            Some((value, number)) => format!("{value}@{number}"),
            None => "-".to_owned(),
        };
        let entries: Vec<_> = keys.iter().map(entry).collect();
        format!("at {}: {}", self.commits, entries.join(" "))
    }

    fn begin_scan(&self, who: Who, scan: &Scan) -> Result<(), String> {
        let parts = self.parts(who, "read", &scan.ranges);
        let is_nothing = scan.ranges.iter().all(KeyRange::is_empty);
        match is_nothing || parts.contains(&true) {
            true => Ok(()),
            false => Err(self.denied_range(who, "read", &scan.ranges)),
        }
    }

    fn scan(&self, who: Who, scan: &Scan) -> String {
        let newer_than = scan.newer_than.map(|back| self.number(back));
        let mut items: Vec<(&Key, String)> = Vec::new();
        for (key, (value, number)) in &self.live {
            if newer_than.is_none_or(|position| *number > position) {
                let value = if scan.options.keys_only { "" } else { value };
                items.push((key, format!("{}={value}@{number}", quote(key))));
            }
        }
        for (key, number) in &self.removed {
            if newer_than.is_some_and(|position| *number > position) {
                items.push((key, format!("{} removed@{number}", quote(key))));
            }
        }
        let is_asked = |key: &Key| scan.ranges.iter().any(|range| range.contains(key));
        items.retain(|(key, _)| is_asked(key) && self.may(who, "read", key));
        items.sort();
        if scan.options.reverse {
            items.reverse();
        }
        let limit = scan.options.limit.unwrap_or(u64::MAX);
        items.truncate(usize::try_from(limit).unwrap());
        let items: Vec<_> = items.into_iter().map(|(_, item)| item).collect();
        format!("at {}: {}", self.commits, items.join(" "))
    }

    fn commit(&mut self, who: Who, commit: &Commit) -> Result<String, String> {
        let keys = || commit.ops.iter().map(Op::key);
        self.check(who, "write", keys())?;
        if !self.exists && !self.rules.is_empty() && !self.may(who, "admin", b"") {
            let keyspace = &self.keyspace;
            let by_token = self.by_its_token(who, keyspace, "admin", &[Key::new()]);
            let who = who.principal();
            return Err(format!(
                "access denied: the keyspace {keyspace} is not there, and {who} may not create it{by_token}: that needs \"admin\" \
                 of it"
            ));
        }
        self.check(who, "read", commit.checks.iter().map(|(key, _)| key))?;
        if commit.with_previous {
            self.check(who, "read", keys())?;
        }
        for (place, op) in commit.ops.iter().enumerate() {
            if op.key().is_empty() && !op.is_stamped() {
                return Err("a key has at least one byte".to_owned());
            }
            let is_same =
                |other: &Op| (other.key(), other.is_stamped()) == (op.key(), op.is_stamped());
            if commit.ops[..place].iter().any(is_same) {
                return Err(format!(
                    "key {} stands twice in one commit",
                    quote(op.key())
                ));
            }
        }
        for (key, expected) in &commit.checks {
            let actual = self.live.get(key).map(|(_, number)| *number);
            if actual != expected.map(|back| self.number(back)) {
                return Err(check_failed(key, actual));
            }
        }
        Ok(self.apply(who.principal(), &commit.ops, commit.with_previous))
    }

    fn apply(&mut self, by: &'static str, ops: &[Op], with_previous: bool) -> String {
        self.commits += 1;
        self.exists = true;
        let number = self.commits;
        let mut changes = Vec::new();
        for op in ops {
            let before = self.live.get(op.key()).map(|(value, _)| value.clone());
            let was = match &before {
                Some(before) if with_previous => format!(" was {before}"),
                _ => String::new(),
            };
            match op {
                Op::Put(key, value) => {
                    self.put(key.clone(), *value);
                    changes.push((key.clone(), format!("put {}=v{value}{was}", quote(key))));
                }
                Op::Remove(key) => {
                    if before.is_some() {
                        self.live.remove(key);
                        self.removed.insert(key.clone(), number);
                        changes.push((key.clone(), format!("removed {}{was}", quote(key))));
                    }
                }
                Op::Stamped(prefix, value) => {
                    let key = stamped(prefix, number as u64);
                    self.put(key.clone(), *value);
                    changes.push((key.clone(), format!("put {}=v{value}", quote(&key))));
                }
                Op::Signal(key, value) => {
                    changes.push((key.clone(), format!("signal {}=v{value}", quote(key))));
                }
            }
        }
        self.history.push(Made {
            number,
            by,
            changes,
        });
        format!("commit {number}")
    }

    fn put(&mut self, key: Key, value: u8) {
        self.removed.remove(&key);
        self.live.insert(key, (format!("v{value}"), self.commits));
    }

    fn watch(&mut self, who: Who, range: &KeyRange, mode: Mode, start: Start) -> String {
        let seen = self.part(who, "watch", range);
        if !range.is_empty() && !seen.contains(&true) {
            return self.denied_range(who, "watch", std::slice::from_ref(range));
        }
        let start = match start {
            Start::Now => self.commits,
            Start::Beginning => 0,
            Start::After(back) => self.number(back),
        };
        self.watches.push(Some(Watching {
            who,
            range: range.clone(),
            mode,
            start,
            told: start,
            seen,
        }));
        "a watch begins".to_owned()
    }

    fn look(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for place in 0..self.watches.len() {
            let Some(mut watch) = self.watches[place].take() else {
                continue;
            };
            if self.part(watch.who, "watch", &watch.range) != watch.seen {
                told.push(format!("watch {place}: {CHANGED}"));
                continue;
            }
            match watch.mode {
                Mode::Every => {
                    let made = self.history.iter().filter(|made| made.number > watch.told);
                    told.extend(made.filter_map(|made| {
                        let text = self.visible(&watch, made)?;
                        Some(format!("watch {place}: {text}"))
                    }));
                }
                Mode::Latest => {
                    let shown = self.live.iter().filter(|(key, (_, number))| {
                        watch.range.contains(key)
                            && self.may(watch.who, "watch", key)
                            && *number > watch.start
                    });
                    let shown =
                        shown.map(|(key, (value, at))| format!(" {}={value}@{at}", quote(key)));
                    let shown: String = shown.collect();
                    told.push(format!("watch {place}: state{shown}"));
                }
            }
            watch.told = self.commits;
            self.watches[place] = Some(watch);
        }
        for (who, scan, part, items) in std::mem::take(&mut self.scans) {
            told.push(match self.parts(who, "read", &scan.ranges) == part {
                true => items,
                false => CHANGED.to_owned(),
            });
        }
        told
    }

    /// What a watch tells of a commit.
    fn visible(&self, watch: &Watching, made: &Made) -> Option<String> {
        let is_seen = |key: &Key| watch.range.contains(key) && self.may(watch.who, "watch", key);
        let changes = made.changes.iter().filter(|(key, _)| is_seen(key));
        let changes: Vec<_> = changes.map(|(_, text)| text.as_str()).collect();
        let (number, by) = (made.number, made.by);
        (!changes.is_empty()).then(|| format!("commit {number} by {by}: {}", changes.join(", ")))
    }

    fn system(&self, who: Who) -> Vec<String> {
        let answer = |keyspace: &str, key: &str| match self.allows(who, keyspace, "read", b"") {
            true => "allowed".to_owned(),
            false => format!(
                "access denied: {} may not read the key \"{key}\" of the keyspace {keyspace}{}",
                who.principal(),
                self.by_its_token(who, keyspace, "read", &[Key::new()])
            ),
        };
        vec![
            answer("system", ADMINISTRATOR),
            answer("system.secrets", "keys"),
        ]
    }

    /// The keys of a case that it can never see while these steps are taken.
    pub(super) fn never_seen(case: &Case, who: Who) -> Vec<&'static [u8]> {
        let mut model = Self::new("m", case);
        let mut unseen = KEYS.to_vec();
        unseen.retain(|key| !model.sees(who, key));
        for step in &case.steps {
            if let Step::Grant(_) | Step::Revoke(_) | Step::Members(_) = step {
                model.step(step);
                unseen.retain(|key| !model.sees(who, key));
            }
        }
        unseen
    }
}

/// What a watch and a scan say when what may be told has changed.
const CHANGED: &str = "what may be read or watched has changed: begin again from the beginning";

pub(super) fn check_failed(key: &[u8], actual: Option<usize>) -> String {
    match actual {
        Some(number) => format!("check failed: {} is of commit {number}", quote(key)),
        None => format!("check failed: {} is absent", quote(key)),
    }
}
