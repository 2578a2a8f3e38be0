//! The comparison: every system is started, and cells run in rounds, each system in turn, so that a drift of the machine's
//! speed hits all of them alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use storage_testkit::harness::Certificates;

use crate::load::{Data, Figures, Times};
use crate::plan::{Group, Item, Task};
use crate::special::{self, Special};
use crate::systems::{Place, Programs, Running, System};
use crate::tls::CLIENT;

/// How long one measurement on a new server may take.
const SPECIAL: Duration = Duration::from_secs(300);

/// What was measured, or why it was not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measurement {
    pub(crate) task: String,
    pub(crate) system: String,
    pub(crate) round: usize,
    /// Seconds since the beginning of the run.
    pub(crate) at: f64,
    pub(crate) outcome: Outcome,
}

/// See [`Measurement`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Figures(Figures),
    Failed(String),
}

/// How a run is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) times: Times,
    /// Folders of data are made here.
    pub(crate) root: PathBuf,
}

/// A run.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    settings: &'a Settings,
    programs: &'a Programs,
    systems: &'a [System],
    certificates: Certificates,
    began: Instant,
    pub(crate) measurements: Vec<Measurement>,
    /// What was left out, and why.
    pub(crate) left_out: BTreeMap<String, String>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        settings: &'a Settings,
        programs: &'a Programs,
        systems: &'a [System],
    ) -> Self {
        Self {
            settings,
            programs,
            systems,
            certificates: Certificates::issue(&[CLIENT]),
            began: Instant::now(),
            measurements: Vec::new(),
            left_out: BTreeMap::new(),
        }
    }

    /// Measures all of them. `save` is called after each group.
    pub(crate) async fn all(
        &mut self,
        items: &[Item],
        save: impl Fn(&Self) -> Result<()>,
    ) -> Result<()> {
        let mut groups: Vec<Group> = Vec::new();
        for item in items {
            if !groups.contains(&item.task.group()) {
                groups.push(item.task.group());
            }
        }
        for group in groups {
            let items = items.iter().filter(|item| item.task.group() == group);
            self.group(group, &items.collect::<Vec<_>>()).await?;
            save(self)?;
        }
        Ok(())
    }

    /// The systems that a task runs on; notes which it leaves out.
    fn systems_of(&mut self, item: &Item) -> Vec<System> {
        let mut systems = Vec::new();
        for name in &item.systems {
            for system in self.systems.iter().filter(|system| system.plain == *name) {
                match item.task.leaves_out(system) {
                    None => systems.push(system.clone()),
                    Some(why) => {
                        let what = format!("{}: {}", item.task, system.name);
                        self.left_out.insert(what, why.to_owned());
                    }
                }
            }
        }
        systems
    }

    async fn group(&mut self, group: Group, items: &[&Item]) -> Result<()> {
        println!("\n== {group}");
        let data = match group {
            Group::Requests { value, keys, .. } => Some(Data::new(keys, value)),
            Group::FanOut(_) | Group::Special(_) => None,
        };
        let plan: Vec<(Task, Vec<System>)> = items
            .iter()
            .map(|item| (item.task, self.systems_of(item)))
            .collect();
        if let Group::Special(special) = group {
            self.special(special, &plan).await;
            return Ok(());
        }
        let mut running: BTreeMap<String, Running> = BTreeMap::new();
        for system in self.systems {
            let wanted = |(_, systems): &(Task, Vec<System>)| systems.contains(system);
            if !plan.iter().any(wanted) || self.left_out.contains_key(&system.name) {
                continue;
            }
            match self.start(system, group.memory(), data.as_ref()).await {
                Ok(started) => drop(running.insert(system.name.clone(), started)),
                Err(error) => {
                    println!("{} is left out: {error:#}", system.name);
                    self.left_out
                        .insert(system.name.clone(), format!("{error:#}"));
                }
            }
        }
        for round in 0..self.settings.rounds {
            for (task, systems) in &plan {
                for system in systems {
                    settle(&mut running).await?;
                    if let Some(running) = running.get_mut(&system.name) {
                        let outcome = self.measure(*task, running, data.as_ref()).await;
                        self.note(&task.to_string(), system, round, outcome);
                    }
                }
            }
        }
        Ok(())
    }

    /// Measures something that needs new servers.
    async fn special(&mut self, special: Special, plan: &[(Task, Vec<System>)]) {
        let systems: Vec<System> = plan
            .iter()
            .flat_map(|(_, systems)| systems.clone())
            .collect();
        for round in 0..special.rounds(self.settings.rounds) {
            for system in &systems {
                if self.left_out.contains_key(&system.name) {
                    continue;
                }
                let measured = self.special_once(special, system).await;
                match measured {
                    Ok(found) => {
                        for (name, figures) in found {
                            self.note(&name, system, round, Ok(figures));
                        }
                    }
                    Err(error) => self.note(&special.to_string(), system, round, Err(error)),
                }
            }
        }
    }

    async fn special_once(
        &self,
        special: Special,
        system: &System,
    ) -> Result<Vec<(String, Figures)>> {
        let certificates = self.certificates.dir();
        let place = Place::new(&self.settings.root, &certificates)?;
        let mut running = system.start(self.programs, place, None).await?;
        let times = self.settings.times;
        let measuring = special::run(special, &mut running, times, &certificates);
        tokio::time::timeout(SPECIAL, measuring).await?
    }

    /// Starts a system and loads the data.
    async fn start(
        &self,
        system: &System,
        memory: Option<u64>,
        data: Option<&Data>,
    ) -> Result<Running> {
        let began = Instant::now();
        let place = Place::new(&self.settings.root, &self.certificates.dir())?;
        let mut running = system.start(self.programs, place, memory).await?;
        if let Some(data) = data {
            let loaded = running.preload(data).await;
            loaded.with_context(|| format!("{} does not take the data", system.name))?;
        }
        println!("{} is ready after {:.1?}", system.name, began.elapsed());
        Ok(running)
    }

    async fn measure(
        &self,
        task: Task,
        running: &mut Running,
        data: Option<&Data>,
    ) -> Result<Figures> {
        let mut times = self.settings.times;
        match (task, data) {
            (Task::Requests { cell, .. }, Some(data)) => running.cell(cell, data, times).await,
            (Task::Requests { .. }, None) => anyhow::bail!("there are no data"),
            (Task::FanOut(cell), _) => {
                if cell.rate.is_some() {
                    // A slow writer gives few events.
                    times.time *= 3;
                }
                running.fan_out(cell, times).await
            }
            (Task::Special(_), _) => anyhow::bail!("it needs a server of its own"),
        }
    }

    fn note(&mut self, task: &str, system: &System, round: usize, outcome: Result<Figures>) {
        let (task, system) = (task.to_owned(), system.name.clone());
        let outcome = match outcome {
            Ok(figures) => {
                println!("{round}  {task:<26} {system:<18} {}", in_short(&figures));
                Outcome::Figures(figures)
            }
            Err(error) => {
                println!("{round}  {task:<26} {system:<18} FAILED: {error:#}");
                Outcome::Failed(format!("{error:#}"))
            }
        };
        self.measurements.push(Measurement {
            task,
            system,
            round,
            at: self.began.elapsed().as_secs_f64(),
            outcome,
        });
    }
}

/// A line of figures.
pub(crate) fn in_short(figures: &Figures) -> String {
    let Figures {
        rate,
        latency,
        server_cpu_us,
        client_cpu_us,
        server_memory,
        memory_each,
    } = figures;
    if let Some(bytes) = memory_each {
        return format!("{bytes:>10.0} bytes of server memory each");
    }
    format!(
        "{rate:>10.0}/s  p50 {:>8.1}  p99 {:>8.1}  p999 {:>8.1} us   CPU {server_cpu_us:>7.2} us (client {client_cpu_us:.2})   \
         {} MiB",
        latency.p50,
        latency.p99,
        latency.p999,
        server_memory >> 20
    )
}

/// Waits until no system does anything of its own any more, such as compaction; but not for long.
async fn settle(running: &mut BTreeMap<String, Running>) -> Result<()> {
    const STEP: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_millis(1_500);
    let mut look = || -> Result<Duration> {
        let times = running.values_mut().map(|one| one.process().cpu());
        times.sum()
    };
    let began = Instant::now();
    let (mut quiet, mut before) = (0, look()?);
    while quiet < 2 && began.elapsed() < LONGEST {
        tokio::time::sleep(STEP).await;
        let now = look()?;
        let is_quiet = now.saturating_sub(before) < STEP / 4;
        quiet = if is_quiet { quiet + 1 } else { 0 };
        before = now;
    }
    Ok(())
}

/// Where data folders are made: on a disk, not in memory.
pub(crate) fn root(out: &Path) -> PathBuf {
    out.join("data")
}
