//! A keyspace in memory behind a WebSocket, on a thread of its own.
//!
//! Enough of the contract for the command: get, scans in pages, commits with checks, both kinds of watch, probes; no
//! expiry and no sessions. [`Fault`]s are taken in order by the commits that come, [`Whim`]s stay.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use storage_protocol::native::{
    Class, ClientMessage, Outbox, Reassembler, RequestId, SUBPROTOCOL, ServerMessage, VERSION,
    WatchRequest, Welcome,
};
use storage_protocol::{
    Batch, Change, ChangeKind, CommitOptions, CommitRecord, Entry, EntryLifetime, Epoch, Expected,
    Key, KeyRange, KeyState, Lifetime, Limits, Operation, Position, Revision, Scan, ScanItem,
    ScanOptions, SessionId, StorageError, UnixMillis, WatchMode, WatchStart,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

use crate::run::{self, PATIENCE, Ran};

pub(crate) const EPOCH: Epoch = Epoch(0xe);

/// The clock of this server stands.
pub(crate) const TIME: UnixMillis = UnixMillis(1_700_000_000_000);

/// The same in HTTP's form.
const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

/// Long enough for a command to send what it may meanwhile.
const LATE: Duration = Duration::from_millis(300);

/// Entries on a page of a scan: few, so that tests see many pages.
const PAGE_ITEMS: usize = 3;

/// What becomes of a commit.
pub(crate) enum Fault {
    /// Nothing but what it should.
    None,
    /// It is answered by this.
    Error(StorageError),
    /// The same, after a while in which others came to be on their way.
    LateError(StorageError),
    /// It is carried out, and the connection breaks instead of an answer.
    Lost,
    /// It is not answered.
    Silent,
}

/// What a server does that means no good, from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whim {
    /// A further page of a scan never comes.
    SilentPages,
    /// A further page of a scan comes when [`Server::let_pages_go`] says so.
    HeldPages,
    /// A watch is not answered.
    SilentWatches,
}

struct State {
    epoch: Epoch,
    whim: Option<Whim>,
    /// Scans that wait for their next page.
    held_pages: usize,
    entries: BTreeMap<Key, Entry>,
    log: Vec<Arc<CommitRecord>>,
    revision: u64,
    faults: VecDeque<Fault>,
    limits: Limits,
}

/// A server. It ends with the process.
pub(crate) struct Server {
    url: String,
    shared: Arc<Shared>,
    state: Arc<Mutex<State>>,
}

struct Shared {
    state: Arc<Mutex<State>>,
    commits: broadcast::Sender<Arc<CommitRecord>>,
    /// Each connection ends when it changes.
    cuts: watch::Sender<u64>,
    pages: Semaphore,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::of_epoch(EPOCH)
    }

    /// A store with a history of its own.
    pub(crate) fn of_epoch(epoch: Epoch) -> Self {
        let state = Arc::new(Mutex::new(State {
            epoch,
            whim: None,
            held_pages: 0,
            entries: BTreeMap::new(),
            log: Vec::new(),
            revision: 100,
            faults: VecDeque::new(),
            limits: Limits::default(),
        }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: state.clone(),
            commits: broadcast::channel(1_000).0,
            cuts: watch::channel(0).0,
            pages: Semaphore::new(0),
        });
        let served = shared.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(serve(listener, served));
        });
        Self {
            url: format!("ws://127.0.0.1:{port}/storage/models"),
            shared,
            state,
        }
    }

    /// With these entries, written by one commit.
    pub(crate) fn with(entries: &[(&'static str, &'static str)]) -> Self {
        let server = Self::start();
        let batch = entries
            .iter()
            .fold(Batch::new(), |batch, (key, value)| batch.put(*key, *value));
        let record = server.state.lock().unwrap().apply(&batch, None);
        record.unwrap();
        server
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.state.lock().unwrap().faults.push_back(fault);
    }

    pub(crate) fn whim(&self, whim: Whim) {
        self.state.lock().unwrap().whim = Some(whim);
    }

    /// Waits until so many scans are held, and lets them all go on.
    pub(crate) fn let_pages_go(&self, scans: usize) {
        self.wait_until(|state| state.held_pages == scans);
        self.shared.pages.add_permits(1_000);
    }

    /// Breaks all connections, and takes new ones.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub(crate) fn limits(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.state.lock().unwrap().limits);
    }

    pub(crate) fn insert(&self, key: &'static [u8], value: &'static [u8], lifetime: EntryLifetime) {
        let entry = Entry {
            value: value.into(),
            revision: Revision(100),
            lifetime,
        };
        let mut state = self.state.lock().unwrap();
        state.entries.insert(Key::from_static(key), entry);
    }

    /// All entries as text.
    pub(crate) fn entries(&self) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let state = self.state.lock().unwrap();
        let entries = state.entries.iter();
        entries
            .map(|(key, entry)| (text(key), text(&entry.value)))
            .collect()
    }

    /// Forgets all entries, without a commit.
    pub(crate) fn clear(&self) {
        self.state.lock().unwrap().entries.clear();
    }

    /// The commits so far, each as the keys it changed.
    pub(crate) fn commits(&self) -> Vec<Vec<String>> {
        let state = self.state.lock().unwrap();
        let keys = |record: &Arc<CommitRecord>| {
            let changes = record.changes.iter();
            changes
                .map(|change| String::from_utf8_lossy(&change.key).into_owned())
                .collect()
        };
        state.log.iter().map(keys).collect()
    }

    pub(crate) fn revision(&self) -> u64 {
        self.state.lock().unwrap().revision
    }

    /// Waits until all faults are taken.
    pub(crate) fn wait_for_faults(&self) {
        self.wait_until(|state| state.faults.is_empty());
    }

    pub(crate) fn wait_for_revision(&self, revision: u64) {
        self.wait_until(|state| state.revision >= revision);
    }

    fn wait_until(&self, holds: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.state.lock().unwrap()) {
            assert!(Instant::now() < deadline, "it does not come");
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = run::command(&["--danger-plaintext"]);
        command.args(arguments).env("STORAGE_URL", &self.url);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        run::finish(self.command(arguments).spawn().unwrap())
    }
}

impl State {
    fn apply(
        &mut self,
        batch: &Batch,
        label: Option<String>,
    ) -> Result<Arc<CommitRecord>, StorageError> {
        for check in &batch.checks {
            let actual = self.entries.get(&check.key).map(|entry| entry.revision);
            let expected = match check.expected {
                Expected::Absent => None,
                Expected::At(revision) => Some(revision),
            };
            if actual != expected {
                let key = check.key.clone();
                return Err(StorageError::CheckFailed { key, actual });
            }
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        let mut changes = Vec::new();
        for operation in &batch.operations {
            let key = operation.key().clone();
            let kind = match operation {
                Operation::Put {
                    value, lifetime, ..
                } => {
                    let value = value.clone();
                    let lifetime = match lifetime {
                        Lifetime::Forever => EntryLifetime::Forever,
                        Lifetime::TimeToLive(time) => EntryLifetime::Until(TIME.after(*time)),
                        Lifetime::Session => EntryLifetime::Session,
                    };
                    let entry = Entry {
                        value: value.clone(),
                        revision,
                        lifetime,
                    };
                    self.entries.insert(key.clone(), entry);
                    ChangeKind::Put {
                        value,
                        lifetime,
                        previous: None,
                    }
                }
                Operation::Remove { .. } => {
                    if self.entries.remove(&key).is_none() {
                        continue;
                    }
                    ChangeKind::Removed { previous: None }
                }
                Operation::PutStamped { .. } | Operation::Signal { .. } => continue,
            };
            changes.push(Change { key, kind });
        }
        let principal = "cert:writer".to_owned();
        let record = Arc::new(CommitRecord::new(revision, TIME, label, principal, changes));
        self.log.push(record.clone());
        Ok(record)
    }

    fn scan(&self, range: &KeyRange, options: ScanOptions) -> Vec<ScanItem> {
        let inside = self.entries.iter().filter(|(key, _)| range.contains(key));
        let mut items: Vec<ScanItem> = inside
            .map(|(key, entry)| {
                let mut entry = entry.clone();
                if options.keys_only {
                    entry.value = Key::new();
                }
                let (key, state) = (key.clone(), KeyState::Live(entry));
                ScanItem { key, state }
            })
            .collect();
        if options.reverse {
            items.reverse();
        }
        items.truncate(
            options
                .limit
                .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap()),
        );
        items
    }

    fn position(&self) -> Position {
        let (epoch, revision) = (self.epoch, Revision(self.revision));
        Position { epoch, revision }
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let shared = shared.clone();
        tokio::spawn(async move {
            if let Ok(ws) = tokio_tungstenite::accept_hdr_async(tcp, negotiate).await {
                let commits = shared.commits.subscribe();
                Connection::new(ws, shared).run(commits).await;
            }
        });
    }
}

#[expect(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the signature is the library's"
)]
fn negotiate(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let headers = response.headers_mut();
    headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    headers.insert("date", DATE.parse().unwrap());
    Ok(response)
}

struct Connection {
    ws: WebSocketStream<TcpStream>,
    shared: Arc<Shared>,
    reassembler: Reassembler,
    /// The rest of each open scan.
    scans: BTreeMap<u64, Vec<ScanItem>>,
    watches: Vec<(RequestId, WatchRequest)>,
}

/// The connection is over.
struct Over;

impl Connection {
    fn new(ws: WebSocketStream<TcpStream>, shared: Arc<Shared>) -> Self {
        Self {
            ws,
            shared,
            reassembler: Reassembler::new(Limits::FRAME_BYTES, 64 << 20),
            scans: BTreeMap::new(),
            watches: Vec::new(),
        }
    }

    async fn run(mut self, mut commits: broadcast::Receiver<Arc<CommitRecord>>) {
        let mut cuts = self.shared.cuts.subscribe();
        loop {
            let done = tokio::select! {
                _ = cuts.changed() => Err(Over),
                message = self.ws.next() => match message {
                    Some(Ok(Message::Binary(frame))) => {
                        match self.reassembler.accept(frame, Instant::now()).unwrap() {
                            Some(packet) => {
                                let id = packet.id;
                                self.answer(id, ClientMessage::decode(packet).unwrap()).await
                            }
                            None => Ok(()),
                        }
                    }
                    Some(Ok(_)) => Ok(()),
                    Some(Err(_)) | None => Err(Over),
                },
                record = commits.recv() => self.tell_all(&record.unwrap()).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn answer(&mut self, id: Option<RequestId>, message: ClientMessage) -> Result<(), Over> {
        let shared = self.shared.clone();
        let state = || shared.state.lock().unwrap();
        let answer = match message {
            ClientMessage::Hello(_) => {
                let state = state();
                ServerMessage::Welcome(Welcome {
                    version: VERSION,
                    position: state.position(),
                    session: SessionId([7; 16]),
                    executed: 0,
                    lapsed: false,
                    principal: "anonymous".into(),
                    heartbeat: Duration::from_secs(15),
                    silence: Duration::from_secs(45),
                    grace: Duration::from_secs(60),
                    kept: Duration::from_secs(86_400),
                    limits: state.limits.clone(),
                })
            }
            ClientMessage::Get { keys } => {
                let state = state();
                let entries = keys.iter().map(|key| state.entries.get(key).cloned());
                let revision = Revision(state.revision);
                ServerMessage::Values {
                    revision,
                    entries: entries.collect(),
                }
            }
            ClientMessage::Scan { options, .. }
                if options
                    .newer_than
                    .is_some_and(|position| position.epoch != state().epoch) =>
            {
                let (epoch, fork) = (state().epoch, Revision(0));
                ServerMessage::Error(StorageError::EpochChanged { epoch, fork })
            }
            ClientMessage::Scan { range, options } => {
                let items = state().scan(&range, options);
                let number = self.scans.len() as u64 + 1;
                self.page(number, items)
            }
            ClientMessage::ScanNext { scan } => {
                let whim = state().whim;
                if whim == Some(Whim::SilentPages) {
                    return Ok(());
                }
                if whim == Some(Whim::HeldPages) {
                    state().held_pages += 1;
                    shared.pages.acquire().await.unwrap().forget();
                }
                let items = self.scans.remove(&scan).unwrap();
                self.page(scan, items)
            }
            ClientMessage::ScanClose { .. } => ServerMessage::Done,
            ClientMessage::Commit { batch, options, .. } => {
                return self.commit(id, &batch, options).await;
            }
            ClientMessage::Watch(_) if state().whim == Some(Whim::SilentWatches) => return Ok(()),
            ClientMessage::Watch(request) => return self.watch(id, request).await,
            ClientMessage::Unwatch { watch } => {
                self.watches.retain(|(id, _)| *id != watch);
                ServerMessage::Done
            }
            // Answered by a mark of the watch.
            ClientMessage::Probe { watch, token } if watch.is_some() => {
                let (revision, token) = (Revision(state().revision), Some(token));
                let progress = ServerMessage::Progress { revision, token };
                return self.send(watch, progress).await;
            }
            ClientMessage::Probe { token, .. } => {
                let revision = Revision(state().revision);
                ServerMessage::Probed { revision, token }
            }
            ClientMessage::Credit { .. } | ClientMessage::Cancel => return Ok(()),
        };
        self.send(id, answer).await
    }

    fn page(&mut self, number: u64, mut items: Vec<ScanItem>) -> ServerMessage {
        // A large one has a page of its own, as of any server.
        let is_large = items.first().is_some_and(|item| match &item.state {
            KeyState::Live(entry) => entry.value.len() > Scan::PAGE_BYTES,
            KeyState::Removed(_) => false,
        });
        let most = if is_large { 1 } else { PAGE_ITEMS };
        let rest = items.split_off(items.len().min(most));
        let revision = Revision(self.shared.state.lock().unwrap().revision);
        let scan = (!rest.is_empty()).then_some(number);
        self.scans.insert(number, rest);
        ServerMessage::Page {
            revision,
            scan,
            items,
        }
    }

    async fn commit(
        &mut self,
        id: Option<RequestId>,
        batch: &Batch,
        options: CommitOptions,
    ) -> Result<(), Over> {
        let mut late = false;
        let (done, fault) = {
            let mut state = self.shared.state.lock().unwrap();
            match state.faults.pop_front().unwrap_or(Fault::None) {
                Fault::Error(error) => (Err(error), Fault::None),
                Fault::LateError(error) => {
                    late = true;
                    (Err(error), Fault::None)
                }
                Fault::Silent => return Ok(()),
                fault @ (Fault::None | Fault::Lost) => (state.apply(batch, options.label), fault),
            }
        };
        if matches!(fault, Fault::Lost) {
            return Err(Over);
        }
        if late {
            tokio::time::sleep(LATE).await;
        }
        match done {
            Ok(record) => {
                let revision = record.revision;
                // Nobody listening is fine.
                let _ = self.shared.commits.send(record);
                self.send(id, ServerMessage::Committed { revision }).await
            }
            Err(error) => self.send(id, ServerMessage::Error(error)).await,
        }
    }

    async fn watch(&mut self, id: Option<RequestId>, request: WatchRequest) -> Result<(), Over> {
        let (now, log, state_now) = {
            let state = self.shared.state.lock().unwrap();
            let all = state.scan(&request.range, ScanOptions::default());
            (state.position(), state.log.clone(), all)
        };
        let start = match request.start {
            WatchStart::Now => now.revision,
            WatchStart::After(position) if position.epoch != now.epoch => {
                let error = StorageError::EpochChanged {
                    epoch: now.epoch,
                    fork: Revision(0),
                };
                return self.send(id, ServerMessage::Error(error)).await;
            }
            WatchStart::After(position) => position.revision,
            WatchStart::Beginning => Revision(0),
        };
        self.send(id, ServerMessage::Watching { revision: start })
            .await?;
        if request.mode == WatchMode::Every {
            for record in log.into_iter().filter(|record| record.revision > start) {
                if let Some(record) = record.cut(&request.range) {
                    let commits = vec![record];
                    self.send(id, ServerMessage::Changes { commits }).await?;
                }
            }
        } else if request.start == WatchStart::Beginning {
            self.send(id, ServerMessage::Reset).await?;
            let states: Vec<_> = state_now
                .into_iter()
                .map(|item| (item.key, item.state))
                .collect();
            if !states.is_empty() {
                self.send(id, ServerMessage::States { states }).await?;
            }
            let (revision, token) = (now.revision, None);
            self.send(id, ServerMessage::Progress { revision, token })
                .await?;
        }
        self.watches.push((id.unwrap(), request));
        Ok(())
    }

    async fn tell_all(&mut self, record: &Arc<CommitRecord>) -> Result<(), Over> {
        for (id, request) in self.watches.clone() {
            let Some(record) = record.cut(&request.range) else {
                continue;
            };
            let revision = record.revision;
            if request.mode == WatchMode::Every {
                let commits = vec![record];
                self.send(Some(id), ServerMessage::Changes { commits })
                    .await?;
                continue;
            }
            let states = record.changes.iter().map(|change| {
                let state = match &change.kind {
                    ChangeKind::Put {
                        value, lifetime, ..
                    } => KeyState::Live(Entry {
                        value: value.clone(),
                        revision,
                        lifetime: *lifetime,
                    }),
                    ChangeKind::Removed { .. } | ChangeKind::Signalled { .. } => {
                        KeyState::Removed(revision)
                    }
                };
                (change.key.clone(), state)
            });
            let states = states.collect();
            self.send(Some(id), ServerMessage::States { states })
                .await?;
            let token = None;
            self.send(Some(id), ServerMessage::Progress { revision, token })
                .await?;
        }
        Ok(())
    }

    async fn send(&mut self, id: Option<RequestId>, message: ServerMessage) -> Result<(), Over> {
        let mut outbox = Outbox::new();
        outbox.push(Class::Answer, message.encode(id));
        while let Some(frame) = outbox.pop() {
            let sent = self.ws.feed(Message::Binary(frame)).await;
            sent.map_err(|_| Over)?;
        }
        self.ws.flush().await.map_err(|_| Over)
    }
}
