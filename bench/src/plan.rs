//! Which cells are measured on which systems.

use std::fmt;

use crate::fanout::{FanOut, Wanted};
use crate::systems::{Kind, System};
use crate::work::{Cell, Size, Work};

/// Something that is measured, with a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// A load of requests on so many keys.
    Requests { cell: Cell, keys: u64 },
    /// One writer, many watchers.
    FanOut(FanOut),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests { cell, keys } => {
                write!(f, "{cell}")?;
                if *keys != Cell::keys(cell.value) {
                    write!(f, " {keys} keys")?;
                }
                Ok(())
            }
            Self::FanOut(cell) => write!(f, "{cell}"),
        }
    }
}

impl Task {
    pub(crate) fn requests(cell: Cell) -> Self {
        Self::Requests {
            cell,
            keys: Cell::keys(cell.value),
        }
    }

    /// Tasks of one group run on the same servers, in turn.
    pub(crate) fn group(self) -> Group {
        match self {
            Self::Requests { cell, keys } => Group::Requests {
                value: cell.value,
                keys,
            },
            Self::FanOut(_) => Group::FanOut,
        }
    }

    /// Why a system is left out; `None` if it is not.
    pub(crate) fn leaves_out(self, system: &System) -> Option<&'static str> {
        match self {
            Self::Requests { cell, .. } => system.leaves_out(cell.work),
            Self::FanOut(_) if matches!(system.kind, Kind::Raw { .. }) => {
                Some("RocksDB alone has no watches")
            }
            Self::FanOut(_) => None,
        }
    }
}

/// What servers are started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// With these data.
    Requests { value: usize, keys: u64 },
    /// Without data.
    FanOut,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests { value, keys } => write!(f, "{keys} keys of {}", Size(*value)),
            Self::FanOut => write!(f, "watches"),
        }
    }
}

/// A task, and the systems that it runs on, by name.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) task: Task,
    pub(crate) systems: Vec<String>,
}

fn item(task: Task, systems: &[&str]) -> Item {
    let systems = systems.iter().map(|&system| system.to_owned()).collect();
    Item { task, systems }
}

fn cell(work: Work, value: usize, connections: usize, in_flight: usize) -> Task {
    Task::requests(Cell {
        work,
        value,
        connections,
        in_flight,
    })
}

const KIB: usize = 1 << 10;

/// What the goals need.
pub(crate) fn quick() -> Vec<Item> {
    let all_watchers = |rate| {
        Task::FanOut(FanOut {
            watchers: 100,
            wanted: Wanted::All,
            rate,
        })
    };
    vec![
        item(
            cell(Work::Get, 100, 1, 128),
            &["os", "redis-everysec", "echo", "raw"],
        ),
        item(cell(Work::MultiGet, 100, 8, 4), &["os", "redis-everysec"]),
        item(
            cell(Work::Commit, 100, 8, 4),
            &["os", "sync", "redis-everysec", "redis-always"],
        ),
        item(cell(Work::Get, KIB, 64, 16), &["os", "redis-everysec"]),
        item(
            cell(Work::Get, KIB, 8, 16),
            &["os", "redis-everysec", "echo", "raw"],
        ),
        item(cell(Work::Get, KIB, 1, 1), &["os", "redis-everysec"]),
        item(cell(Work::Mix, KIB, 8, 16), &["os", "redis-everysec"]),
        item(
            cell(Work::Put, KIB, 8, 16),
            &[
                "os",
                "sync",
                "redis-everysec",
                "redis-always",
                "nats-tls-always",
                "etcd",
                "echo",
                "raw",
            ],
        ),
        item(cell(Work::Put, KIB, 64, 4), &["sync", "redis-always"]),
        item(cell(Work::Put, KIB, 1, 1), &["sync", "redis-always"]),
        item(cell(Work::Get, 16 * KIB, 8, 16), &["os", "redis-everysec"]),
        item(cell(Work::Put, 16 * KIB, 8, 16), &["os", "redis-everysec"]),
        item(
            all_watchers(None),
            &["os", "redis-everysec", "nats-tls", "etcd", "echo"],
        ),
        item(all_watchers(Some(200)), &["os", "redis-everysec"]),
    ]
}
