//! `performance.md`: what was measured, written from the results of a run.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::compare::{Machine, Results};
use crate::goals;
use crate::plan::cost_curves;
use crate::plots;
use crate::report::{Findings, short, table_of};
use crate::run::Settings;

/// What is above the figures.
const HEAD: &str = "# Performance

What this server does beside its peers, in one run on one machine. Written by `scripts/bench --write-docs`: figures are
not put here by hand.

Ratios are what counts. Servers and load share the processors of one machine, so a rate here is none that anybody else would
find; but all systems had the same load, in turn, round by round, and each ratio is the median of the ratios within a
round. The processor time that a server takes for a request depends on the load least of all: where load and server
are on machines of their own, it is what bounds the rate.

## What is compared

| name | what it is | an answered write survives |
| --- | --- | --- |
| `sync`, `os` | this server, durability `sync` and `os` | power loss; a crash of the process |
| `redis-everysec`, `redis-always` | Redis with its append-only file, and the crate `redis`, multiplexed | a crash of the process; power loss |
| `nats-tls`, `nats-tls-always` | the key-value store of NATS JetStream in files, and `async-nats`; `sync_interval` by default (two minutes) or `always` | a crash of the process; power loss |
| `nats-wss`, `nats-wss-always` | the same over WebSockets | the same |
| `etcd` | one member, and tonic | power loss |
| `raw`, `raw-sync` | RocksDB in a process of its own, with the options of this server's engine and without any server: one call for each request | a crash of the process; power loss |
| `echo` | a server on the same stack that answers with as many bytes and does nothing else: the ceiling | - |

All of them over mutual TLS 1.3, but RocksDB alone. One process makes the load, with two threads. Keys have 24 bytes and are
asked for in no order; there are 100,000 of them, 10,000 with values of 16 KiB, 200 with values of 1 MiB. Values are random
bytes. Each answer is checked: a get that finds nothing, or a value of another length, fails its cell.

`get 1KiB c8 i16`: gets of 1 KiB over 8 connections, with 16 requests in flight on each; the next one goes out when one is
answered (closed loop). `mix`: 95 gets for 5 puts, of keys that are asked for by a zipf distribution (0.99). `multi-get` and
`commit`: 64 keys at once: `MGET` and `MSET` with Redis, a transaction with etcd; NATS has neither, and gets 64 requests at
once. `scan`: 1,000 entries in order; Redis and NATS have none. `cas`: a put if the key is as it was: a check of its
revision with this server, etcd and NATS, a script with Redis.

`fan-out`: one writer; each of the watchers is told all events of 100 bytes, a tenth of them, or its own. Redis publishes
(`PUBLISH`: nothing is stored, and who is not there misses it), the others write a key, which watches are told. The writer
waits while too many events are on their way, so that none is dropped. `at 200/s`: events are due at a steady rate, and
latency counts from when an event was due, not from when it was sent (open loop).

The processor time is that of the server's process (utime and stime) and, in the cell in which
they end, of its children, such as the ones that rewrite the append-only file of Redis. The memory is its resident size at the end of a cell.
";

/// Writes it, with plots in the folder `performance` beside it.
pub(crate) fn write(results: &Path, folder: &Path) -> Result<()> {
    let read = std::fs::read(results).with_context(|| results.display().to_string())?;
    let results: Results = serde_json::from_slice(&read)?;
    let plots = folder.join("performance");
    std::fs::create_dir_all(&plots)?;
    let text = text(&results, &plots)?;
    let file = folder.join("performance.md");
    std::fs::write(&file, text)?;
    println!("written: {}", file.display());
    Ok(())
}

fn text(results: &Results, plots: &Path) -> Result<String> {
    let findings = Findings(&results.measurements);
    let mut text = HEAD.to_owned();
    text.push_str(&conditions(&results.machine, &results.settings));
    text.push_str(
        "\n## Goals\n\nThe goals, and whether this run met them. A ratio is ours to theirs.\n\n",
    );
    text.push_str(&goals::table(findings, None));
    text.push_str(
        "\n`CPU to the ceiling's`: to what `echo` and `raw` take together for the same request: the same messages, and the \
         same call of RocksDB, with nothing between them.\n",
    );
    text.push_str(&curves(findings, plots)?);
    let mut sections: Vec<(&str, Vec<&str>)> = Vec::new();
    for task in findings.tasks() {
        let kind = section(task);
        match sections.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, tasks)) => tasks.push(task),
            None => sections.push((kind, vec![task])),
        }
    }
    text.push_str("\n## All figures\n");
    for (kind, tasks) in sections {
        let _ = write!(text, "\n### {kind}\n\n{}", table_of(findings, &tasks));
    }
    if !results.left_out.is_empty() {
        text.push_str("\n## Left out\n\n");
        for (what, why) in &results.left_out {
            let _ = writeln!(text, "* {what}: {}", why.replace('\n', " "));
        }
    }
    Ok(text)
}

fn conditions(machine: &Machine, settings: &Settings) -> String {
    let mut text = String::from("\n## The run\n\n| | |\n| --- | --- |\n");
    let mut row = |what: &str, is: String| {
        let _ = writeln!(text, "| {what} | {is} |");
    };
    row(
        "commit",
        format!("{}, profile `{}`", machine.commit, machine.profile),
    );
    let processors = format!("{} of {}", machine.processors, machine.processor);
    row("processors", processors);
    row("memory", format!("{} MiB", machine.memory_mib));
    row("kernel", machine.kernel.clone());
    row("file system of the data", machine.file_system.clone());
    for (name, version) in &machine.versions {
        row(name, version.clone());
    }
    let cell = settings.times.time.as_secs_f64();
    let warm_up = settings.times.warm_up.as_secs_f64();
    let cells = format!("{cell} s each, after {warm_up} s of warm-up");
    row("cells", format!("{} rounds, {cells}", settings.rounds));
    text
}

fn section(task: &str) -> &'static str {
    match task.split_whitespace().next() {
        Some("fan-out") => "Watches",
        Some("connect," | "idle") => "Connections and what rests",
        Some("first" | "the") => "After a load",
        _ if task.contains("keyspaces") => "Keyspaces",
        _ => "Requests",
    }
}

fn curves(findings: Findings<'_>, plots: &Path) -> Result<String> {
    let mut text = String::new();
    for curve in cost_curves() {
        let lines = plots::lines(&curve, findings);
        if lines.is_empty() {
            continue;
        }
        if text.is_empty() {
            text.push_str("\n## What a request costs\n\nThe server's processor time for each, in microseconds.\n");
        }
        let file = format!("{}.svg", curve.name);
        plots::draw(&curve, &lines, &plots.join(&file))?;
        let _ = write!(text, "\n![{}](performance/{file})\n\n", curve.title);
        let mut places: Vec<f64> = lines
            .iter()
            .flat_map(|(_, points)| points)
            .map(|point| point.0)
            .collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let head: Vec<String> = places.iter().map(|place| format!("{place}")).collect();
        let rule = " ---: |".repeat(places.len());
        let _ = writeln!(
            text,
            "| {} | {} |\n| --- |{rule}",
            curve.along,
            head.join(" | ")
        );
        for (label, points) in lines {
            let cell = |place: &f64| {
                let found = points.iter().find(|point| point.0.total_cmp(place).is_eq());
                found.map_or_else(|| "-".to_owned(), |point| short(point.1))
            };
            let cells: Vec<String> = places.iter().map(cell).collect();
            let _ = writeln!(text, "| {label} | {} |", cells.join(" | "));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_their_sections() {
        assert_eq!(section("get 1KiB c8 i16"), "Requests");
        assert_eq!(section("fan-out 1 to 100 (all) at 200/s"), "Watches");
        assert_eq!(section("idle watch"), "Connections and what rests");
        assert_eq!(section("get 1KiB c256 i1 over 16 keyspaces"), "Keyspaces");
        assert_eq!(section(crate::special::FIRST), "After a load");
        assert_eq!(section(crate::special::WARM), "After a load");
    }
}
