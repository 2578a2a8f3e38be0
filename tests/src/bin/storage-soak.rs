//! A long run of concurrent clients under faults, judged in rounds. Run it by `scripts/soak`, which builds what it
//! needs.
//!
//! A round is a few seconds of work on two fresh keyspaces of one server, with faults of the network and ends of the
//! server (kill -9 and SIGTERM) in it; then its histories are judged and forgotten, so memory stays bounded however
//! long it runs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_testkit::history::jsonl;
use storage_testkit::robots::{Fire, under_fire};
use storage_testkit::workload::{Figures, Report, Settings, Stage, run};
use tokio::task::JoinSet;
use tokio::time::sleep;

const HELP: &str = "\
usage: storage-soak [--minutes N] [--seed S] [--keep DIR]
       storage-soak --jobs [--minutes N] [--seed S]

  --minutes N  how long; default 10; 0 for one round
  --seed S     the first round's seed, each later one counts on; default by the clock
  --keep DIR   keep the histories of every round as JSON lines in DIR; default: only of a round with a violation, in
               a temporary folder that is named
  --jobs       instead: robots and their jobs

Exit code: 0 every promise was kept; 1 one was not, which is named with its seed; 2 wrong use, or it could not run.";

/// Keyspaces at a time. Each has its own seed.
const KEYSPACES: u64 = 2;

/// One round.
const ROUND: Settings = Settings {
    length: Duration::from_secs(5),
    connections: 4,
    watchers: 4,
    replicas: 2,
    calls_max: 1_500,
    pace: Some(Duration::from_millis(350)),
    deadline: Duration::from_millis(700),
};

/// A round of jobs.
const JOBS: Fire = Fire {
    seed: 0,
    robots: 1_000,
    jobs: 10_000,
    length: Duration::from_secs(60),
    kills: 6,
};

/// Wait until the server is ended next, in milliseconds.
const END_AFTER: std::ops::Range<u64> = 1_000..3_500;

/// What was asked for.
struct Options {
    length: Duration,
    seed: u64,
    keep: Option<PathBuf>,
    jobs: bool,
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("storage-soak: {why}\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(why) => {
            eprintln!("storage-soak: {why}");
            return ExitCode::from(2);
        }
    };
    // A task of its own, so that what cannot go on (a server that does not start) ends with 2.
    let soaking = match options.jobs {
        true => runtime.spawn(soak_jobs(options)),
        false => runtime.spawn(soak(options)),
    };
    match runtime.block_on(soaking) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("storage-soak: it could not go on: {why}");
            ExitCode::from(2)
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let (mut minutes, mut seed, mut keep, mut jobs) = (10, None, None, false);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next();
            value.ok_or_else(|| format!("{argument} needs a value"))
        };
        let number = |text: String| {
            let number = text.parse::<u64>();
            number.map_err(|_| format!("{text:?} is no number"))
        };
        match argument.as_str() {
            "--minutes" => minutes = number(value()?)?,
            "--seed" => seed = Some(number(value()?)?),
            "--keep" => keep = Some(PathBuf::from(value()?)),
            "--jobs" => jobs = true,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("unknown option {argument}")),
        }
    }
    let by_the_clock = || storage_protocol::UnixMillis::now().0 % 1_000_000_000;
    Ok(Some(Options {
        length: Duration::from_secs(minutes * 60),
        seed: seed.unwrap_or_else(by_the_clock),
        keep,
        jobs,
    }))
}

/// Whether every promise was kept.
async fn soak(options: Options) -> bool {
    let stage = match tokio::task::spawn_blocking(Stage::start).await {
        Ok(stage) => stage,
        Err(why) => std::panic::resume_unwind(why.into_panic()),
    };
    let began = Instant::now();
    let mut total = Figures::default();
    let mut seed = options.seed;
    println!("storage-soak: seed {seed}, {:?}", options.length);
    loop {
        let (reports, figures) = round(&stage, seed).await;
        total.add(&figures);
        let mut kept = true;
        for report in &reports {
            total.add(&report.figures);
            kept &= tell(report, seed, options.keep.as_ref());
        }
        total.repeated = stage.repeated().await;
        progress(began.elapsed(), seed, &total, &stage);
        if !kept {
            return false;
        }
        seed = seed.wrapping_add(KEYSPACES);
        if began.elapsed() >= options.length {
            println!("storage-soak: every promise was kept");
            return true;
        }
    }
}

/// Robots and their jobs, round after round.
async fn soak_jobs(options: Options) -> bool {
    let began = Instant::now();
    let mut seed = options.seed;
    println!("storage-soak: jobs, seed {seed}, {:?}", options.length);
    loop {
        let outcome = under_fire(Fire { seed, ..JOBS }).await;
        println!(
            "{:>5} s  seed {seed}: {:?}, {} packages sent, {} triggers without an answer",
            began.elapsed().as_secs(),
            outcome.of,
            outcome.received,
            outcome.unanswered
        );
        for found in outcome.violations.iter().take(20) {
            println!("VIOLATION, seed {seed}: {found}");
        }
        if !outcome.violations.is_empty() {
            return false;
        }
        seed = seed.wrapping_add(1);
        if began.elapsed() >= options.length {
            println!("storage-soak: every promise was kept");
            return true;
        }
    }
}

/// Two runs at once, and the server ended every few seconds.
async fn round(stage: &Stage, seed: u64) -> (Vec<Report>, Figures) {
    let mut runs = JoinSet::new();
    for seed in (0..KEYSPACES).map(|place| seed.wrapping_add(place)) {
        let stage = stage.clone();
        runs.spawn(async move {
            let keyspace = format!("soak-{seed}");
            run(&stage, seed, &keyspace, ROUND).await
        });
    }
    let mut random = StdRng::seed_from_u64(seed);
    let mut figures = Figures::default();
    let began = Instant::now();
    loop {
        let pause = Duration::from_millis(random.random_range(END_AFTER));
        // Not behind the end of the work: from there on all is healed.
        if began.elapsed() + pause > ROUND.length.mul_f64(0.9) {
            break;
        }
        sleep(pause).await;
        let kind = if random.random_bool(0.7) {
            stage.kill().await;
            "kill -9"
        } else {
            stage.terminate().await;
            "sigterm"
        };
        *figures.faults.entry(kind).or_default() += 1;
    }
    (runs.join_all().await, figures)
}

/// Keeps what is to be kept and tells violations; whether there are none.
fn tell(report: &Report, first: u64, keep: Option<&PathBuf>) -> bool {
    let violations = &report.verdict.violations;
    if keep.is_none() && violations.is_empty() {
        return true;
    }
    let temporary = std::env::temp_dir().join("storage-soak");
    let folder = keep.unwrap_or(&temporary);
    match jsonl::save(&report.history, folder) {
        Ok(path) if !violations.is_empty() => println!("kept: {}", path.display()),
        Ok(_) => {}
        Err(why) => eprintln!("storage-soak: {}: {why}", folder.display()),
    }
    let seed = report.history.seed;
    for found in violations.iter().take(20) {
        println!("VIOLATION, seed {seed} (--seed {first} begins with it): {found}");
    }
    violations.is_empty()
}

fn progress(elapsed: Duration, seed: u64, total: &Figures, stage: &Stage) {
    let faults: u64 = total.faults.values().sum();
    println!(
        "{:>5} s  seed {seed}: {} calls ({} committed, {} read, {} refused, {} not executed, {} unknown ({:.2} %), of \
         them {} in effect), {} commits repeated, {} events, {} reconnects, {} sessions replaced, {} connected anew, \
         watches: {} continuous, {} resynced, {} opened again, replicas: {} reads, {} changes, {} own writes, {} opened \
         again, {} resumed, {} full passes; {} undecided, server {} MiB; {faults} faults: {}",
        elapsed.as_secs(),
        total.calls,
        total.committed,
        total.read,
        total.refused,
        total.not_executed,
        total.unknown,
        total.unknown_percent(),
        total.unknown_in_effect,
        total.repeated,
        total.events,
        total.reconnects,
        total.replaced,
        total.connected_anew,
        total.continuous,
        total.resynced,
        total.reopened,
        total.replica_reads,
        total.replica_batches,
        total.own_writes,
        total.replicas_reopened,
        total.replicas_resumed,
        total.replica_full_passes,
        total.undecided,
        stage.resident_bytes() >> 20,
        total
            .faults
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect::<Vec<_>>()
            .join(", "),
    );
}
