//! RocksDB alone, with the options of the engine as far as they are about speed: a process of its own that loads itself,
//! one call of RocksDB for each request, in as many threads as there are requests in flight, but not more than
//! processors.
//!
//! It takes commands as lines of JSON, and answers each with one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, Options, WriteBatch,
    WriteBufferManager, WriteOptions,
};
use serde::{Deserialize, Serialize};

use super::Place;
use crate::keys::{Choice, Key, Random, key, scan_start};
use crate::load::{Data, Figures, Times, WARM_KEYS_MAX, together};
use crate::process::{PATIENCE, Process, cpu_of, resident_of};
use crate::stats::{Recorder, Window};
use crate::work::{Cell, SCANNED, TOGETHER, Work};

/// The engine's default budget.
const MEMORY: u64 = 512 << 20;

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Load {
        keys: u64,
        value: usize,
    },
    Run {
        cell: String,
        keys: u64,
        times: Times,
    },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Loaded,
    Figures(Figures),
    Failed(String),
}

/// The process.
#[derive(Debug)]
pub(crate) struct Raw {
    process: Process,
}

impl Raw {
    pub(crate) fn start(place: &Place, sync: bool, memory: Option<u64>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("raw").arg(place.data());
        command.args(["--memory", &memory.unwrap_or(MEMORY).to_string()]);
        if sync {
            command.arg("--sync");
        }
        let process = Process::start("raw RocksDB", &mut command, &place.log(), true)?;
        Ok(Self { process })
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    fn ask(&mut self, order: &Order, patience: Duration) -> Result<Answer> {
        self.process.say(&serde_json::to_string(order)?)?;
        Ok(serde_json::from_str(&self.process.line(patience)?)?)
    }

    pub(crate) fn preload(&mut self, data: &Data) -> Result<()> {
        let order = Order::Load {
            keys: data.keys,
            value: data.values.bytes(),
        };
        let answer = self.ask(&order, 10 * PATIENCE)?;
        ensure!(matches!(answer, Answer::Loaded), "{answer:?}");
        Ok(())
    }

    pub(crate) fn cell(&mut self, cell: Cell, data: &Data, times: Times) -> Result<Figures> {
        let order = Order::Run {
            cell: cell.to_string(),
            keys: data.keys,
            times,
        };
        match self.ask(&order, times.warm_up + times.time + PATIENCE)? {
            Answer::Figures(figures) => Ok(figures),
            other => anyhow::bail!("{other:?}"),
        }
    }
}

/// What the process does, until its input ends.
pub(crate) fn serve(folder: &Path, sync: bool, memory: u64) -> Result<()> {
    let db = open(folder.to_owned(), usize::try_from(memory)?)?;
    let store = Arc::new(Store { db, sync });
    let mut data: Option<Data> = None;
    for line in std::io::stdin().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let answer = match order {
            Order::Load { keys, value } => {
                let fresh = data.insert(Data::new(keys, value));
                let loaded = store.load(fresh).and_then(|()| store.warm(fresh));
                loaded.map(|()| Answer::Loaded)
            }
            Order::Run { cell, keys, times } => {
                let cell: Cell = cell.parse()?;
                let fits = data
                    .take()
                    .filter(|data| data.keys == keys && data.values.bytes() == cell.value);
                let data = data.insert(fits.unwrap_or_else(|| Data::new(keys, cell.value)));
                run(&store, cell, data, times).map(Answer::Figures)
            }
        };
        let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn open(folder: PathBuf, memory: usize) -> Result<DB> {
    let cache = Cache::new_lru_cache(memory / 3);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_max_total_wal_size(256 << 20);
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        (memory / 8).max(16 << 20),
        false,
        cache.clone(),
    ));
    options.set_max_background_jobs(2);
    options.set_max_open_files(1024);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_format_version(6);
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(32 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(4 * 1024);
    options.set_enable_blob_gc(true);
    options.set_blob_cache(&cache);
    Ok(DB::open(&options, folder)?)
}

struct Store {
    db: DB,
    sync: bool,
}

impl Store {
    fn write_options(&self) -> WriteOptions {
        let mut options = WriteOptions::default();
        options.set_sync(self.sync);
        options
    }

    fn load(&self, data: &Data) -> Result<()> {
        let mut random = Random::new(0);
        for start in (0..data.keys).step_by(TOGETHER) {
            let mut batch = WriteBatch::default();
            for number in start..(start + TOGETHER as u64).min(data.keys) {
                batch.put(key(number), data.values.value(random.next()));
            }
            self.db.write_opt(batch, &WriteOptions::default())?;
        }
        Ok(())
    }

    /// Reads all of it once, as is done with the others.
    fn warm(&self, data: &Data) -> Result<()> {
        if data.keys <= WARM_KEYS_MAX {
            for number in 0..data.keys {
                self.get(key(number), data.values.bytes())?;
            }
        }
        Ok(())
    }

    fn get(&self, key: Key, due: usize) -> Result<()> {
        let value = self.db.get_pinned(key)?.context("a key was not found")?;
        // As an answer has it.
        let copy = value.to_vec();
        ensure!(copy.len() == due, "a value has {} bytes", copy.len());
        Ok(())
    }

    fn request(&self, cell: Cell, data: &Data, choice: &Choice, random: &mut Random) -> Result<()> {
        let bytes = data.values.bytes();
        let put = |random: &mut Random| -> Result<()> {
            let key = key(choice.number(random));
            let value = data.values.value(random.next());
            Ok(self.db.put_opt(key, value, &self.write_options())?)
        };
        match cell.work {
            Work::Get => self.get(key(choice.number(random)), bytes),
            Work::Put => put(random),
            Work::Mix if random.next() % 100 < 95 => self.get(key(choice.number(random)), bytes),
            Work::Mix => put(random),
            Work::MultiGet => {
                let keys = together(choice, data.keys, random);
                for value in self.db.multi_get(keys) {
                    let value = value?.context("a key was not found")?;
                    ensure!(value.len() == bytes, "a value has {} bytes", value.len());
                }
                Ok(())
            }
            Work::Commit => {
                let mut batch = WriteBatch::default();
                for key in together(choice, data.keys, random) {
                    batch.put(key, data.values.value(random.next()));
                }
                Ok(self.db.write_opt(batch, &self.write_options())?)
            }
            Work::Scan => {
                let start = scan_start(random.next());
                let mode = IteratorMode::From(&start, Direction::Forward);
                let mut found = 0;
                for item in self.db.iterator(mode).take(SCANNED) {
                    found += item?.1.len();
                }
                ensure!(found == SCANNED * bytes, "a scan found {found} bytes");
                Ok(())
            }
            Work::CompareAndSet => {
                let key = key(choice.number(random));
                drop(self.db.get_pinned(key)?);
                let value = data.values.value(random.next());
                Ok(self.db.put_opt(key, value, &self.write_options())?)
            }
        }
    }
}

fn run(store: &Arc<Store>, cell: Cell, data: &Data, times: Times) -> Result<Figures> {
    let window = Window::after(times.warm_up, times.time);
    let recorder = Recorder::new(window);
    let processors = std::thread::available_parallelism()?.get();
    let threads = (cell.connections * cell.in_flight).min(processors);
    let choice = match cell.work {
        Work::Mix => Choice::Zipf(data.zipf.clone()),
        _ => Choice::Uniform(data.keys),
    };
    let lane = |number: usize| -> Result<()> {
        let mut random = Random::new(rand::random());
        loop {
            let sent = Instant::now();
            store.request(cell, data, &choice, &mut random)?;
            if !recorder.note(number, sent).1 {
                return Ok(());
            }
        }
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || lane(number)))
            .collect();
        std::thread::sleep(window.begin.saturating_duration_since(Instant::now()));
        let before = cpu_of("self")?;
        std::thread::sleep(window.end.saturating_duration_since(Instant::now()));
        let used = cpu_of("self")?.saturating_sub(before);
        for lane in lanes {
            lane.join()
                .map_err(|_| anyhow::anyhow!("a thread ended"))??;
        }
        let latency = recorder.summary();
        ensure!(latency.count > 0, "nothing was answered in time");
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let count = latency.count as f64;
        Ok(Figures {
            rate: count / times.time.as_secs_f64(),
            latency,
            server_cpu_us: used.as_secs_f64() * 1e6 / count,
            client_cpu_us: 0.0,
            server_memory: resident_of("self")?,
            memory_each: None,
        })
    })
}
