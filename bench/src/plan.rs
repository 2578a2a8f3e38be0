//! Which cells are measured on which systems.

use std::fmt;

use crate::fanout::{FanOut, Wanted};
use crate::special::{KEYSPACES, Special};
use crate::systems::{Kind, System};
use crate::work::{Cell, Size, Work};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A budget of memory, and so many keys of 1 KiB that their data are five times as large.
const COLD_MEMORY: u64 = 64 << 20;
const COLD_KEYS: u64 = 320_000;

/// Something that is measured, with a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// A load of requests on so many keys.
    Requests {
        cell: Cell,
        keys: u64,
        /// The server's budget of memory, if not its default.
        memory: Option<u64>,
    },
    /// One writer, many watchers.
    FanOut(FanOut),
    /// On servers of its own.
    Special(Special),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests { cell, keys, memory } => {
                write!(f, "{cell}")?;
                if *keys != Cell::keys(cell.value) {
                    write!(f, " {keys} keys")?;
                }
                if memory.is_some() {
                    f.write_str(" cold")?;
                }
                Ok(())
            }
            Self::FanOut(cell) => write!(f, "{cell}"),
            Self::Special(special) => write!(f, "{special}"),
        }
    }
}

impl Task {
    pub(crate) fn requests(cell: Cell) -> Self {
        Self::Requests {
            cell,
            keys: Cell::keys(cell.value),
            memory: None,
        }
    }

    /// Tasks of one group run on the same servers, in turn.
    pub(crate) fn group(self) -> Group {
        match self {
            Self::Requests { cell, keys, memory } => Group::Requests {
                value: cell.value,
                keys,
                memory,
            },
            Self::FanOut(cell) => Group::FanOut(cell),
            Self::Special(special) => Group::Special(special),
        }
    }

    /// Why a system is left out; `None` if it is not.
    pub(crate) fn leaves_out(self, system: &System) -> Option<&'static str> {
        match (self, system.kind) {
            (Self::Requests { cell, .. }, _) => system.leaves_out(cell.work),
            (Self::FanOut(_), Kind::Raw { .. }) => Some("RocksDB alone has no watches"),
            (Self::FanOut(cell), Kind::Redis(_)) if cell.watchers > 1_000 => {
                Some("each subscription of its client has a connection of its own")
            }
            (Self::FanOut(cell), Kind::Nats { .. }) if cell.watchers > 1_000 => {
                Some("by default a stream takes fewer consumers")
            }
            (Self::FanOut(cell), Kind::Echo) if cell.wanted != Wanted::All => {
                Some("the echo server sends everything to everybody")
            }
            (Self::FanOut(cell), Kind::Echo) if cell.watchers > 1_000 => {
                Some("the echo server has one subscription for each connection")
            }
            _ => None,
        }
    }
}

/// What servers are started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// With these data.
    Requests {
        value: usize,
        keys: u64,
        memory: Option<u64>,
    },
    /// Without data; of each cell its own, since some have much to do after their watches have ended.
    FanOut(FanOut),
    /// New ones each time.
    Special(Special),
}

impl Group {
    pub(crate) fn memory(self) -> Option<u64> {
        match self {
            Self::Requests { memory, .. } => memory,
            Self::FanOut(_) | Self::Special(_) => None,
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests {
                value,
                keys,
                memory,
            } => {
                write!(f, "{keys} keys of {}", Size(*value))?;
                match memory {
                    Some(bytes) => write!(f, ", with {} MiB of memory", bytes >> 20),
                    None => Ok(()),
                }
            }
            Self::FanOut(cell) => write!(f, "{cell}"),
            Self::Special(special) => write!(f, "{special}, on new servers"),
        }
    }
}

/// A task, and the systems that it runs on, by name.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) task: Task,
    pub(crate) systems: Vec<&'static str>,
}

fn item(task: Task, systems: &[&'static str]) -> Item {
    let systems = systems.to_vec();
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

fn fan_out(watchers: u64, wanted: Wanted, rate: Option<u32>) -> Task {
    Task::FanOut(FanOut {
        watchers,
        wanted,
        rate,
    })
}

/// What the goals need.
pub(crate) fn quick() -> Vec<Item> {
    let get = ["os", "redis-everysec"];
    let with_ceiling = ["os", "redis-everysec", "echo", "raw"];
    let all_durable = [
        "os",
        "sync",
        "redis-everysec",
        "redis-always",
        "nats-tls-always",
        "etcd",
        "echo",
        "raw",
    ];
    let durable = ["sync", "redis-always"];
    vec![
        item(cell(Work::Get, 100, 1, 128), &with_ceiling),
        item(cell(Work::MultiGet, 100, 8, 4), &get),
        item(
            cell(Work::Commit, 100, 8, 4),
            &["os", "sync", "redis-everysec", "redis-always"],
        ),
        item(cell(Work::Get, KIB, 64, 16), &get),
        item(cell(Work::Get, KIB, 8, 16), &with_ceiling),
        item(cell(Work::Get, KIB, 1, 1), &get),
        item(cell(Work::Mix, KIB, 8, 16), &get),
        item(cell(Work::Put, KIB, 8, 16), &all_durable),
        item(cell(Work::Put, KIB, 64, 4), &durable),
        item(cell(Work::Put, KIB, 1, 1), &durable),
        item(cell(Work::Get, 16 * KIB, 8, 16), &get),
        item(cell(Work::Put, 16 * KIB, 8, 16), &get),
        item(
            fan_out(100, Wanted::All, None),
            &["os", "redis-everysec", "nats-tls", "etcd", "echo"],
        ),
        item(fan_out(100, Wanted::All, Some(200)), &get),
        item(Task::Special(Special::FirstSecond), &["os"]),
        item(Task::Special(Special::IdleConnections), &["os"]),
        item(Task::Special(Special::Storm { resumed: false }), &["os"]),
    ]
}

const EVERYTHING: [&str; 11] = [
    "os",
    "sync",
    "redis-everysec",
    "redis-always",
    "nats-tls",
    "nats-tls-always",
    "nats-wss",
    "nats-wss-always",
    "etcd",
    "echo",
    "raw",
];

/// Those that differ where nothing is written.
const READERS: [&str; 7] = [
    "os",
    "redis-everysec",
    "nats-tls",
    "nats-wss",
    "etcd",
    "echo",
    "raw",
];

/// Everything: what the goals need, all kinds of work, sizes of values, connections and requests in flight, and what is
/// not made of requests.
pub(crate) fn full() -> Vec<Item> {
    let mut items = Vec::new();
    let mut add = |task: Task, systems: &[&'static str]| {
        // The widest choice of systems counts where a cell is there twice.
        let known: &mut Vec<Item> = &mut items;
        match known.iter_mut().find(|item| item.task == task) {
            Some(item) => {
                for system in systems {
                    if !item.systems.contains(system) {
                        item.systems.push(system);
                    }
                }
            }
            None => known.push(item(task, systems)),
        }
    };
    for Item { task, systems } in quick() {
        add(task, &systems);
    }
    for work in Work::ALL {
        let writes = matches!(
            work,
            Work::Put | Work::Mix | Work::Commit | Work::CompareAndSet
        );
        let systems: &[_] = if writes { &EVERYTHING } else { &READERS };
        let in_flight = match work {
            Work::Get | Work::Put | Work::Mix | Work::CompareAndSet => 16,
            Work::MultiGet | Work::Commit => 4,
            Work::Scan => 1,
        };
        for value in [100, KIB] {
            add(cell(work, value, 8, in_flight), systems);
        }
    }
    add(cell(Work::Put, KIB, 8, 16), &["raw-sync"]);
    // Sizes of values.
    for value in [100, KIB, 16 * KIB, MIB] {
        let in_flight = if value == MIB { 1 } else { 16 };
        for work in [Work::Get, Work::Put] {
            let systems = [
                "os",
                "sync",
                "redis-everysec",
                "redis-always",
                "nats-tls",
                "etcd",
                "echo",
                "raw",
            ];
            add(cell(work, value, 8, in_flight), &systems);
        }
    }
    // Connections, and requests in flight on each.
    for (connections, in_flight) in [
        (1, 1),
        (1, 16),
        (1, 128),
        (8, 1),
        (64, 1),
        (64, 16),
        (1_000, 1),
        (1_000, 16),
    ] {
        let get = ["os", "redis-everysec", "nats-tls", "echo"];
        let put = [
            "os",
            "sync",
            "redis-everysec",
            "redis-always",
            "nats-tls",
            "echo",
        ];
        add(cell(Work::Get, KIB, connections, in_flight), &get);
        add(cell(Work::Put, KIB, connections, in_flight), &put);
    }
    // Five times the server's budget of memory; the system's own cache of files helps all alike.
    let cold = Cell {
        work: Work::Get,
        value: KIB,
        connections: 8,
        in_flight: 16,
    };
    let cold = Task::Requests {
        cell: cold,
        keys: COLD_KEYS,
        memory: Some(COLD_MEMORY),
    };
    add(cold, &["os", "raw"]);
    let watching = [
        "os",
        "redis-everysec",
        "nats-tls",
        "nats-wss",
        "etcd",
        "echo",
    ];
    for watchers in [100, 10_000] {
        for wanted in [Wanted::All, Wanted::Tenth, Wanted::One] {
            add(fan_out(watchers, wanted, None), &watching);
        }
    }
    add(fan_out(100, Wanted::All, Some(200)), &watching);
    let connecting = ["os", "redis-everysec", "nats-tls", "nats-wss", "etcd"];
    for resumed in [false, true] {
        let systems: &[_] = if resumed { &["os"] } else { &connecting };
        add(Task::Special(Special::Storm { resumed }), systems);
    }
    add(Task::Special(Special::IdleConnections), &connecting);
    add(Task::Special(Special::IdleWatches), &["os", "etcd"]);
    for Item { task, systems } in curves() {
        add(task, &systems);
    }
    items
}

/// Numbers of keys of the curve.
pub(crate) const CURVE_KEYS: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];

/// Numbers of watchers of the curve.
pub(crate) const CURVE_WATCHERS: [u64; 4] = [10, 100, 1_000, 10_000];

/// Sizes of values of the curve.
pub(crate) const CURVE_VALUES: [usize; 4] = [100, KIB, 16 * KIB, MIB];

/// Connections of the curve.
pub(crate) const CURVE_CONNECTIONS: [usize; 4] = [1, 8, 64, 1_000];

/// Keyspaces of the curve.
pub(crate) const CURVE_KEYSPACES: [usize; 3] = [1, 16, KEYSPACES];

/// The tasks of a curve: what is put along it, and the task there.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// The name of its file.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What grows along it.
    pub(crate) along: &'static str,
    pub(crate) lines: Vec<CurveLine>,
}

/// A label, a system, and the tasks with their places.
pub(crate) type CurveLine = (String, &'static str, Vec<(u64, Task)>);

/// What a request costs the server, along what may grow.
pub(crate) fn cost_curves() -> Vec<Curve> {
    let lines =
        |systems: &[&'static str], works: &[Work], points: &dyn Fn(Work) -> Vec<(u64, Task)>| {
            let mut lines = Vec::new();
            for work in works {
                for system in systems {
                    let label = format!("{} {system}", work.name());
                    lines.push((label, *system, points(*work)));
                }
            }
            lines
        };
    let both = [Work::Get, Work::Put];
    let systems = ["os", "redis-everysec", "raw"];
    let at = |work, keys| Task::Requests {
        cell: Cell {
            work,
            value: 100,
            connections: 8,
            in_flight: 16,
        },
        keys,
        memory: None,
    };
    vec![
        Curve {
            name: "keys",
            title: "Cost of a request of 100 B, by number of keys",
            along: "keys",
            lines: lines(&systems, &both, &|work| {
                CURVE_KEYS.map(|keys| (keys, at(work, keys))).to_vec()
            }),
        },
        Curve {
            name: "value-size",
            title: "Cost of a request, by size of the value",
            along: "bytes",
            lines: lines(&systems, &both, &|work| {
                let in_flight = |value| if value == MIB { 1 } else { 16 };
                CURVE_VALUES
                    .map(|value| (value as u64, cell(work, value, 8, in_flight(value))))
                    .to_vec()
            }),
        },
        Curve {
            name: "connections",
            title: "Cost of a request of 1 KiB, by connections with 16 in flight on each",
            along: "connections",
            lines: lines(&["os", "redis-everysec"], &both, &|work| {
                CURVE_CONNECTIONS
                    .map(|connections| (connections as u64, cell(work, KIB, connections, 16)))
                    .to_vec()
            }),
        },
        Curve {
            name: "watches",
            title: "Cost of a commit that one watch is told, by number of watches",
            along: "watches",
            lines: ["os", "nats-tls", "etcd"]
                .map(|system| {
                    let points = CURVE_WATCHERS
                        .map(|watchers| (watchers, fan_out(watchers, Wanted::One, None)));
                    (system.to_owned(), system, points.to_vec())
                })
                .to_vec(),
        },
        Curve {
            name: "keyspaces",
            title: "Cost of a request of 1 KiB, by keyspaces that the load is spread over",
            along: "keyspaces",
            lines: lines(&["os"], &both, &|work| {
                CURVE_KEYSPACES
                    .map(|count| {
                        (
                            count as u64,
                            Task::Special(Special::Keyspaces { work, count }),
                        )
                    })
                    .to_vec()
            }),
        },
    ]
}

/// What the curves need.
pub(crate) fn curves() -> Vec<Item> {
    let mut items = Vec::new();
    for curve in cost_curves() {
        for (_, system, points) in curve.lines {
            let points = points.into_iter().map(|(_, task)| item(task, &[system]));
            items = merged(items, points);
        }
    }
    items
}

/// Two plans as one: each task once, on all systems that either has it on.
pub(crate) fn merged(mut items: Vec<Item>, more: impl IntoIterator<Item = Item>) -> Vec<Item> {
    for new in more {
        match items.iter_mut().find(|item| item.task == new.task) {
            Some(item) => {
                let fresh = |system: &&str| !item.systems.contains(system);
                let fresh: Vec<_> = new.systems.into_iter().filter(fresh).collect();
                item.systems.extend(fresh);
            }
            None => items.push(new),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::PathBuf;

    use super::*;
    use crate::systems::Build;

    #[test]
    fn every_plan_names_systems_that_there_are_and_no_task_twice() {
        let build = Build {
            name: None,
            path: PathBuf::new(),
        };
        let all = System::all(&[build]);
        for plan in [quick(), full(), curves(), merged(quick(), curves())] {
            let names: HashSet<String> = plan.iter().map(|item| item.task.to_string()).collect();
            assert_eq!(names.len(), plan.len());
            for item in plan {
                for name in item.systems {
                    assert!(all.iter().any(|system| system.name == name), "{name}");
                }
            }
        }
    }

    #[test]
    fn full_has_all_that_quick_and_the_curves_have() {
        let full = full();
        for item in quick().into_iter().chain(curves()) {
            let found = full.iter().find(|one| one.task == item.task);
            let found = found.unwrap_or_else(|| panic!("{} is missing", item.task));
            for system in item.systems {
                assert!(found.systems.contains(&system), "{}: {system}", item.task);
            }
        }
    }
}
