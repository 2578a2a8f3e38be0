//! Seeded runs of concurrent clients under faults of the network and kill -9, judged by what was promised.
//!
//! `HISTORY_SEED=N` runs one seed alone, `HISTORY_RUNS=N` so many instead of 200, `HISTORY_DIR=DIR` keeps each history
//! as JSON lines (a history with a violation is kept in any case).

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::path::PathBuf;
use std::time::Duration;

use storage_testkit::history::{Outcome, Request, jsonl};
use storage_testkit::workload::{Figures, Report, Settings, Stage, run};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Runs at a time: keyspaces of one server, which is killed once meanwhile.
const AT_ONCE: u64 = 10;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap())
}

/// So many seeds at once, with one end of the server somewhere in the middle.
async fn batch(stage: &Stage, seeds: &[u64], settings: Settings) -> (Vec<Report>, Figures) {
    let mut runs = JoinSet::new();
    for &seed in seeds {
        let stage = stage.clone();
        runs.spawn(async move {
            let keyspace = format!("seed-{seed}");
            run(&stage, seed, &keyspace, settings).await
        });
    }
    let first = seeds.first().copied().unwrap();
    // Somewhere between the first calls and the last.
    sleep(settings.length.mul_f64(0.2 + 0.05 * (first % 11) as f64)).await;
    let mut figures = Figures::default();
    // Every fourth time in order.
    if first / AT_ONCE % 4 == 3 {
        stage.terminate().await;
        figures.faults.insert("sigterm", 1);
    } else {
        stage.kill().await;
        figures.faults.insert("kill -9", 1);
    }
    (runs.join_all().await, figures)
}

fn keep(report: &Report) -> PathBuf {
    let folder = match std::env::var_os("HISTORY_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::temp_dir().join("storage-histories"),
    };
    jsonl::save(&report.history, &folder).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_seeded_runs_under_faults_keep_every_promise() {
    let stage = tokio::task::spawn_blocking(Stage::start).await.unwrap();
    let seeds: Vec<u64> = match number("HISTORY_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("HISTORY_RUNS").unwrap_or(200)).collect(),
    };
    let mut total = Figures::default();
    let mut bad = Vec::new();
    let mut runs = 0;
    for seeds in seeds.chunks(usize::try_from(AT_ONCE).unwrap()) {
        println!("seeds {seeds:?}");
        let (reports, figures) = batch(&stage, seeds, Settings::short()).await;
        total.add(&figures);
        for report in reports {
            runs += 1;
            total.add(&report.figures);
            let violations = &report.verdict.violations;
            if !violations.is_empty() {
                let path = keep(&report);
                let seed = report.history.seed;
                println!(
                    "seed {seed}: {} violations, {}",
                    violations.len(),
                    path.display()
                );
                bad.extend(
                    violations
                        .iter()
                        .take(5)
                        .map(|found| format!("seed {seed}: {found}")),
                );
            } else if std::env::var_os("HISTORY_DIR").is_some() {
                keep(&report);
            }
        }
    }
    total.repeated = stage.repeated().await;
    println!(
        "{runs} runs, {:.2} % of the commits unknown: {total:#?}",
        total.unknown_percent()
    );
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert_eq!(total.undecided, 0, "searches were given up");
    // The runs are worth something.
    if runs >= 100 {
        // (The bounds are for a machine that does ten other things.)
        assert!(total.calls > runs * 20, "{} calls", total.calls);
        assert!(total.events > runs * 20, "{} events", total.events);
        assert!(total.faults.len() >= 12, "{:?}", total.faults);
        assert!(total.continuous > runs, "{total:?}");
        assert!(total.repeated > runs / 4, "{total:?}");
        assert!(total.replica_reads > runs * 10, "{total:?}");
        assert!(total.own_writes > runs / 2, "{total:?}");
        assert!(total.replicas_reopened > runs / 10, "{total:?}");
        assert!(total.replicas_resumed > runs / 10, "{total:?}");
    }
    // Sessions outlive sockets and servers, and clients never give up.
    assert_eq!((total.replaced, total.connected_anew), (0, 0));
}

/// Where callers have time, they see next to nothing of all this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_deadlines_beyond_the_outages_no_call_fails_and_no_commit_is_unknown() {
    let stage = tokio::task::spawn_blocking(Stage::start).await.unwrap();
    let settings = Settings {
        deadline: Duration::from_secs(30),
        ..Settings::short()
    };
    let mut total = Figures::default();
    for first in (1_010..1_010 + 3 * AT_ONCE).step_by(usize::try_from(AT_ONCE).unwrap()) {
        let seeds: Vec<u64> = (first..first + AT_ONCE).collect();
        let (reports, figures) = batch(&stage, &seeds, settings).await;
        total.add(&figures);
        for report in reports {
            let violations = &report.verdict.violations;
            assert!(
                violations.is_empty(),
                "seed {}: {violations:?}",
                report.history.seed
            );
            total.add(&report.figures);
            let failed = report.history.calls.iter().filter(|call| match &call.outcome {
                Outcome::Unknown { .. } => true,
                // Its check had failed, and the answer was lost. To try it anew would put it behind later commits.
                Outcome::NotExecuted { error } => {
                    let checked = matches!(&call.request, Request::Commit { checks, .. } if !checks.is_empty());
                    // A scan of several pages does not outlive a socket: see `RemoteStorage`.
                    let scanned = matches!(&call.request, Request::Scan { .. });
                    let scan_is_over = scanned && error.contains("the snapshot expired");
                    !(checked && error.contains("refused before") || scan_is_over)
                }
                _ => false,
            });
            let failed: Vec<_> = failed.take(3).collect();
            assert!(
                failed.is_empty(),
                "seed {}: {failed:?}",
                report.history.seed
            );
        }
    }
    total.repeated = stage.repeated().await;
    println!("{total:#?}");
    assert!(total.repeated > 5, "{total:?}");
    assert!(total.reconnects > 100, "{total:?}");
}

/// Without faults nothing fails, and nobody has to connect again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_without_faults_has_no_failures() {
    let stage = tokio::task::spawn_blocking(Stage::start).await.unwrap();
    let settings = Settings {
        pace: None,
        length: Duration::from_secs(2),
        ..Settings::short()
    };
    let report = run(&stage, 1, "quiet", settings).await;
    assert!(report.verdict.violations.is_empty(), "{:?}", report.verdict);
    let Figures {
        not_executed,
        unknown,
        reconnects,
        replica_breaks,
        ..
    } = report.figures;
    assert_eq!((not_executed, unknown), (0, 0));
    assert_eq!((reconnects, replica_breaks), (0, 0));
    assert!(report.figures.calls > 300, "{:?}", report.figures);
}
