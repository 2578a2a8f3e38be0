//! The load of a cell: lanes that each keep one request in flight, over all connections, for a warm-up and then for the
//! time that counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::client::Client;
use crate::keys::{Choice, Key, Random, Values, Zipf, key, scan_start};
use crate::process::{cpu_of, resident_of};
use crate::stats::{Latencies, Recorder, Window};
use crate::work::{Cell, SCANNED, TOGETHER, Work};

/// A cell may take so much longer than its time before it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that are opened at once.
const OPENING: usize = 16;

/// What a cell gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Requests (or deliveries, or connections) a second.
    pub(crate) rate: f64,
    /// Microseconds of the requests that counted.
    pub(crate) latency: Latencies,
    /// Processor time of the server for each, in microseconds.
    pub(crate) server_cpu_us: f64,
    /// Of the load's own process.
    pub(crate) client_cpu_us: f64,
    /// Resident memory of the server at the end, in bytes.
    pub(crate) server_memory: u64,
    /// What each of many cost of it, where that is what was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_each: Option<f64>,
}

/// What a load runs on.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    /// Numbers of keys go up to this.
    pub(crate) keys: u64,
    pub(crate) values: Values,
    /// Of all keys, for the mix; costly to make.
    pub(crate) zipf: Zipf,
}

impl Data {
    /// So many keys with values of so many bytes.
    pub(crate) fn new(keys: u64, value: usize) -> Self {
        Self {
            keys,
            values: Values::new(value),
            zipf: Zipf::new(keys, 0.99),
        }
    }
}

/// Times of a cell.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

/// Opens so many connections.
pub(crate) async fn open<C, F, R>(count: usize, connect: F) -> Result<Vec<C>>
where
    C: Send,
    F: Fn() -> R + Send + Sync,
    R: Future<Output = Result<C>> + Send,
{
    let mut opening = stream::iter(0..count)
        .map(|_| async { tokio::time::timeout(PATIENCE, connect()).await? })
        .buffer_unordered(OPENING);
    let mut open = Vec::with_capacity(count);
    while let Some(client) = opening.next().await {
        open.push(client.with_context(|| format!("connection {} of {count}", open.len() + 1))?);
    }
    Ok(open)
}

/// Closes all of them.
pub(crate) async fn close<C: Client>(clients: Vec<C>) {
    let closing = stream::iter(clients).for_each_concurrent(OPENING, Client::close);
    // A system that does not answer a close is ended later in any case.
    let _ = tokio::time::timeout(PATIENCE, closing).await;
}

/// Stores of more keys than this do not fit into caches: nothing is read into them beforehand.
pub(crate) const WARM_KEYS_MAX: u64 = 1_000_000;

/// Requests of a load that are in flight.
const LOADING: usize = 8;

/// Keys that are put or read together, so that messages have no more than a mebibyte.
fn chunks(data: &Data) -> impl Iterator<Item = std::ops::Range<u64>> + use<> {
    let keys = data.keys;
    let together = (1 << 20) / data.values.bytes().max(1);
    let together = together.clamp(1, TOGETHER);
    let starts = (0..keys).step_by(together);
    starts.map(move |start| start..(start + together as u64).min(keys))
}

/// Puts all keys, by commits.
pub(crate) async fn preload<C: Client>(client: &C, data: &Data) -> Result<()> {
    let mut random = Random::new(0);
    let loading = chunks(data).map(|numbers| {
        let puts = numbers.map(|n| (key(n), data.values.value(random.next())));
        client.commit(puts.collect())
    });
    all(loading).await.context("the data are not loaded")
}

/// Reads all keys once, so that they are where they are read fastest. The first gets after a load are measured on their
/// own.
pub(crate) async fn warm<C: Client>(client: &C, data: &Data) -> Result<()> {
    if data.keys > WARM_KEYS_MAX {
        return Ok(());
    }
    let bytes = data.values.bytes();
    let reading = chunks(data).map(|numbers| {
        let keys: Vec<Key> = numbers.map(key).collect();
        async move {
            let due = keys.len() * bytes;
            expect(client.multi_get(keys).await?, due)
        }
    });
    all(reading).await.context("the data cannot be read")
}

async fn all<F>(requests: impl Iterator<Item = F> + Send) -> Result<()>
where
    F: Future<Output = Result<()>> + Send,
{
    let mut requests = stream::iter(requests).buffer_unordered(LOADING);
    let all = async {
        while let Some(done) = requests.next().await {
            done?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(10 * PATIENCE, all).await?
}

/// Runs a cell. `server`: the id of the process whose time is taken.
pub(crate) async fn run<C: Client>(
    clients: &[C],
    server: u32,
    cell: Cell,
    data: &Data,
    times: Times,
) -> Result<Figures> {
    let window = Window::after(times.warm_up, times.time);
    let recorder = Arc::new(Recorder::new(window));
    let mut lanes = JoinSet::new();
    let number_of_lanes = clients.len() * cell.in_flight;
    for number in 0..number_of_lanes {
        // Neighbouring lanes are on different connections.
        let Some(client) = clients.get(number % clients.len()) else {
            break;
        };
        let lane = Lane {
            client: client.clone(),
            number,
            lanes: number_of_lanes as u64,
            cell,
            data: data.clone(),
            random: Random::new(rand::random()),
        };
        lanes.spawn(lane.run(recorder.clone()));
    }
    let meter = Meter::over(window, server);
    let deadline = times.warm_up + times.time + PATIENCE;
    let all = async {
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        anyhow::Ok(())
    };
    let (used, done) = tokio::join!(meter, tokio::time::timeout(deadline, all));
    done.with_context(|| format!("{cell} does not end"))??;
    used?.figures(recorder.summary(), window)
}

/// What a window used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    server: Duration,
    client: Duration,
    memory: u64,
}

impl Meter {
    /// Looks at both processes at the window's beginning and at its end.
    pub(crate) async fn over(window: Window, server: u32) -> Result<Self> {
        let server = server.to_string();
        let look = || -> Result<_> { Ok((cpu_of(&server)?, cpu_of("self")?)) };
        tokio::time::sleep_until(window.begin.into()).await;
        let before = look()?;
        tokio::time::sleep_until(window.end.into()).await;
        let after = look()?;
        Ok(Self {
            server: after.0.saturating_sub(before.0),
            client: after.1.saturating_sub(before.1),
            memory: resident_of(&server)?,
        })
    }

    /// What that is for each of what was noted in the window.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn figures(self, latency: Latencies, window: Window) -> Result<Figures> {
        ensure!(latency.count > 0, "nothing was answered in time");
        let count = latency.count as f64;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / count;
        Ok(Figures {
            rate: count / (window.end - window.begin).as_secs_f64(),
            latency,
            server_cpu_us: each(self.server),
            client_cpu_us: each(self.client),
            server_memory: self.memory,
            memory_each: None,
        })
    }
}

/// One request in flight at a time.
struct Lane<C> {
    client: C,
    number: usize,
    lanes: u64,
    cell: Cell,
    data: Data,
    random: Random,
}

impl<C: Client> Lane<C> {
    async fn run(mut self, recorder: Arc<Recorder>) -> Result<()> {
        let choice = match self.cell.work {
            Work::Mix => Choice::Zipf(self.data.zipf.clone()),
            _ => Choice::Uniform(self.data.keys),
        };
        let mut seen = None;
        let mut sent = Instant::now();
        loop {
            let answer = self.request(&choice, &mut seen).await;
            answer.with_context(|| self.cell.to_string())?;
            let (now, goes_on) = recorder.note(self.number, sent);
            if !goes_on {
                return Ok(());
            }
            sent = now;
        }
    }

    async fn request(&mut self, choice: &Choice, seen: &mut Option<u64>) -> Result<()> {
        let bytes = self.data.values.bytes();
        match self.cell.work {
            Work::Get => self.get(choice).await,
            Work::Put => self.put(choice).await,
            Work::Mix => {
                if self.random.next() % 100 < 95 {
                    self.get(choice).await
                } else {
                    self.put(choice).await
                }
            }
            Work::MultiGet => {
                let keys = self.together(choice);
                expect(self.client.multi_get(keys).await?, TOGETHER * bytes)
            }
            Work::Commit => {
                let keys = self.together(choice).into_iter();
                let puts = keys.map(|key| (key, self.value())).collect();
                self.client.commit(puts).await
            }
            Work::Scan => {
                let start = scan_start(self.random.next());
                expect(self.client.scan(start, SCANNED).await?, SCANNED * bytes)
            }
            Work::CompareAndSet => {
                // A key of this lane's own, so that it is as this lane left it.
                let own = key(self.number as u64 % self.lanes);
                let value = self.value();
                *seen = Some(self.client.compare_and_set(own, *seen, value).await?);
                Ok(())
            }
        }
    }

    fn key(&mut self, choice: &Choice) -> Key {
        key(choice.number(&mut self.random))
    }

    /// [`TOGETHER`] keys, each of them once: no commit has a key twice.
    fn together(&mut self, choice: &Choice) -> Vec<Key> {
        together(choice, self.data.keys, &mut self.random)
    }

    fn value(&mut self) -> Bytes {
        self.data.values.value(self.random.next())
    }

    async fn get(&mut self, choice: &Choice) -> Result<()> {
        let key = self.key(choice);
        expect(self.client.get(key).await?, self.data.values.bytes())
    }

    async fn put(&mut self, choice: &Choice) -> Result<()> {
        let (key, value) = (self.key(choice), self.value());
        self.client.put(key, value).await
    }
}

/// Keys of one multi-get or commit: each of them once, and they are in no order.
pub(crate) fn together(choice: &Choice, keys: u64, random: &mut Random) -> Vec<Key> {
    let first = choice.number(random);
    let numbers = (first..).take(TOGETHER);
    numbers.map(|number| key(number % keys)).collect()
}

fn expect(found: usize, due: usize) -> Result<()> {
    if found != due {
        bail!("{found} bytes of values were found in place of {due}");
    }
    Ok(())
}
