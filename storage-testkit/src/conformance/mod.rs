//! One suite of promises for every [`Storage`]: the model, the engine, the remote client, each wrapper.
//!
//! Each case is one promise of the contract, in a keyspace of its own, and fails with a sentence on what was seen.
//! [`run`] runs all of them on the stores a [`Fixture`] gives, catches what panics or hangs, and returns a [`Report`];
//! [`print_table`] sets several implementations side by side and lists where they differ.
//!
//! Revisions of two implementations differ (one may leave gaps), so nothing here relies on more than their order.
//! Waiting is done on watches, never by sleeping.

#![expect(
    clippy::unwrap_used,
    reason = "a case is a test: a failed call is a failed promise, and the runner reports the panic"
)]

mod checks;
mod commits;
mod differential;
mod every;
mod latest;
mod leftovers;
mod lifetimes;
mod limits;
mod model_fixture;
mod objects;
mod prefixes;
mod reads;
mod report;
mod rooms;
mod scans;
mod support;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use storage_protocol::{Position, Storage};

pub use model_fixture::ModelFixture;
pub use report::{CaseOutcome, CaseReport, Report, print_table};

/// One store to hold to its promises. Several cases share it, each in keyspaces of its own, one after the other.
#[async_trait]
pub trait Fixture: fmt::Debug + Send + Sync {
    /// A handle on a keyspace, in a fresh session.
    async fn session(&self, keyspace: &str) -> Session;

    /// Why this store cannot be tested for something; `None`: it can.
    fn missing(&self, capability: Capability) -> Option<&'static str>;

    /// Forgets the log up to `to` (only with [`Capability::CompactLog`]).
    async fn compact_log(&self, to: Position);

    /// Forgets a keyspace's tombstones up to `to` (only with [`Capability::DropTombstones`]).
    async fn drop_tombstones(&self, keyspace: &str, to: Position);

    /// Stops the store and removes what it left.
    async fn close(&self);
}

/// A handle and, where the store has [`Capability::EndSession`], how its session is ended.
pub struct Session {
    /// The handle.
    pub storage: Arc<dyn Storage>,
    /// Ends the session as if its peer had gone for good; done when the clean-up is on its way.
    pub end: Option<EndSession>,
}

/// See [`Session::end`].
pub type EndSession = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

/// What not every fixture can do to its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Entries with a time to live are removed within about a second of it.
    Expiry,
    /// [`Session::end`] is there, and what the session held is removed within seconds.
    EndSession,
    /// [`Fixture::compact_log`] works.
    CompactLog,
    /// [`Fixture::drop_tombstones`] works.
    DropTombstones,
}

/// How to run the suite.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only cases whose name contains this. Default: all.
    pub only: Option<String>,
    /// What the random cases begin with; printed, so that a failure can be repeated. Default: random.
    pub seed: u64,
    /// How long one case may take. Default 30 s.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: None,
            seed: rand::random(),
            deadline: Duration::from_secs(30),
        }
    }
}

impl Options {
    /// The defaults, changed by `CONFORMANCE_ONLY`, `CONFORMANCE_SEED` and `CONFORMANCE_DEADLINE_SECONDS`.
    ///
    /// # Panics
    /// If a number is none.
    #[must_use]
    pub fn from_env() -> Self {
        let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
        let default = Self::default();
        Self {
            only: std::env::var("CONFORMANCE_ONLY").ok(),
            seed: number("CONFORMANCE_SEED").unwrap_or(default.seed),
            deadline: number("CONFORMANCE_DEADLINE_SECONDS")
                .map_or(default.deadline, Duration::from_secs),
        }
    }
}

/// Runs the suite as the environment says (see [`Options::from_env`]).
///
/// `make` is called once for most cases together, and once more for each case that damages its store's history.
pub async fn run(make: impl Fn() -> BoxFuture<'static, Arc<dyn Fixture>> + Sync) -> Report {
    run_with(make, &Options::from_env()).await
}

/// Runs the suite.
pub async fn run_with(
    make: impl Fn() -> BoxFuture<'static, Arc<dyn Fixture>> + Sync,
    options: &Options,
) -> Report {
    let shared = make().await;
    let mut report = Report::new(options.seed);
    for (number, case) in all_cases().into_iter().enumerate() {
        let excluded = options
            .only
            .as_ref()
            .is_some_and(|o| !case.name.contains(o));
        if excluded {
            continue;
        }
        let missing = case.needs.iter().find_map(|need| shared.missing(*need));
        let outcome = match missing {
            Some(why) => CaseOutcome::NotApplicable(why.to_owned()),
            None if case.has_own_store() => {
                let own = make().await;
                let outcome = run_case(&case, number, &own, options).await;
                own.close().await;
                outcome
            }
            None => run_case(&case, number, &shared, options).await,
        };
        report.push(case.name, outcome);
    }
    shared.close().await;
    report
}

async fn run_case(
    case: &Case,
    number: usize,
    fixture: &Arc<dyn Fixture>,
    options: &Options,
) -> CaseOutcome {
    let context = Context {
        fixture: fixture.clone(),
        keyspace: format!("case{number:03}"),
        seed: options.seed,
    };
    // In a task of its own, so that a panic ends the case and not the suite.
    let mut task = tokio::spawn((case.run)(context));
    match tokio::time::timeout(options.deadline, &mut task).await {
        Ok(Ok(())) => CaseOutcome::Held,
        Ok(Err(error)) => CaseOutcome::Failed(report::panic_message(error)),
        Err(_) => {
            task.abort();
            let seconds = options.deadline.as_secs();
            CaseOutcome::Failed(format!("not done after {seconds} s: something never came"))
        }
    }
}

fn all_cases() -> Vec<Case> {
    [
        reads::cases(),
        commits::cases(),
        checks::cases(),
        limits::cases(),
        scans::cases(),
        every::cases(),
        latest::cases(),
        prefixes::cases(),
        lifetimes::cases(),
        objects::cases(),
        leftovers::cases(),
        rooms::cases(),
        differential::cases(),
    ]
    .concat()
}

/// One promise.
#[derive(Clone)]
struct Case {
    name: &'static str,
    needs: &'static [Capability],
    run: fn(Context) -> BoxFuture<'static, ()>,
}

impl Case {
    /// Whether it damages history, which other cases need.
    fn has_own_store(&self) -> bool {
        self.needs
            .iter()
            .any(|need| matches!(need, Capability::CompactLog | Capability::DropTombstones))
    }
}

/// What a case gets.
#[derive(Clone, Debug)]
struct Context {
    fixture: Arc<dyn Fixture>,
    keyspace: String,
    seed: u64,
}

impl Context {
    /// A handle on the case's keyspace, in a fresh session.
    async fn open(&self) -> support::Handle {
        self.session().await.storage
    }

    /// A handle on another keyspace of the case.
    async fn open_other(&self, name: &str) -> support::Handle {
        let keyspace = format!("{}-{name}", self.keyspace);
        let session = self.fixture.session(&keyspace).await;
        support::giving_way(session.storage)
    }

    /// As [`Context::open`], with the means to end the session.
    async fn session(&self) -> Session {
        let session = self.fixture.session(&self.keyspace).await;
        Session {
            storage: support::giving_way(session.storage),
            ..session
        }
    }
}

/// The list of a file's cases: its functions, each with the capabilities it needs.
macro_rules! cases {
    ($module:literal: $($name:ident $([$($need:ident),+])?),+ $(,)?) => {
        pub(super) fn cases() -> Vec<super::Case> {
            vec![$(super::Case {
                name: concat!($module, "::", stringify!($name)),
                needs: &[$($(super::Capability::$need),+)?],
                run: |context| Box::pin($name(context)),
            }),+]
        }
    };
}
use cases;
