//! What this server is to reach beside its peers, and whether it did in a run.

use std::fmt;

use crate::load::Figures;
use crate::report::{Findings, short};
use crate::special::{FIRST, WARM};

/// A task and a system, by name.
type Of = (&'static str, &'static str);

/// What is compared.
#[derive(Clone, Copy, Debug)]
enum Measure {
    /// Requests a second, ours to the best of some peers.
    Rate(Of, &'static [&'static str]),
    /// The server's processor time for each, ours to the peer's.
    Cpu(Of, &'static str),
    /// To what an echo server and RocksDB alone take together.
    CpuOfCeiling(Of),
    /// To that of another task.
    CpuOfTask(Of, &'static str),
    /// Half of all requests take no longer, ours to the peer's.
    P50(Of, &'static str),
    /// The same of 99 in 100.
    P99(Of, &'static str),
    /// Bytes of the server's memory for each.
    Memory(Of),
    /// The server's processor time for each, in microseconds.
    CpuMicros(Of),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One goal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    what: &'static str,
    measure: Measure,
    bound: Bound,
}

/// Whether a goal was met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    Met(f64),
    NotMet(f64),
    NotMeasured,
}

const GET_SMALL: &str = "get 100B c1 i128";
const GET: &str = "get 1KiB c8 i16";
const GET_MANY: &str = "get 1KiB c64 i16";
const GET_ALONE: &str = "get 1KiB c1 i1";
const MIX: &str = "mix 1KiB c8 i16";
const MULTI_GET: &str = "multi-get 100B c8 i4";
const COMMIT: &str = "commit 100B c8 i4";
const PUT: &str = "put 1KiB c8 i16";
const PUT_MANY: &str = "put 1KiB c64 i4";
const PUT_ALONE: &str = "put 1KiB c1 i1";
const GET_BIG: &str = "get 16KiB c8 i16";
const PUT_BIG: &str = "put 16KiB c8 i16";
const FAN_OUT: &str = "fan-out 1 to 100 (all)";
const FAN_OUT_SLOW: &str = "fan-out 1 to 100 (all) at 200/s";

const EVERYSEC: &str = "redis-everysec";
const ALWAYS: &str = "redis-always";

/// All of them, in the order in which they are told.
pub(crate) const GOALS: &[Goal] = &{
    use Bound::{AtLeast, AtMost};
    use Measure::{Cpu, CpuMicros, CpuOfCeiling, CpuOfTask, Memory, P50, P99, Rate};
    const fn goal(what: &'static str, measure: Measure, bound: Bound) -> Goal {
        Goal {
            what,
            measure,
            bound,
        }
    }
    [
        goal(
            "rate to Redis",
            Rate((GET_SMALL, "os"), &[EVERYSEC]),
            AtLeast(2.5),
        ),
        goal(
            "CPU to the ceiling's",
            CpuOfCeiling((GET_SMALL, "os")),
            AtMost(1.3),
        ),
        goal(
            "rate to Redis",
            Rate((GET_MANY, "os"), &[EVERYSEC]),
            AtLeast(2.0),
        ),
        goal(
            "CPU to Redis's",
            Cpu((GET_MANY, "os"), EVERYSEC),
            AtMost(0.4),
        ),
        goal(
            "rate to Redis",
            Rate((GET, "os"), &[EVERYSEC]),
            AtLeast(2.0),
        ),
        goal("CPU to Redis's", Cpu((GET, "os"), EVERYSEC), AtMost(0.4)),
        goal(
            "CPU to that of warm gets",
            CpuOfTask((FIRST, "os"), WARM),
            AtMost(1.5),
        ),
        goal(
            "p50 to Redis's",
            P50((GET_ALONE, "os"), EVERYSEC),
            AtMost(0.85),
        ),
        goal(
            "rate to Redis",
            Rate((MIX, "os"), &[EVERYSEC]),
            AtLeast(2.3),
        ),
        goal(
            "rate to Redis MGET",
            Rate((MULTI_GET, "os"), &[EVERYSEC]),
            AtLeast(1.2),
        ),
        goal(
            "rate to Redis MSET, everysec",
            Rate((COMMIT, "os"), &[EVERYSEC]),
            AtLeast(1.0),
        ),
        goal(
            "rate to Redis MSET, always",
            Rate((COMMIT, "sync"), &[ALWAYS]),
            AtLeast(1.0),
        ),
        goal(
            "rate to Redis, everysec",
            Rate((PUT, "os"), &[EVERYSEC]),
            AtLeast(1.4),
        ),
        goal(
            "CPU to Redis's, everysec",
            Cpu((PUT, "os"), EVERYSEC),
            AtMost(0.8),
        ),
        goal(
            "rate to Redis, always",
            Rate((PUT, "sync"), &[ALWAYS]),
            AtLeast(2.4),
        ),
        goal(
            "rate to NATS, always",
            Rate((PUT, "sync"), &["nats-tls-always"]),
            AtLeast(7.0),
        ),
        goal("rate to etcd", Rate((PUT, "sync"), &["etcd"]), AtLeast(9.0)),
        goal(
            "rate to Redis, always",
            Rate((PUT_MANY, "sync"), &[ALWAYS]),
            AtLeast(1.4),
        ),
        goal(
            "p50 to Redis's, always",
            P50((PUT_ALONE, "sync"), ALWAYS),
            AtMost(1.1),
        ),
        goal(
            "rate to Redis, everysec",
            Rate((GET_BIG, "os"), &[EVERYSEC]),
            AtLeast(1.6),
        ),
        goal(
            "rate to Redis, everysec",
            Rate((PUT_BIG, "os"), &[EVERYSEC]),
            AtLeast(1.2),
        ),
        goal(
            "deliveries to Redis pub/sub",
            Rate((FAN_OUT, "os"), &[EVERYSEC]),
            AtLeast(1.6),
        ),
        goal(
            "deliveries to the better of NATS and etcd",
            Rate((FAN_OUT, "os"), &["nats-tls", "etcd"]),
            AtLeast(10.0),
        ),
        goal(
            "p99 to Redis's",
            P99((FAN_OUT_SLOW, "os"), EVERYSEC),
            AtMost(0.8),
        ),
        goal(
            "bytes of server memory",
            Memory(("idle connection", "os")),
            AtMost(24.0 * 1024.0),
        ),
        goal(
            "server CPU in us",
            CpuMicros(("connect, get, close", "os")),
            AtMost(700.0),
        ),
        goal(
            "CPU to the ceiling's",
            CpuOfCeiling((GET, "os")),
            AtMost(1.3),
        ),
        goal(
            "CPU to the ceiling's",
            CpuOfCeiling((PUT, "os")),
            AtMost(1.3),
        ),
    ]
};

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
        }
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl Goal {
    fn of(&self) -> Of {
        match self.measure {
            Measure::Rate(of, _)
            | Measure::Cpu(of, _)
            | Measure::CpuOfCeiling(of)
            | Measure::CpuOfTask(of, _)
            | Measure::P50(of, _)
            | Measure::P99(of, _)
            | Measure::Memory(of)
            | Measure::CpuMicros(of) => of,
        }
    }

    /// The value that counts; of a build of this name, if it has one.
    fn value(&self, findings: Findings<'_>, build: Option<&str>) -> Option<f64> {
        let (task, system) = self.of();
        let ours = match build {
            Some(build) => format!("{build}/{system}"),
            None => system.to_owned(),
        };
        let ours = (task, ours.as_str());
        let ratio =
            |peer: &str, figure: fn(&Figures) -> f64| findings.ratio(ours, (task, peer), figure);
        match self.measure {
            Measure::Rate(_, peers) => {
                let ratios = peers.iter().map(|peer| ratio(peer, |figures| figures.rate));
                // Each of them has to have been measured.
                ratios
                    .collect::<Option<Vec<_>>>()?
                    .into_iter()
                    .reduce(f64::min)
            }
            Measure::Cpu(_, peer) => ratio(peer, |figures| figures.server_cpu_us),
            Measure::P50(_, peer) => ratio(peer, |figures| figures.latency.p50),
            Measure::P99(_, peer) => ratio(peer, |figures| figures.latency.p99),
            Measure::CpuOfCeiling(_) => {
                let echo = ratio("echo", |figures| figures.server_cpu_us)?;
                let raw = ratio("raw", |figures| figures.server_cpu_us)?;
                // Of a / b and a / c the ratio a / (b + c).
                Some(1.0 / (1.0 / echo + 1.0 / raw))
            }
            Measure::CpuOfTask(_, other) => {
                findings.ratio(ours, (other, ours.1), |figures| figures.server_cpu_us)
            }
            Measure::Memory(_) => findings.median(task, ours.1, |figures| {
                figures.memory_each.unwrap_or(f64::NAN)
            }),
            Measure::CpuMicros(_) => findings.median(task, ours.1, |figures| figures.server_cpu_us),
        }
    }

    pub(crate) fn judge(&self, findings: Findings<'_>, build: Option<&str>) -> Verdict {
        match self.value(findings, build) {
            Some(value) if self.bound.holds(value) => Verdict::Met(value),
            Some(value) => Verdict::NotMet(value),
            None => Verdict::NotMeasured,
        }
    }
}

/// A table in Markdown: each goal, and whether it was met by this build.
pub(crate) fn table(findings: Findings<'_>, build: Option<&str>) -> String {
    let mut text = String::from(
        "| work | durability | what | goal | measured | |\n| --- | --- | --- | ---: | ---: | --- |\n",
    );
    for goal in GOALS {
        let (task, system) = goal.of();
        let (measured, verdict) = match goal.judge(findings, build) {
            Verdict::Met(value) => (short(value), "met"),
            Verdict::NotMet(value) => (short(value), "NOT MET"),
            Verdict::NotMeasured => ("-".to_owned(), "not measured"),
        };
        let Goal { what, bound, .. } = goal;
        text.push_str(&format!(
            "| {task} | {system} | {what} | {bound} | {measured} | {verdict} |\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::run::{Measurement, Outcome};

    fn measured(task: &str, system: &str, rate: f64, cpu: f64) -> Measurement {
        Measurement {
            task: task.to_owned(),
            system: system.to_owned(),
            round: 0,
            at: 0.0,
            outcome: Outcome::Figures(Figures {
                rate,
                server_cpu_us: cpu,
                ..Figures::default()
            }),
        }
    }

    fn goal(measure: Measure, bound: Bound) -> Goal {
        Goal {
            what: "",
            measure,
            bound,
        }
    }

    #[test]
    fn a_rate_is_held_against_the_best_peer() {
        let rate = Measure::Rate(("get", "os"), &["redis", "nats"]);
        let mut all = vec![
            measured("get", "os", 300.0, 1.0),
            measured("get", "redis", 100.0, 1.0),
        ];
        let at_least_two = goal(rate, Bound::AtLeast(2.0));
        assert_eq!(
            at_least_two.judge(Findings(&all), None),
            Verdict::NotMeasured
        );
        all.push(measured("get", "nats", 200.0, 1.0));
        assert_eq!(
            at_least_two.judge(Findings(&all), None),
            Verdict::NotMet(1.5)
        );
        let enough = goal(rate, Bound::AtLeast(1.5));
        assert_eq!(enough.judge(Findings(&all), None), Verdict::Met(1.5));
    }

    #[test]
    fn the_ceiling_takes_what_both_of_its_parts_take() {
        let all = [
            measured("get", "new/os", 1.0, 6.0),
            measured("get", "echo", 1.0, 1.0),
            measured("get", "raw", 1.0, 2.0),
        ];
        let at_most = goal(Measure::CpuOfCeiling(("get", "os")), Bound::AtMost(1.3));
        let Verdict::NotMet(value) = at_most.judge(Findings(&all), Some("new")) else {
            panic!("6 us for 3 are too many");
        };
        assert!((value - 2.0).abs() < 1e-9, "{value}");
        assert_eq!(at_most.judge(Findings(&all), None), Verdict::NotMeasured);
    }

    #[test]
    fn every_goal_is_measured_by_the_quick_run() {
        let plan = plan::quick();
        let has = |task: &str, system: &str| {
            plan.iter()
                .any(|item| item.task.to_string() == task && item.systems.contains(&system))
        };
        for goal in GOALS {
            let (task, system) = goal.of();
            assert!(has(task, system), "{task} {system}");
            let peers = match goal.measure {
                Measure::Rate(_, peers) => peers.to_vec(),
                Measure::Cpu(_, peer) | Measure::P50(_, peer) | Measure::P99(_, peer) => vec![peer],
                Measure::CpuOfCeiling(_) => vec!["echo", "raw"],
                Measure::CpuOfTask(..) | Measure::Memory(_) | Measure::CpuMicros(_) => vec![],
            };
            for peer in peers {
                assert!(has(task, peer), "{task} {peer}");
            }
        }
    }
}
