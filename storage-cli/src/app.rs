//! What every sub-command has: the program's options, the connection they lead to, and the signal to stop.
//!
//! The connection is made when a sub-command first asks for it, behind all checks of its arguments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use storage_protocol::Outcome;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::escape;
use crate::failure::Interrupted;
use crate::globals::{Globals, LoginOption};
use crate::secret;
use crate::text::Form;
use storage_client::{ConnectOptions, ConnectionState, RemoteStorage, SavedSession};

/// How long an ordinary end waits for what is on its way, behind a signal and for the server's goodbye.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a second signal waits for the end, before the process is ended from within.
const ABORT_TIMEOUT: Duration = Duration::from_millis(500);

/// See the module. Clones share all of it.
#[derive(Clone)]
pub(crate) struct App {
    globals: Arc<Globals>,
    storage: Arc<OnceLock<RemoteStorage>>,
    /// Cancelled by the first signal: what goes on ends in order.
    pub(crate) interrupt: CancellationToken,
    /// Cancelled by the second: nothing is waited for any more.
    pub(crate) abort: CancellationToken,
    /// The tasks that listen to signals and tell of outages; ended by [`App::close`].
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
    /// Set while a commit is on its way: an interruption leaves its outcome unknown.
    writes: Arc<AtomicBool>,
    /// Set once a commit was on its way.
    wrote: Arc<AtomicBool>,
    keeps_session: Arc<AtomicBool>,
}

impl App {
    pub(crate) fn new(globals: Globals) -> Self {
        Self {
            globals: Arc::new(globals),
            storage: Arc::default(),
            interrupt: CancellationToken::new(),
            abort: CancellationToken::new(),
            tasks: Arc::default(),
            writes: Arc::default(),
            wrote: Arc::default(),
            keeps_session: Arc::default(),
        }
    }

    /// Whether to print for machines.
    pub(crate) fn json(&self) -> bool {
        self.globals.json()
    }

    /// How keys and values are written.
    pub(crate) fn form(&self) -> Form {
        Form {
            hex: self.globals.hex(),
        }
    }

    /// How long one answer may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.globals.timeout().unwrap_or(Duration::from_secs(30))
    }

    /// Connects; called once per run. From here on a signal ends the run in order; before, where an argument may be
    /// read from stdin, it has its usual effect.
    pub(crate) async fn connect(&self) -> anyhow::Result<RemoteStorage> {
        self.connect_as(None).await
    }

    /// The same, with the session of an earlier run.
    pub(crate) async fn connect_as(
        &self,
        saved: Option<SavedSession>,
    ) -> anyhow::Result<RemoteStorage> {
        let mut options = self.globals.connect_options()?;
        if let Some(saved) = saved {
            options = options.resume_session(saved);
        }
        self.listen_to_signals();
        let options = self.log_in(options).await?;
        let storage = RemoteStorage::connect(options).await?;
        Ok(self.storage.get_or_init(|| storage).clone())
    }

    /// What requests over HTTP need; called once per run. Signals are as with [`App::connect`].
    pub(crate) async fn http_options(&self) -> anyhow::Result<ConnectOptions> {
        let options = self.globals.http_options()?;
        self.listen_to_signals();
        self.log_in(options).await
    }

    /// Adds what a certificate is not to do for; asks for it where that was not said.
    async fn log_in(&self, options: ConnectOptions) -> anyhow::Result<ConnectOptions> {
        Ok(match self.globals.login()? {
            None => options,
            Some(LoginOption::TokenFile(file)) => {
                let token = secret::token(file)?;
                match file.is_file() {
                    true => options.token_file(file),
                    // A pipe gives it once.
                    false => options.token(token),
                }
            }
            Some(LoginOption::User {
                name,
                password_file,
            }) => {
                let password = secret::password(name, password_file);
                options.password(name, self.unless_interrupted(password).await?)
            }
        })
    }

    /// The keyspace that the URL names.
    pub(crate) fn keyspace(&self) -> anyhow::Result<String> {
        let options = self.globals.connect_options()?;
        Ok(options.keyspace()?.as_str().to_owned())
    }

    /// Says that a commit is about to be sent.
    pub(crate) fn writing(&self) {
        self.writes.store(true, Ordering::Relaxed);
        self.wrote.store(true, Ordering::Relaxed);
    }

    /// Says that its answer is here.
    pub(crate) fn written(&self) {
        self.writes.store(false, Ordering::Relaxed);
    }

    /// Says whether changes are on their way that are no commits of this connection: those of an import, which tells by
    /// itself, by rows, what became of them; or requests over HTTP.
    pub(crate) fn changing(&self, in_flight: bool) {
        self.writes.store(in_flight, Ordering::Relaxed);
    }

    /// Whether a commit was about to be sent.
    pub(crate) fn wrote(&self) -> bool {
        self.wrote.load(Ordering::Relaxed)
    }

    /// What is certain when the command ends now.
    pub(crate) fn outcome_if_ended(&self) -> Outcome {
        match self.writes.load(Ordering::Relaxed) {
            true => Outcome::Unknown,
            false => Outcome::NotExecuted,
        }
    }

    /// Says on stderr from now on when the connection is lost, and when it is back.
    pub(crate) fn tell_outages(&self) {
        if let Some(storage) = self.storage.get() {
            self.keep(tokio::spawn(outages(storage.state(), |text| {
                crate::tell(text)
            })));
        }
    }

    /// Whether calls are carried out at present.
    pub(crate) fn is_connected(&self) -> bool {
        let storage = self.storage.get();
        storage.is_some_and(|storage| *storage.state().borrow() == ConnectionState::Connected)
    }

    fn keep(&self, task: JoinHandle<()>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(task.abort_handle());
    }

    /// Does `work`, or fails when a signal comes first.
    pub(crate) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.interrupt.cancelled() => {
                Err(Interrupted::new(self.outcome_if_ended()).into())
            }
        }
    }

    /// Whether the session is to stay when the connection is closed.
    pub(crate) fn keep_session(&self, keep: bool) {
        self.keeps_session.store(keep, Ordering::Relaxed);
    }

    /// Closes the connection, if there is one.
    pub(crate) async fn close(&self) {
        if let Some(storage) = self.storage.get() {
            match self.keeps_session.load(Ordering::Relaxed) {
                true => storage.leave().await,
                false => storage.close().await,
            }
        }
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for task in tasks.iter() {
            task.abort();
        }
    }

    /// Cancels [`App::interrupt`] at the first Ctrl-C or SIGTERM, and [`App::abort`] at the second. Where signals cannot be
    /// listened to, they keep their effect.
    fn listen_to_signals(&self) {
        let app = self.clone();
        if let Ok(mut signals) = Signals::new() {
            self.keep(tokio::spawn(async move {
                signals.next().await;
                app.interrupt.cancel();
                signals.next().await;
                app.abort.cancel();
                tokio::time::sleep(ABORT_TIMEOUT).await;
                // Something blocks, a write to a pipe that nobody reads for instance.
                end_process(app.outcome_if_ended());
            }));
        }
    }
}

#[expect(
    clippy::exit,
    reason = "the main thread is blocked, and was asked twice to end"
)]
fn end_process(outcome: Outcome) {
    std::process::exit(Interrupted::new(outcome).exit_code().into());
}

/// Tells of each loss of the connection and of its return. The reason may change while it is away: at first it is why it
/// was lost, then why there is no other. More than these two would say nothing new.
async fn outages(mut states: watch::Receiver<ConnectionState>, tell: impl Fn(String)) {
    let mut lost: Option<(std::time::Instant, Vec<String>)> = None;
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        match state {
            ConnectionState::Disconnected { since, why } => {
                let (_, told) = lost.get_or_insert_with(|| (since, Vec::new()));
                if told.len() < 2 && !told.contains(&why) {
                    let words = escape::text(why.as_bytes());
                    tell(format!("disconnected ({words}), retrying..."));
                    told.push(why);
                }
            }
            ConnectionState::Connected => {
                if let Some((since, _)) = lost.take() {
                    tell(format!("reconnected after {}", rounded(since.elapsed())));
                }
            }
            ConnectionState::Closed { .. } => return,
            // Of `Draining`, what it leads to is told then.
            _ => {}
        }
    }
}

/// As people say it: seconds, or milliseconds of less than one.
fn rounded(time: Duration) -> humantime::FormattedDuration {
    let whole = match time.as_secs() {
        0 => Duration::from_millis(u64::from(time.subsec_millis())),
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(whole)
}

/// The signals to end. They are listened to from `new` on.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) {
        self.0.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn an_outage_is_told_at_its_beginning_and_its_end_and_no_more() {
        let (states, receiver) = watch::channel(ConnectionState::Connected);
        let (told, lines) = mpsc::channel();
        let telling = tokio::spawn(outages(receiver, move |text| told.send(text).unwrap()));
        let since = Instant::now();
        let say = async |state| {
            states.send_replace(state);
            tokio::task::yield_now().await;
        };
        for why in ["reset", "refused", "refused", "no route", "reset"] {
            let why = why.to_owned();
            say(ConnectionState::Disconnected { since, why }).await;
        }
        say(ConnectionState::Connected).await;
        let why = "over".to_owned();
        say(ConnectionState::Closed { why }).await;
        telling.await.unwrap();
        let lines: Vec<String> = lines.iter().collect();
        assert_eq!(
            lines[..2],
            [
                "disconnected (reset), retrying...",
                "disconnected (refused), retrying..."
            ]
        );
        assert!(lines[2].starts_with("reconnected after "), "{lines:?}");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn times_are_rounded_as_people_say_them() {
        assert_eq!(rounded(Duration::from_millis(6_700)).to_string(), "6s");
        assert_eq!(rounded(Duration::from_micros(12_345)).to_string(), "12ms");
    }
}
