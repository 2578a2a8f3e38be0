//! What a request costs, without a clock: instructions, as valgrind counts them, and allocations. Against the figures in
//! `costs.txt`.
//!
//! A request that costs more fails the test, and so does one that costs less, so that the figures stay what they are. Where a
//! change is meant, `UPDATE_COSTS=1 cargo test --release --workspace --test costs` writes them anew.
//!
//! Instructions are counted over the whole process with all its threads, with N and with 2 N requests: half of the difference
//! is what N cost, since each count is carried out twice. Waiting costs none, so other load on the machine does not matter.

// Of a debug build the figures are others.
#![cfg(all(target_os = "linux", target_arch = "x86_64", not(debug_assertions)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use storage_testkit::harness::binary;

/// How far instructions may be from their figure: compilers and C libraries of other versions differ by a few percent.
const TOLERANCE: f64 = 0.10;

/// The same of allocations; and one more or less is no matter, since groups of commits have some of their own.
const ALLOCATIONS_TOLERANCE: f64 = 0.05;

/// A case, and how many requests are enough to tell what one costs.
const CASES: [(&str, u64); 8] = [
    ("decode-get-1", 5_000),
    ("decode-commit-64", 500),
    ("encode-values-64", 500),
    ("get-1", 2_000),
    ("get-64", 200),
    ("commit-1", 1_000),
    ("commit-64", 100),
    ("commit-1-beside-1000-watches", 1_000),
];

struct Cost {
    instructions: f64,
    allocations: f64,
}

fn instructions(case: &str, count: u64) -> f64 {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary("request-costs"))
        .args([case, &count.to_string()])
        .output()
        .expect("valgrind is needed for this test: scripts/test installs it");
    let told = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{case}: {told}");
    let collected = told.lines().find_map(|line| {
        let (_, number) = line.split_once("Collected : ")?;
        number.trim().parse::<f64>().ok()
    });
    collected.unwrap_or_else(|| panic!("{case}: valgrind tells no count: {told}"))
}

fn measure(case: &str, count: u64) -> Cost {
    let more = instructions(case, 2 * count) - instructions(case, count);
    let run = Command::new(binary("request-costs"))
        .args([case, &count.to_string()])
        .output()
        .unwrap();
    let allocations = String::from_utf8_lossy(&run.stdout);
    Cost {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        instructions: (more / (2 * count) as f64).round(),
        allocations: allocations.trim().parse().unwrap(),
    }
}

fn parse(figures: &str) -> Vec<(&str, Cost)> {
    let lines = figures.lines().filter(|line| !line.starts_with('#'));
    let parse = |line| {
        let mut words = str::split_whitespace(line);
        let mut next = || {
            words
                .next()
                .unwrap_or_else(|| panic!("a short line: {line:?}"))
        };
        let case = next();
        let mut number = || next().parse().unwrap();
        let (instructions, allocations) = (number(), number());
        let cost = Cost {
            instructions,
            allocations,
        };
        (case, cost)
    };
    lines.map(parse).collect()
}

#[test]
fn requests_cost_what_they_did() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/costs.txt");
    let figures = std::fs::read_to_string(&file).unwrap_or_default();
    let known = parse(&figures);
    let mut anew = String::from(
        "# What a request costs: see costs.rs, which writes this file.\n\
         # case, instructions, allocations\n",
    );
    let mut wrong = String::new();
    for (case, count) in CASES {
        let cost = measure(case, count);
        let Cost {
            instructions,
            allocations,
        } = cost;
        writeln!(anew, "{case} {instructions} {allocations}").unwrap();
        let before = known.iter().find(|(known, _)| *known == case);
        let Some((_, before)) = before else {
            writeln!(wrong, "{case}: costs.txt has no figures").unwrap();
            continue;
        };
        for (what, now, before, within) in [
            (
                "instructions",
                instructions,
                before.instructions,
                before.instructions * TOLERANCE,
            ),
            (
                "allocations",
                allocations,
                before.allocations,
                (before.allocations * ALLOCATIONS_TOLERANCE).max(1.0),
            ),
        ] {
            if (now - before).abs() > within {
                let change = 100.0 * (now / before - 1.0);
                writeln!(
                    wrong,
                    "{case}: {now} {what}, {before} before: {change:+.0} %"
                )
                .unwrap();
            }
        }
    }
    if std::env::var_os("UPDATE_COSTS").is_some() {
        std::fs::write(&file, anew).unwrap();
        return;
    }
    assert!(
        wrong.is_empty(),
        "requests cost something else (UPDATE_COSTS=1 writes the figures anew):\n{wrong}"
    );
}
