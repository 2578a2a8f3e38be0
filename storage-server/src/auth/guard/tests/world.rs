//! A store with the server's access layer before it, and the steps of a case taken through it as gateways do.
//!
//! What is told is put into words, with each revision as the number of the commit that it is of, counted within the case.

#![expect(
    clippy::future_not_send,
    reason = "a world is used by one task; a scan cannot be shared"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use storage_protocol::{
    Batch, ChangeKind, CommitOptions, CommitRecord, EntryLifetime, KeyState, Lifetime, Revision,
    ScanOptions, StorageExt, WatchEvent, WatchOptions, WatchStart,
};
use tempfile::TempDir;

use super::super::*;
use super::case::{self, ALL, Back, Case, Mode, Op, Rule, Start, Step, Who};
use super::model::{ADMINISTRATOR, check_failed, quote, stamped};
use crate::audit::Audit;
use crate::auth::rules::SECRETS;
use crate::auth::system::{TokenRecord, rule_key, token_key};
use crate::auth::tokens::{Claims, UnixSeconds};
use crate::auth::{Configured, Principal, Proof, Secrets, now};
use crate::config::ServerConfig;
use crate::engine::rocks::{Durability, EngineOptions, RocksEngine};
use crate::shared::Shared;

/// For each wait; nothing here takes long.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A store and its access layer. Cases come one after the other, each in a keyspace of its own.
pub(super) struct World {
    shared: Arc<Shared>,
    /// The administrator, in `system`.
    root: Arc<dyn SessionStorage>,
    /// The server itself, there.
    own: Arc<dyn SessionStorage>,
    /// The rules and roles that are there.
    stored: Mutex<BTreeSet<Key>>,
    cases: AtomicU64,
    _folder: TempDir,
}

fn keyspace(name: &str) -> Keyspace {
    Keyspace::new(name).unwrap()
}

impl World {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions {
            disk_reserve_bytes: 0,
            durability: Durability::Os,
            ..EngineOptions::new(folder.path().join("data"))
        };
        let engine = RocksEngine::open(options).unwrap();
        let config = ServerConfig::embedded("unused", None, Vec::new());
        let shared =
            Shared::new(config, |_| {}, Configured::default(), engine, Audit::off()).unwrap();
        let secrets = shared.own_session(&keyspace(SECRETS)).storage();
        shared
            .access
            .set_secrets(Secrets::open(secrets).await.unwrap());
        shared.start_following(&shared.own_session(&keyspace(SYSTEM)).storage());
        shared.access.loaded().await;
        let root = Identity::vouched(Principal::stored("cert:root"));
        Self {
            root: shared.open_session(&root, &keyspace(SYSTEM)).storage(),
            own: shared.own_session(&keyspace(SYSTEM)).storage(),
            shared,
            stored: Mutex::default(),
            cases: AtomicU64::new(0),
            _folder: folder,
        }
    }

    /// The store at the start of a case.
    pub(super) async fn begin(&self, case: &Case) -> Run<'_> {
        let number = self.cases.fetch_add(1, Ordering::Relaxed);
        let name = keyspace(&format!("m{number}"));
        let mut run = Run {
            world: self,
            actors: Vec::new(),
            other: self.shared.own_session(&name).storage(),
            rules: case.rules.clone(),
            members: case.members.clone(),
            name,
            base: Position::default(),
            commits: Vec::new(),
            watches: Vec::new(),
            scans: Vec::new(),
            told: Vec::new(),
            tokens: 0,
        };
        let parent = match &case.parent {
            Some(grants) => Some(self.mint(grants, None).await),
            None => None,
        };
        let parent = parent.map(|(id, _)| id);
        let (_, page) = self.mint(&case.page, parent).await;
        // With its answer the tokens hold as well.
        run.set_rules().await;
        for who in ALL {
            let identity = match who {
                Who::Ann => {
                    let proof = Proof::Certificate {
                        chain: Vec::new(),
                        until: u64::MAX,
                        verified: AtomicU64::new(0),
                    };
                    Identity::new(Principal::stored("cert:ann"), proof)
                }
                Who::Page => self.shared.access.bearer(&page).unwrap(),
                Who::Bob => Identity::vouched(Principal::user("bob").unwrap()),
            };
            let session = self.shared.open_session(&identity, &run.name);
            run.actors.push(Actor {
                storage: session.storage(),
                identity,
                numbered: (who == Who::Ann).then_some(0),
            });
        }
        run.base = self.own.position();
        run.commits.clear();
        run
    }

    /// A token of Ann's for no more than this, and its id.
    async fn mint(&self, grants: &[Rule], parent: Option<String>) -> (String, String) {
        let issued = UnixSeconds(now());
        let claims = Claims::new("cert:ann", issued, HOUR).unwrap();
        let secrets = self.shared.access.secrets().unwrap();
        let token = secrets.sign(&claims, false).await.unwrap();
        let of_bearer = |rule: &Rule| {
            let rule = Rule {
                subject: "*",
                ..rule.clone()
            };
            crate::auth::rules::Rule::from_json(rule.json().as_bytes()).unwrap()
        };
        let record = TokenRecord {
            principal: "cert:ann".to_owned(),
            name: None,
            grants: grants.iter().map(of_bearer).collect(),
            issued: issued.0,
            expires: claims.exp.0,
            password_set: None,
            parent,
            certificates: Vec::new(),
        };
        let id = claims.jti.as_str().to_owned();
        let json = serde_json::to_vec(&record).unwrap();
        self.own.put(token_key(&id), json.into()).await.unwrap();
        (id, token)
    }
}

struct Actor {
    identity: Identity,
    storage: Arc<dyn SessionStorage>,
    /// The number of its last commit, if it numbers them.
    numbered: Option<u64>,
}

struct Watching {
    watch: Watch,
    mode: Mode,
    /// Of `Latest`: what the reader has.
    state: BTreeMap<Key, String>,
}

/// A case on its way.
pub(super) struct Run<'w> {
    world: &'w World,
    name: Keyspace,
    /// In the order of [`ALL`].
    actors: Vec<Actor>,
    other: Arc<dyn SessionStorage>,
    rules: Vec<Rule>,
    members: Vec<&'static str>,
    base: Position,
    /// The revision of each commit since then.
    commits: Vec<Revision>,
    watches: Vec<Option<Watching>>,
    scans: Vec<Scan>,
    /// Which watch has told of which key, since the test has last taken it.
    pub(super) told: Vec<(usize, Key)>,
    tokens: u64,
}

fn value(value: u8) -> Vec<u8> {
    format!("v{value}").into_bytes()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn batch(ops: &[Op]) -> Batch {
    let ops = ops.iter().cloned();
    ops.fold(Batch::new(), |batch, op| match op {
        Op::Put(key, v) => batch.put(key, value(v)),
        Op::Remove(key) => batch.remove(key),
        Op::Stamped(key, v) => batch.put_stamped(key, value(v), Lifetime::Forever),
        Op::Signal(key, v) => batch.signal(key, value(v)),
    })
}

impl Run<'_> {
    pub(super) fn keyspace(&self) -> &str {
        self.name.as_str()
    }

    fn actor(&self, who: Who) -> &Actor {
        &self.actors[who as usize]
    }

    fn number(&self, revision: Revision) -> usize {
        self.commits
            .iter()
            .filter(|made| **made <= revision)
            .count()
    }

    fn position(&self, back: Back) -> Position {
        let number = self.commits.len().saturating_sub(back.0);
        let revision = match number.checked_sub(1) {
            Some(place) => self.commits[place],
            None => self.base.revision,
        };
        Position {
            epoch: self.base.epoch,
            revision,
        }
    }

    /// A key with the number of its commit in the place of a stamp.
    fn key(&self, key: &Key) -> Key {
        match key.split_last_chunk() {
            None => key.clone(),
            Some((prefix, stamp)) => {
                let revision = Revision(u64::from_be_bytes(*stamp));
                stamped(prefix, self.number(revision) as u64)
            }
        }
    }

    fn error(&self, error: &StorageError) -> String {
        match error {
            StorageError::CheckFailed { key, actual } => {
                check_failed(key, actual.map(|revision| self.number(revision)))
            }
            error => error.to_string(),
        }
    }

    fn committed(&mut self, committed: Result<Position>) -> String {
        match committed {
            Ok(position) => {
                self.commits.push(position.revision);
                format!("commit {}", self.commits.len())
            }
            Err(error) => self.error(&error),
        }
    }

    /// What is told for a step.
    pub(super) async fn step(&mut self, step: &Step) -> Vec<String> {
        match step {
            Step::Get(who, keys) => vec![self.get(*who, keys).await],
            Step::Scan(who, scan) => vec![match self.begin_scan(*who, scan).await {
                Ok(scan) => self.items(scan).await,
                Err(error) => self.error(&error),
            }],
            Step::BeginScan(who, scan) => vec![match self.begin_scan(*who, scan).await {
                Ok(scan) => {
                    self.scans.push(scan);
                    "a scan begins".to_owned()
                }
                Err(error) => self.error(&error),
            }],
            Step::Commit(who, commit) => vec![self.commit(*who, commit).await],
            Step::Other { ops, .. } => {
                let made = self.other.commit(batch(ops), CommitOptions::default());
                let made = made.await;
                vec![self.committed(made)]
            }
            Step::Watch(who, range, mode, start) => {
                vec![self.watch(*who, range, *mode, *start).await]
            }
            Step::Look => self.look().await,
            Step::System(who) => self.system(*who).await,
            Step::Grant(rule) => {
                self.rules.push(rule.clone());
                vec![self.set_rules().await]
            }
            Step::Revoke(_) if self.rules.is_empty() => Vec::new(),
            Step::Revoke(place) => {
                self.rules.remove(place % self.rules.len());
                vec![self.set_rules().await]
            }
            Step::Members(members) => {
                self.members = members.clone();
                vec![self.set_rules().await]
            }
        }
    }

    /// Puts all rules and the role as they are to be, in one commit of the administrator.
    async fn set_rules(&mut self) -> String {
        let members = serde_json::json!({ "members": self.members }).to_string();
        let mut records = vec![(Key::from("roles/r"), members)];
        for (place, rule) in self.rules.iter().enumerate() {
            records.push((rule_key(&place.to_string()), rule.json()));
        }
        if !self.rules.is_empty() {
            let admin = r#"{"principal":"cert:root","keyspace":"system","allow":["admin"]}"#;
            records.push((Key::from(ADMINISTRATOR), admin.to_owned()));
        }
        let kept: BTreeSet<Key> = records.iter().map(|(key, _)| key.clone()).collect();
        let before = std::mem::replace(&mut *lock(&self.world.stored), kept.clone());
        let gone = before.difference(&kept).cloned();
        let put = gone.fold(Batch::new(), Batch::remove);
        let records = records.into_iter();
        let put = records.fold(put, |batch, (key, json)| batch.put(key, json));
        let (world, options) = (self.world, CommitOptions::default());
        let made = match self.rules.is_empty() {
            // The last rule goes by force alone.
            true => {
                let access = &world.shared.access;
                access.commit_by_force(&*world.own, put, options).await
            }
            false => world.root.commit(put, options).await,
        };
        self.committed(made)
    }

    async fn get(&self, who: Who, keys: &[Key]) -> String {
        let actor = self.actor(who);
        let read = match actor.numbered {
            Some(_) => actor.storage.get_into(keys, Arc::new(Unbounded)).await,
            None => actor.storage.get(keys).await,
        };
        match read {
            Err(error) => self.error(&error),
            Ok(reading) => {
                let entries = reading.value.iter().map(|entry| match entry {
                    Some(entry) => {
                        assert_eq!(entry.lifetime, EntryLifetime::Forever);
                        format!("{}@{}", text(&entry.value), self.number(entry.revision))
                    }
                    None => "-".to_owned(),
                });
                let entries: Vec<_> = entries.collect();
                let at = self.number(reading.position.revision);
                format!("at {at}: {}", entries.join(" "))
            }
        }
    }

    async fn begin_scan(&self, who: Who, scan: &case::Scan) -> Result<Scan> {
        let options = ScanOptions {
            newer_than: scan.newer_than.map(|back| self.position(back)),
            ..scan.options
        };
        let storage = &self.actor(who).storage;
        match &scan.ranges[..] {
            [range] if who != Who::Ann => storage.scan(range.clone(), options).await,
            ranges => {
                let room = Arc::new(Unbounded);
                storage.scan_into(ranges.to_vec(), options, room).await
            }
        }
    }

    async fn items(&self, scan: Scan) -> String {
        let at = self.number(scan.position().revision);
        let items = match scan.collect().await {
            Ok(items) => items,
            Err(error) => return self.error(&error),
        };
        let items: Vec<_> = items
            .iter()
            .map(|item| self.state(&item.key, &item.state))
            .collect();
        format!("at {at}: {}", items.join(" "))
    }

    fn state(&self, key: &Key, state: &KeyState) -> String {
        let (key, at) = (quote(&self.key(key)), self.number(state.revision()));
        match state {
            KeyState::Live(entry) => format!("{key}={}@{at}", text(&entry.value)),
            KeyState::Removed(_) => format!("{key} removed@{at}"),
        }
    }

    async fn commit(&mut self, who: Who, commit: &case::Commit) -> String {
        let mut made = batch(&commit.ops);
        for (key, expected) in &commit.checks {
            made = match expected {
                None => made.check_absent(key.clone()),
                Some(back) => made.check_revision(key.clone(), self.position(*back).revision),
            };
        }
        let options = CommitOptions {
            label: None,
            with_previous: commit.with_previous,
        };
        let actor = &mut self.actors[who as usize];
        let made = match &mut actor.numbered {
            None => actor.storage.commit(made, options).await,
            Some(number) => {
                *number += 1;
                actor.storage.commit_numbered(*number, made, options).await
            }
        };
        self.committed(made)
    }

    async fn watch(&mut self, who: Who, range: &KeyRange, mode: Mode, start: Start) -> String {
        let at = match start {
            Start::Now => WatchStart::Now,
            Start::Beginning => WatchStart::Beginning,
            Start::After(back) => WatchStart::After(self.position(back)),
        };
        let options = match mode {
            Mode::Every => WatchOptions::every(at),
            Mode::Latest => WatchOptions::latest(at),
        };
        let storage = &self.actor(who).storage;
        match storage.watch(range.clone(), options).await {
            Err(error) => self.error(&error),
            Ok(watch) => {
                self.watches.push(Some(Watching {
                    watch,
                    mode,
                    state: BTreeMap::new(),
                }));
                "a watch begins".to_owned()
            }
        }
    }

    async fn look(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for place in 0..self.watches.len() {
            let Some(mut watching) = self.watches[place].take() else {
                continue;
            };
            let look = self.look_at(place, &mut watching, &mut told);
            let is_over = tokio::time::timeout(PATIENCE, look).await;
            if !is_over.expect("a mark, or an end") {
                self.watches[place] = Some(watching);
            }
        }
        for scan in std::mem::take(&mut self.scans) {
            told.push(self.items(scan).await);
        }
        told
    }

    /// All that a watch tells up to now; whether it is over.
    async fn look_at(
        &mut self,
        place: usize,
        watching: &mut Watching,
        told: &mut Vec<String>,
    ) -> bool {
        self.tokens += 1;
        let asked = Some(self.tokens);
        watching.watch.request_progress(self.tokens);
        loop {
            let event = match watching.watch.next().await {
                Ok(event) => event.expect("it ends with an error"),
                Err(error) => {
                    told.push(format!("watch {place}: {}", self.error(&error)));
                    return true;
                }
            };
            match event {
                WatchEvent::Progress { token, .. } if token == asked => break,
                WatchEvent::Progress { .. } => {}
                WatchEvent::Commit(record) => {
                    let keys = record
                        .changes
                        .iter()
                        .map(|change| (place, change.key.clone()));
                    self.told.extend(keys);
                    told.push(format!("watch {place}: {}", self.record(&record)));
                }
                WatchEvent::State { key, state } => {
                    self.told.push((place, key.clone()));
                    let shown = self.state(&key, &state);
                    match state {
                        KeyState::Live(_) => drop(watching.state.insert(key, shown)),
                        KeyState::Removed(_) => drop(watching.state.remove(&key)),
                    }
                }
                WatchEvent::Reset => watching.state.clear(),
                event => panic!("{event:?}"),
            }
        }
        if watching.mode == Mode::Latest {
            let state = watching.state.values().map(|shown| format!(" {shown}"));
            told.push(format!("watch {place}: state{}", state.collect::<String>()));
        }
        false
    }

    fn record(&self, record: &CommitRecord) -> String {
        let was = |previous: &Option<storage_protocol::Value>| match previous {
            Some(previous) => format!(" was {}", text(previous)),
            None => String::new(),
        };
        let changes = record.changes.iter().map(|change| {
            let key = quote(&self.key(&change.key));
            match &change.kind {
                ChangeKind::Put {
                    value, previous, ..
                } => format!("put {key}={}{}", text(value), was(previous)),
                ChangeKind::Removed { previous } => format!("removed {key}{}", was(previous)),
                ChangeKind::Signalled { bytes } => format!("signal {key}={}", text(bytes)),
            }
        });
        let changes: Vec<_> = changes.collect();
        let (number, by) = (self.number(record.revision), &record.principal);
        format!("commit {number} by {by}: {}", changes.join(", "))
    }

    async fn system(&self, who: Who) -> Vec<String> {
        let mut told = Vec::new();
        for (name, key) in [(SYSTEM, ADMINISTRATOR), (SECRETS, "keys")] {
            let identity = &self.actor(who).identity;
            let session = self.world.shared.open_session(identity, &keyspace(name));
            let read = session.storage().get_one(key.into()).await;
            told.push(match read {
                Ok(_) => "allowed".to_owned(),
                Err(error) => self.error(&error),
            });
        }
        told
    }
}
