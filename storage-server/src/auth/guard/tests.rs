//! Whether the access rules hold, against a model of them: over random rules, principals, keys, ranges and operations, and
//! changes of the rules in between.
//!
//! `ACCESS_CASES=N` tries so many cases in place of the default.

mod calls;
mod case;
mod model;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::{Builder, Runtime};

use self::case::{Case, Op, Step, Who, cases};
use self::model::Model;
use self::world::World;

/// A case is about 10 ms, and of a store with another 20.
const CASES: u32 = 800;

fn cases_tried() -> u32 {
    let asked = std::env::var("ACCESS_CASES").ok();
    asked.map_or(CASES, |asked| asked.parse().expect("a number"))
}

type Tried = std::result::Result<(), TestCaseError>;

fn try_all<S: Strategy>(strategy: &S, one: impl Fn(&S::Value) -> Tried) {
    let mut runner = TestRunner::new(Config {
        cases: cases_tried(),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..Config::default()
    });
    if let Err(failed) = runner.run(strategy, |value| one(&value)) {
        panic!("{failed}");
    }
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

fn same(step: &Step, told: &[String], expected: &[String]) -> Tried {
    match told == expected {
        true => Ok(()),
        false => Err(TestCaseError::fail(format!(
            "{step:?}\n  told:     {told:#?}\n  expected: {expected:#?}"
        ))),
    }
}

/// Parts of what is told that are to be told at least once, or nothing was tried.
const KINDS: [&str; 20] = [
    "may not read the key",
    "may not read any key of this range",
    "may not write the key",
    "may not watch any key of this range",
    "may not create it",
    "check failed: ",
    " is absent",
    " is of commit ",
    "stands twice",
    "at least one byte",
    "at 1: ",
    " removed@",
    "=@",
    "\\x00\\x00",
    " was v",
    ": signal ",
    "watch 0: what may be read or watched has changed",
    "watch 1: commit ",
    "watch 0: state ",
    "allowed",
];

#[test]
fn each_call_and_each_event_is_as_a_simple_model_of_the_rules_has_it() {
    let runtime = runtime();
    let world = runtime.block_on(World::new());
    let seen = RefCell::new(BTreeMap::<&str, usize>::new());
    try_all(&cases(), |case| {
        runtime.block_on(Box::pin(async {
            let mut run = world.begin(case).await;
            let mut model = Model::new(run.keyspace(), case);
            for step in case.steps.iter().chain([&Step::Look]) {
                let expected = model.step(step);
                let told = run.step(step).await;
                same(step, &told, &expected)?;
                // Also of what was told on the way to the state of a reader.
                for (watch, key) in std::mem::take(&mut run.told) {
                    if !model.may_be_told(watch, &key) {
                        let message = format!("{step:?}: watch {watch} tells of {key:?}");
                        return Err(TestCaseError::fail(message));
                    }
                }
                for kind in KINDS {
                    let count = told.iter().filter(|line| line.contains(kind)).count();
                    *seen.borrow_mut().entry(kind).or_default() += count;
                }
            }
            Ok(())
        }))
    });
    println!("{:#?}", seen.borrow());
    // Of fewer cases, some may have none.
    if cases_tried() >= CASES {
        for (kind, count) in seen.take() {
            assert!(count > 0, "{kind:?} was never told");
        }
    }
}

/// The same case with other commits where a principal may not see anything of them.
fn unseen_changed(case: &Case, unseen: &[&[u8]]) -> Case {
    let is_unseen = |op: &Op| unseen.contains(&op.key().as_ref());
    let steps = case.steps.iter().map(|step| match step {
        Step::Other { ops, instead } => Step::Other {
            ops: {
                let seen = ops.iter().filter(|op| !is_unseen(op));
                let unseen = instead.iter().filter(|op| is_unseen(op));
                seen.chain(unseen).cloned().collect()
            },
            instead: Vec::new(),
        },
        step => step.clone(),
    });
    Case {
        steps: steps.collect(),
        ..case.clone()
    }
}

/// The case with one principal in the place of all; whoever may do everything and the administrator stay.
fn of_one(mut case: Case, who: Who) -> Case {
    for step in &mut case.steps {
        match step {
            Step::Get(whose, _)
            | Step::Scan(whose, _)
            | Step::BeginScan(whose, _)
            | Step::Commit(whose, _)
            | Step::Watch(whose, ..)
            | Step::System(whose) => *whose = who,
            Step::Other { .. }
            | Step::Look
            | Step::Grant(_)
            | Step::Revoke(_)
            | Step::Members(_) => {}
        }
    }
    case
}

/// Revisions are told as the numbers of their commits: how far they are apart depends on the rows that a commit writes,
/// which `docs/guarantees.md` says.
#[test]
fn two_stores_that_differ_in_what_a_principal_may_not_see_are_the_same_to_it() {
    let runtime = runtime();
    let (one, other) = runtime.block_on(async { (World::new().await, World::new().await) });
    let differed = RefCell::new(0);
    let who = proptest::sample::select(case::ALL.to_vec());
    try_all(&(cases(), who), |(case, who)| {
        let case = of_one(case.clone(), *who);
        let changed = unseen_changed(&case, &Model::never_seen(&case, *who));
        runtime.block_on(Box::pin(async {
            let (mut here, mut there) = (one.begin(&case).await, other.begin(&changed).await);
            for (step, changed) in case
                .steps
                .iter()
                .zip(&changed.steps)
                .chain([(&Step::Look, &Step::Look)])
            {
                let told = here.step(step).await;
                let expected = there.step(changed).await;
                same(step, &told, &expected)?;
                if let (Step::Other { ops, .. }, Step::Other { ops: others, .. }) = (step, changed)
                {
                    *differed.borrow_mut() += usize::from(ops != others);
                }
            }
            Ok(())
        }))
    });
    println!("commits that differed: {}", differed.borrow());
    assert!(differed.take() > 0, "they never differed");
}
