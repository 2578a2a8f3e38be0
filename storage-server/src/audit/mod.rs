//! The audit log: who did what to which keys, whether that was allowed, and when.
//!
//! Each [`Record`] is one line of JSON in the file of its day. What is written is chosen by `[audit]` of the configuration;
//! where a kind is off, the way of a request has one branch for it. There are three levels:
//!
//! | level | records | when too many come |
//! | --- | --- | --- |
//! | ordinary | reads, writes, watches, sessions | dropped and counted; nobody waits |
//! | denial | who is not let in, what is not allowed | those of one kind are counted into one record ([`repeats`]); else as above, with more room |
//! | administrative | who may do what was changed | the act waits for a place; it is answered when its record is on the disk |
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`record`] | what a record says, and what it never does |
//! | [`repeats`], [`queue`] | on their way to the writer |
//! | [`writer`], [`files`] | the thread that writes, and the daily files |

mod files;
mod queue;
mod record;
mod repeats;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use storage_protocol::{Position, Revision, StorageError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::config::{AuditConfig, AuditEvent};
use crate::metrics::Labels;

use self::files::Files;
use self::queue::{ADMIN_LEN_MAX, Item, Queue};
pub(crate) use self::record::{Event, Outcome, Record, SessionHash};
use self::repeats::Repeats;
use self::writer::Writer;

/// How long an administrative act waits for its record to be on the disk. Only where the disk hangs does it take longer.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);

/// What a record is worth when there is no room for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Ordinary,
    Denial,
    Admin,
}

impl Level {
    fn of(event: Event) -> Self {
        match event {
            Event::Session | Event::Write | Event::Read | Event::Watch => Self::Ordinary,
            Event::Denied => Self::Denial,
            Event::Admin | Event::Audit => Self::Admin,
        }
    }
}

/// What is written: looked at on the way of each request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) denied: bool,
    pub(crate) admin: bool,
    pub(crate) session: bool,
    pub(crate) write: bool,
    pub(crate) read: bool,
    pub(crate) watch: bool,
}

impl Wants {
    fn of(events: &[AuditEvent]) -> Self {
        let has = |event| events.contains(&event);
        Self {
            denied: has(AuditEvent::Denied),
            admin: has(AuditEvent::Admin),
            session: has(AuditEvent::Session),
            write: has(AuditEvent::Write),
            read: has(AuditEvent::Read),
            watch: has(AuditEvent::Watch),
        }
    }

    fn has(self, event: Event) -> bool {
        match event {
            Event::Denied => self.denied,
            Event::Admin => self.admin,
            Event::Session => self.session,
            Event::Write => self.write,
            Event::Read => self.read,
            Event::Watch => self.watch,
            Event::Audit => true,
        }
    }
}

/// What time it is.
type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Why a record is not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropped {
    /// There was no room for it before it could be written.
    Queue,
    /// The day has as much as it may have.
    Bound,
    /// It could not be written.
    Disk,
}

/// What requests and the writer share.
struct Core {
    clock: Clock,
    queue: Queue,
    repeats: Mutex<Repeats>,
    /// Records that were written.
    written: Counter,
    write_errors: Counter,
    /// By [`Dropped`]; and the family that they are of.
    dropped: [Counter; 3],
    dropped_by_reason: Family<Labels<1>, Counter>,
    /// The last day, in days since 1970, on which old files were removed.
    cleaned: AtomicU64,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

impl Core {
    fn new(clock: Clock) -> Self {
        let dropped_by_reason = Family::<Labels<1>, Counter>::default();
        Self {
            clock,
            queue: Queue::default(),
            repeats: Mutex::default(),
            written: Counter::default(),
            write_errors: Counter::default(),
            dropped: ["queue", "bound", "disk"]
                .map(|reason| dropped_by_reason.get_or_create_owned(&[("reason", reason)])),
            dropped_by_reason,
            cleaned: AtomicU64::new(0),
        }
    }

    fn now(&self) -> SystemTime {
        (self.clock)()
    }

    fn repeats(&self) -> MutexGuard<'_, Repeats> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dropped(&self, why: Dropped, records: u64) {
        self.dropped[why as usize].inc_by(records);
    }

    /// Those of which nothing else tells that they are missing.
    fn dropped_unseen(&self) -> u64 {
        self.dropped[Dropped::Queue as usize].get() + self.dropped[Dropped::Disk as usize].get()
    }

    /// Removes files that are too old, once a day.
    fn clean_up(&self, files: &Files, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let today = since.as_secs() / (24 * 3600);
        if self.cleaned.swap(today, Ordering::Relaxed) != today
            && let Err(error) = files.remove_old(now)
        {
            let folder = files.folder().display();
            tracing::warn!(%error, %folder, "cannot remove old files of the audit log");
        }
    }

    fn push(
        &self,
        record: &Record,
        waited_for: Option<(oneshot::Sender<()>, OwnedSemaphorePermit)>,
    ) {
        let item = Item {
            level: Level::of(record.event()),
            line: record.line(),
            waited_for,
        };
        if !self.queue.push(item) {
            self.dropped(Dropped::Queue, 1);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) wants: Wants,
    core: Arc<Core>,
    /// Places for administrative acts.
    places: Arc<Semaphore>,
    /// `None`: nothing is written, or it has ended.
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// One that writes nothing.
    pub(crate) fn off() -> Arc<Self> {
        Arc::new(Self::new(Wants::default(), Arc::new(SystemTime::now)))
    }

    fn new(wants: Wants, clock: Clock) -> Self {
        Self {
            wants,
            core: Arc::new(Core::new(clock)),
            places: Arc::new(Semaphore::new(ADMIN_LEN_MAX)),
            writer: Mutex::default(),
        }
    }

    /// One that writes what the configuration says, into its folder, or else into `audit` in the data folder. Blocks.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub(crate) fn start(config: &AuditConfig, data: &Path) -> io::Result<Arc<Self>> {
        if config.events.is_empty() {
            return Ok(Self::off());
        }
        Self::start_with(
            config,
            Self::folder(config, data),
            Arc::new(SystemTime::now),
        )
    }

    /// Where the files are.
    pub(crate) fn folder(config: &AuditConfig, data: &Path) -> PathBuf {
        let default = || data.join("audit");
        config.folder.clone().unwrap_or_else(default)
    }

    fn start_with(config: &AuditConfig, folder: PathBuf, clock: Clock) -> io::Result<Arc<Self>> {
        let (days, bytes) = (config.days, config.day_bytes_max);
        let files = Files::prepare(folder, days, bytes, clock())?;
        let audit = Self::new(Wants::of(&config.events), clock);
        let writer = Writer::new(audit.core.clone(), files);
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let thread = thread.spawn(move || writer.run())?;
        *audit.thread() = Some(thread);
        Ok(Arc::new(audit))
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let core = &self.core;
        registry.register(
            "storage_audit_records",
            "Records that were written to the audit log",
            core.written.clone(),
        );
        registry.register(
            "storage_audit_write_errors",
            "Attempts to write or sync the audit log that failed",
            core.write_errors.clone(),
        );
        registry.register(
            "storage_audit_records_dropped",
            "Records that are missing in the audit log",
            core.dropped_by_reason.clone(),
        );
    }

    /// Writes a record, if those of its kind are written, without waiting. An administrative act is for
    /// [`Audit::begin`].
    pub(crate) fn put(&self, record: Record) {
        if !self.wants.has(record.event()) {
            return;
        }
        let record = record.at(self.core.now());
        let record = match Level::of(record.event()) {
            Level::Denial => self.core.repeats().take(record),
            Level::Ordinary | Level::Admin => Some(record),
        };
        if let Some(record) = record {
            self.core.push(&record, None);
        }
    }

    /// What is about to be done, which is written when it ends. `None`: those of its kind are not.
    pub(crate) fn begin(
        self: &Arc<Self>,
        event: Event,
        record: impl FnOnce() -> Record,
    ) -> Option<Noted> {
        self.wants.has(event).then(|| Noted {
            audit: self.clone(),
            record: Some(Box::new(record())),
        })
    }

    /// An administrative act that was done; at the return it is on the disk, unless that failed or hangs.
    pub(crate) async fn administrative(&self, record: Record) {
        if !self.wants.admin {
            return;
        }
        let writing = async {
            let Ok(place) = self.places.clone().acquire_owned().await else {
                return;
            };
            let (written, is_written) = oneshot::channel();
            let record = record.at(self.core.now());
            self.core.push(&record, Some((written, place)));
            // An error: it was dropped, and counted.
            let _ = is_written.await;
        };
        if tokio::time::timeout(ADMIN_PATIENCE, writing).await.is_err() {
            tracing::error!(
                "an administrative act waited too long for the audit log, and goes on without it"
            );
        }
    }

    /// Certificates, keys or rules were read anew, or could not be: `what` names them.
    pub(crate) async fn reloaded(&self, what: &str, result: Result<(), &str>) {
        let outcome = match result {
            Ok(()) => Outcome::Allowed,
            Err(_) => Outcome::Failed,
        };
        let reason = match result {
            Ok(()) => what.to_owned(),
            Err(error) => format!("{what}: {error}"),
        };
        let record = Record::new(Event::Admin, "reload", outcome);
        self.administrative(record.by_server().reason(&reason))
            .await;
    }

    /// Writes what waits, and ends. Blocks.
    pub(crate) fn close(&self) {
        self.core.queue.close();
        let thread = self.thread().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the audit log panicked");
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.core.queue.close();
    }
}

/// Something that was begun, and is written when it ends. If nobody waits for its end, it is written as unknown.
#[derive(Debug)]
#[must_use = "what is begun ends"]
pub(crate) struct Noted {
    audit: Arc<Audit>,
    /// `None`: it has ended.
    record: Option<Box<Record>>,
}

impl Noted {
    async fn end(mut self, result: Result<Option<Revision>, &StorageError>) {
        let Some(record) = self.record.take() else {
            return;
        };
        let record = match result {
            Ok(Some(revision)) => record.revision(revision),
            Ok(None) => *record,
            Err(error) => record.error(error),
        };
        match record.event() {
            Event::Admin => self.audit.administrative(record).await,
            _ => self.audit.put(record),
        }
    }
}

/// A commit that was begun has ended so. If it is an administrative act it is on the disk at the return, see
/// [`Audit::administrative`].
pub(crate) async fn committed(noted: Option<Noted>, result: &Result<Position, StorageError>) {
    if let Some(noted) = noted {
        let revision = result.as_ref().map(|position| Some(position.revision));
        // Boxed: most commits have none of this.
        Box::pin(noted.end(revision)).await;
    }
}

/// The same of something without a revision.
pub(crate) async fn done(noted: Option<Noted>, result: &Result<(), StorageError>) {
    if let Some(noted) = noted {
        Box::pin(noted.end(result.as_ref().map(|()| None))).await;
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            let reason = "who asked for it was gone before it ended";
            let record = record.outcome(Outcome::Unknown).reason(reason);
            self.audit.put(record);
        }
    }
}

#[cfg(test)]
mod tests;
