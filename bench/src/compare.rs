//! The command `compare`: what is measured, how, and where it goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::docs;
use crate::goals;
use crate::load::Times;
use crate::plan::{self, Item, Task};
use crate::report::{self, Findings};
use crate::run::{self, Measurement, Run, Settings};
use crate::systems::{Build, Programs, System};
use crate::work::Cell;

/// Options of the comparison.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What the goals need, in less than five minutes (the default).
    #[arg(long)]
    quick: bool,
    /// Everything; about 45 minutes.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// What a request costs the server along numbers of keys, sizes of values, connections, watches and keyspaces. Part
    /// of --full; with --quick both are measured, in about 25 minutes.
    #[arg(long, conflicts_with = "full")]
    curves: bool,
    /// Prints the names of the tasks, and measures nothing.
    #[arg(long)]
    list: bool,
    /// Only tasks whose names contain this; may be repeated.
    #[arg(long, value_name = "WORK")]
    only: Vec<String>,
    /// A cell of your own, such as "get 1KiB c8 i16" (8 connections, 16 requests in flight on each), on all systems that
    /// are asked for; may be repeated. Then nothing else is measured.
    #[arg(long, value_name = "CELL")]
    cell: Vec<Cell>,
    /// Only these systems, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    systems: Vec<String>,
    /// The binary storage-server; with a name and repeated, several that are compared (NAME/sync, NAME/os).
    #[arg(long, value_name = "[NAME=]PATH", value_parser = build)]
    server: Vec<Build>,
    /// Rounds. Default 3.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of a cell. Default 1; with --quick alone 0.8.
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds of its warm-up. Default 0.4; with --quick alone 0.3.
    #[arg(long)]
    warm_up: Option<f64>,
    /// Where results go.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
    /// Writes performance.md, and its plots, into this folder.
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "docs")]
    write_docs: Option<PathBuf>,
    /// The binary redis-server.
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    redis_server: String,
    /// The binary nats-server.
    #[arg(long, value_name = "PATH", default_value = "nats-server")]
    nats_server: String,
    /// The binary etcd.
    #[arg(long, value_name = "PATH", default_value = "etcd")]
    etcd: String,
}

fn build(text: &str) -> Result<Build> {
    let (name, path) = match text.split_once('=') {
        Some((name, path)) => (Some(name.to_owned()), path),
        None => (None, text),
    };
    let path = std::path::absolute(path)?;
    ensure!(path.exists(), "{} is not there", path.display());
    Ok(Build { name, path })
}

/// What a run leaves behind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) settings: Settings,
    pub(crate) left_out: BTreeMap<String, String>,
    pub(crate) measurements: Vec<Measurement>,
}

/// Where a run was made, and of what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) commit: String,
    /// Of the build.
    pub(crate) profile: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_mib: u64,
    pub(crate) file_system: String,
    pub(crate) versions: BTreeMap<String, String>,
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

impl Machine {
    fn look(programs: &Programs, folder: &Path) -> Self {
        let unknown = || "unknown".to_owned();
        let line = |program: &str, arguments: &[&str]| {
            let text = output(program, arguments)?;
            text.lines().next().map(str::to_owned)
        };
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor
            .lines()
            .find(|line| line.starts_with("model name"));
        let processor = processor.and_then(|line| Some(line.split_once(": ")?.1.to_owned()));
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = memory.split_whitespace().nth(1);
        let memory: Option<u64> = memory.and_then(|kib| kib.parse().ok());
        let folder = folder.display().to_string();
        let file_system = output("stat", &["--file-system", "--format=%T", &folder]);
        let mut versions = BTreeMap::new();
        for (name, version) in [
            ("redis", line(&programs.redis, &["--version"])),
            ("nats", line(&programs.nats, &["--version"])),
            ("etcd", line(&programs.etcd, &["--version"])),
        ] {
            versions.insert(
                name.to_owned(),
                version.unwrap_or_else(|| "not there".to_owned()),
            );
        }
        for build in &programs.builds {
            let name = build.name.as_deref().unwrap_or("storage-server");
            let version = line(&build.path.display().to_string(), &["--version"]);
            versions.insert(name.to_owned(), version.unwrap_or_else(unknown));
        }
        let commit = output("git", &["describe", "--always", "--dirty"]);
        Self {
            commit: commit.unwrap_or_else(unknown),
            profile: profile().unwrap_or_else(unknown),
            kernel: line("uname", &["-sr"]).unwrap_or_else(unknown),
            processor: processor.unwrap_or_else(unknown),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory.unwrap_or_default() / 1024,
            file_system: file_system.unwrap_or_else(unknown),
            versions,
        }
    }
}

/// The name of the folder that this program was built into.
fn profile() -> Option<String> {
    let own = std::env::current_exe().ok()?;
    Some(own.parent()?.file_name()?.to_string_lossy().into_owned())
}

/// The binary beside this one.
fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own
        .parent()
        .context("a program lies in a folder")?
        .join(name);
    ensure!(
        path.exists(),
        "{} is not there; see --server",
        path.display()
    );
    Ok(path)
}

/// Measures, and says what was found.
pub(crate) async fn compare(options: Options) -> Result<()> {
    let mut builds = options.server.clone();
    if builds.is_empty() {
        builds.push(Build {
            name: None,
            path: beside("storage-server")?,
        });
    }
    let programs = Programs {
        builds,
        redis: options.redis_server.clone(),
        nats: options.nats_server.clone(),
        etcd: options.etcd.clone(),
    };
    let systems = systems(&options, &programs)?;
    let items = items(&options, &systems);
    ensure!(!items.is_empty(), "there is nothing to measure");
    if options.list {
        for item in &items {
            println!("{:<36} {}", item.task.to_string(), item.systems.join(", "));
        }
        return Ok(());
    }
    std::fs::create_dir_all(&options.out)?;
    let out = std::path::absolute(&options.out)?;
    let root = run::root(&out);
    std::fs::create_dir_all(&root)?;
    // Shorter where all of it is to take less than five minutes.
    let long = options.full || options.curves || !options.cell.is_empty();
    let (warm_up, seconds) = if long { (0.4, 1.0) } else { (0.3, 0.8) };
    let warm_up = options.warm_up.unwrap_or(warm_up);
    let seconds = options.seconds.unwrap_or(seconds);
    let settings = Settings {
        rounds: options.rounds.unwrap_or(3),
        times: Times {
            warm_up: Duration::try_from_secs_f64(warm_up)?,
            time: Duration::try_from_secs_f64(seconds)?,
        },
        root,
    };
    let machine = Machine::look(&programs, &settings.root);
    println!("{machine:#?}");
    let mut run = Run::new(&settings, &programs, &systems);
    let file = out.join("results.json");
    let save = |run: &Run<'_>| -> Result<()> {
        let results = Results {
            machine: machine.clone(),
            settings: settings.clone(),
            left_out: run.left_out.clone(),
            measurements: run.measurements.clone(),
        };
        Ok(std::fs::write(&file, serde_json::to_vec_pretty(&results)?)?)
    };
    run.all(&items, save).await?;
    let findings = Findings(&run.measurements);
    println!("\n{}", report::aligned(&report::table(findings)));
    if options.cell.is_empty() {
        for build in &programs.builds {
            let name = build.name.as_deref();
            println!(
                "goals{}",
                name.map(|name| format!(" of {name}")).unwrap_or_default()
            );
            println!("{}", report::aligned(&goals::table(findings, name)));
        }
    }
    for (what, why) in &run.left_out {
        println!("left out: {what}: {why}");
    }
    println!("all of it is in {}", file.display());
    if let Some(folder) = &options.write_docs {
        docs::write(&file, folder)?;
    }
    Ok(())
}

fn systems(options: &Options, programs: &Programs) -> Result<Vec<System>> {
    let all = System::all(&programs.builds);
    for name in &options.systems {
        if !all.iter().any(|system| system.name == *name) {
            let names: Vec<_> = all.iter().map(|system| system.name.as_str()).collect();
            bail!(
                "there is no system {name:?}; there are {}",
                names.join(", ")
            );
        }
    }
    let wanted =
        |system: &System| options.systems.is_empty() || options.systems.contains(&system.name);
    Ok(all.into_iter().filter(wanted).collect())
}

fn items(options: &Options, systems: &[System]) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    if !options.cell.is_empty() {
        let mut plain: Vec<&'static str> = systems.iter().map(|system| system.plain).collect();
        plain.dedup();
        items.extend(options.cell.iter().map(|cell| Item {
            task: Task::requests(*cell),
            systems: plain.clone(),
        }));
    } else if options.full {
        items = plan::full();
    } else if options.curves && options.quick {
        items = plan::merged(plan::quick(), plan::curves());
    } else if options.curves {
        items = plan::curves();
    } else {
        items = plan::quick();
    }
    items.retain(|item| {
        let name = item.task.to_string();
        options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()))
    });
    items
}
