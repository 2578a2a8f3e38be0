//! One writer and many watchers.
//!
//! Each event has its number, and when it was to be written, in its value. The writer is held back while too many events are
//! on their way, so that no system has to drop any: what is measured is how fast they are all delivered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::load::{Figures, Meter, Times};
use crate::stats::{Latencies, Recorder, Window};

/// Bytes of an event's value.
pub(crate) const EVENT_BYTES: usize = 100;

/// Deliveries that may be on their way, and within which bounds the events of which they are.
const AHEAD_DELIVERIES: u64 = 25_600;
const AHEAD_MIN: u64 = 16;
const AHEAD_MAX: u64 = 256;

/// Puts of the writer that are in flight, if it is not held back.
const IN_FLIGHT: usize = 64;

/// Groups that events and watchers are in, for those who want a tenth of the events.
const GROUPS: u64 = 10;

/// How often the writer looks in any case.
const PAUSE: Duration = Duration::from_millis(20);

/// How long may pass without a delivery before the cell has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which of the events a watcher wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Wanted {
    /// All.
    All,
    /// Those of one group in ten.
    Tenth,
    /// Those of its own: each event is for one watcher.
    One,
}

impl Wanted {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tenth => "a tenth",
            Self::One => "one",
        }
    }

    /// How many of so many watchers an event reaches.
    fn reached(self, watchers: u64) -> u64 {
        match self {
            Self::All => watchers,
            Self::Tenth => watchers / GROUPS,
            Self::One => 1,
        }
    }
}

/// What one watcher wants, or what one event is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interest {
    pub(crate) wanted: Wanted,
    /// The watcher's number.
    watcher: u64,
}

impl Interest {
    /// The interest of a watcher.
    pub(crate) fn of(wanted: Wanted, watcher: u64) -> Self {
        Self { wanted, watcher }
    }

    /// What keys of events that are of interest begin with, in the words of systems that watch ranges of keys.
    pub(crate) fn prefix(self) -> String {
        let (watcher, group) = (self.watcher, self.watcher % GROUPS);
        match self.wanted {
            Wanted::All => "event/".to_owned(),
            Wanted::Tenth => format!("event/{group}/"),
            Wanted::One => format!("event/{group}/{watcher:05}/"),
        }
    }

    /// The same in the words of systems with channels.
    pub(crate) fn channel(self) -> String {
        let (watcher, group) = (self.watcher, self.watcher % GROUPS);
        match self.wanted {
            Wanted::All => "event".to_owned(),
            Wanted::Tenth => format!("event.{group}"),
            Wanted::One => format!("event.{group}.{watcher:05}"),
        }
    }
}

/// How an event is addressed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audience {
    pub(crate) wanted: Wanted,
    pub(crate) watchers: u64,
}

impl Audience {
    /// Those whom event `number` is for.
    pub(crate) fn of(self, number: u64) -> Interest {
        Interest::of(self.wanted, number % self.watchers)
    }

    /// The key of event `number`. It comes again after a hundred thousand events.
    pub(crate) fn key(self, number: u64) -> String {
        let prefix = Interest::of(Wanted::One, number % self.watchers).prefix();
        format!("{prefix}{:05}", number % 100_000)
    }
}

/// The value of an event.
pub(crate) fn event(number: u64, due: Instant, base: Instant) -> Bytes {
    let mut value = vec![b'v'; EVENT_BYTES];
    let due = due.saturating_duration_since(base);
    let due = u64::try_from(due.as_nanos()).unwrap_or(u64::MAX);
    let (head, rest) = value.split_at_mut(8);
    head.copy_from_slice(&number.to_be_bytes());
    if let Some(place) = rest.get_mut(..8) {
        place.copy_from_slice(&due.to_be_bytes());
    }
    value.into()
}

/// What all watchers of a cell were delivered.
#[derive(Debug)]
pub(crate) struct Deliveries {
    /// Nothing counts before it is there.
    recorder: OnceLock<Recorder>,
    base: Instant,
    count: AtomicU64,
    /// So many deliveries let the writer look whether it may go on.
    step: u64,
    progress: Notify,
}

impl Deliveries {
    /// `step`: so many deliveries wake the writer.
    pub(crate) fn new(step: u64) -> Self {
        Self {
            step: step.max(1),
            progress: Notify::new(),
            recorder: OnceLock::new(),
            base: Instant::now(),
            count: AtomicU64::new(0),
        }
    }

    /// Notes an event that a watcher was given.
    pub(crate) fn deliver(&self, watcher: u64, value: &[u8]) -> Result<()> {
        ensure!(
            value.len() == EVENT_BYTES,
            "an event has {} bytes",
            value.len()
        );
        let due = value.get(8..16).and_then(|due| due.try_into().ok());
        let due = u64::from_be_bytes(due.context("an event without a time")?);
        let due = self.base + Duration::from_nanos(due);
        let lane = usize::try_from(watcher)?;
        if let Some(recorder) = self.recorder.get() {
            let _ = recorder.note(lane, due);
        }
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        if before.is_multiple_of(self.step) {
            self.progress.notify_one();
        }
        Ok(())
    }

    /// From now on deliveries within the window count.
    fn begin(&self, window: Window) {
        let _ = self.recorder.set(Recorder::new(window));
    }

    fn summary(&self) -> Latencies {
        let recorder = self.recorder.get();
        recorder.map(Recorder::summary).unwrap_or_default()
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// A cell with one writer and many watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct FanOut {
    pub(crate) watchers: u64,
    pub(crate) wanted: Wanted,
    /// Events a second; `None`: as many as are delivered.
    pub(crate) rate: Option<u32>,
}

impl std::fmt::Display for FanOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (watchers, wanted) = (self.watchers, self.wanted.name());
        write!(f, "fan-out 1 to {watchers} ({wanted})")?;
        match self.rate {
            Some(rate) => write!(f, " at {rate}/s"),
            None => Ok(()),
        }
    }
}

impl FanOut {
    /// Connections that the watchers are spread over.
    pub(crate) fn connections(self) -> usize {
        usize::try_from(self.watchers.min(100)).unwrap_or(100)
    }
}

/// Runs it: the first client writes, the others watch.
pub(crate) async fn run<C: Client>(
    clients: &[C],
    server: u32,
    cell: FanOut,
    times: Times,
) -> Result<Figures> {
    let (writer, watching) = clients.split_first().context("no client")?;
    let watchers = cell.watchers;
    let (deliveries, tasks) = open_watches(watching, cell).await?;
    let window = Window::after(times.warm_up, times.time);
    deliveries.begin(window);
    let audience = Audience {
        wanted: cell.wanted,
        watchers,
    };
    let meter = Meter::over(window, server);
    let writing = async {
        match cell.rate {
            Some(rate) => paced(writer, audience, &deliveries, rate, window).await,
            None => saturated(writer, audience, &deliveries, ahead_max(cell), window).await,
        }
    };
    let (used, written) = tokio::join!(meter, writing);
    for task in tasks {
        if task.is_finished() {
            // A watch that has ended before its time says why.
            task.await?.context("a watch ended")?;
        } else {
            task.abort();
        }
    }
    written?;
    used?.figures(deliveries.summary(), window)
}

type Watching = JoinHandle<Result<()>>;

async fn open_watches<C: Client>(
    clients: &[C],
    cell: FanOut,
) -> Result<(Arc<Deliveries>, Vec<Watching>)> {
    const OPENING: usize = 64;
    let step = cell.wanted.reached(cell.watchers) * ahead_max(cell) / 8;
    let deliveries = Arc::new(Deliveries::new(step));
    let opening = (0..cell.watchers).zip(clients.iter().cycle());
    let opening = opening.map(|(number, client)| {
        let interest = Interest::of(cell.wanted, number);
        client.subscribe(interest, deliveries.clone(), number)
    });
    let mut opening = stream::iter(opening).buffer_unordered(OPENING);
    let mut tasks = Vec::new();
    while let Some(task) = tokio::time::timeout(PATIENCE, opening.next()).await? {
        tasks.push(task?);
    }
    drop(opening);
    Ok((deliveries, tasks))
}

/// Events that the writer may be ahead of the deliveries: fewer where each is delivered more often.
fn ahead_max(cell: FanOut) -> u64 {
    let each = cell.wanted.reached(cell.watchers).max(1);
    (AHEAD_DELIVERIES / each).clamp(AHEAD_MIN, AHEAD_MAX)
}

/// Writes as fast as events are delivered.
async fn saturated<C: Client>(
    writer: &C,
    audience: Audience,
    deliveries: &Deliveries,
    ahead_max: u64,
    window: Window,
) -> Result<()> {
    let each = audience.wanted.reached(audience.watchers).max(1);
    let mut writing = stream::FuturesUnordered::new();
    let mut number = 0;
    let mut moved = (0, Instant::now());
    while Instant::now() < window.end {
        let count = deliveries.count();
        if count != moved.0 {
            moved = (count, Instant::now());
        } else if moved.1.elapsed() > PATIENCE {
            bail!("{count} deliveries of {number} events, and no more");
        }
        // With one delivery for each event, what counts is how many are on their way.
        let ahead = (number * each).saturating_sub(count) / each;
        if ahead < ahead_max && writing.len() < IN_FLIGHT {
            let now = Instant::now();
            let value = event(number, now, deliveries.base);
            writing.push(writer.publish(audience, number, value));
            number += 1;
            continue;
        }
        // Woken by a write that is done or by deliveries: a writer that looks again and again would take a processor from
        // the server.
        tokio::select! {
            Some(written) = writing.next() => written?,
            () = deliveries.progress.notified() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    while let Some(written) = tokio::time::timeout(PATIENCE, writing.next()).await? {
        written?;
    }
    Ok(())
}

/// Writes so many a second, whatever becomes of them.
async fn paced<C: Client>(
    writer: &C,
    audience: Audience,
    deliveries: &Deliveries,
    rate: u32,
    window: Window,
) -> Result<()> {
    let schedule = Schedule {
        begin: Instant::now(),
        rate,
    };
    let mut due = schedule.start(window.end);
    let mut writing = stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            next = due.recv() => {
                let Some((number, due)) = next else { break };
                let value = event(number, due, deliveries.base);
                writing.push(writer.publish(audience, number, value));
            }
            Some(written) = writing.next() => written?,
        }
    }
    while let Some(written) = tokio::time::timeout(PATIENCE, writing.next()).await? {
        written?;
    }
    Ok(())
}

/// When requests of an open loop are due: at a steady rate, whatever becomes of those before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) begin: Instant,
    pub(crate) rate: u32,
}

impl Schedule {
    /// When request `number` is due.
    pub(crate) fn due(self, number: u64) -> Instant {
        self.begin + Duration::from_nanos(number * 1_000_000_000 / u64::from(self.rate.max(1)))
    }

    /// Tells each number when it is due. By a thread: the runtime's timers are exact to a millisecond only. One that
    /// comes late has its time all the same.
    fn start(self, end: Instant) -> mpsc::Receiver<(u64, Instant)> {
        let (sender, receiver) = mpsc::channel(1024);
        std::thread::spawn(move || {
            for number in 0.. {
                let due = self.due(number);
                if due >= end {
                    return;
                }
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if sender.blocking_send((number, due)).is_err() {
                    return;
                }
            }
        });
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_steady_and_does_not_wait() {
        let begin = Instant::now();
        let schedule = Schedule { begin, rate: 200 };
        assert_eq!(schedule.due(0), begin);
        assert_eq!(schedule.due(1), begin + Duration::from_millis(5));
        assert_eq!(schedule.due(2_000), begin + Duration::from_secs(10));
    }

    #[test]
    fn an_event_is_for_those_whose_prefix_its_key_has() {
        for wanted in [Wanted::All, Wanted::Tenth, Wanted::One] {
            let audience = Audience {
                wanted,
                watchers: 100,
            };
            for number in [0, 7, 1_234_567] {
                let key = audience.key(number);
                let channel = audience.of(number).channel();
                let all = (0..100).map(|watcher| Interest::of(wanted, watcher));
                let by_prefix = all.clone().filter(|one| key.starts_with(&one.prefix()));
                let by_channel = all.filter(|one| one.channel() == channel);
                let due = wanted.reached(100);
                assert_eq!(by_prefix.count() as u64, due);
                assert_eq!(by_channel.count() as u64, due);
            }
        }
    }

    #[test]
    fn a_delivery_counts_from_when_its_event_was_due() {
        let deliveries = Deliveries::new(1);
        let early = event(2, deliveries.base, deliveries.base);
        deliveries.deliver(0, &early).unwrap();
        deliveries.begin(Window::after(Duration::ZERO, Duration::from_secs(60)));
        let value = event(3, deliveries.base, deliveries.base);
        std::thread::sleep(Duration::from_millis(20));
        deliveries.deliver(0, &value).unwrap();
        let summary = deliveries.summary();
        assert_eq!(summary.count, 1);
        assert!(summary.max >= 20_000.0, "{summary:?}");
        assert!(deliveries.deliver(0, b"short").is_err());
    }
}
