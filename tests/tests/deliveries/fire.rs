//! Over real servers and sockets: killed servers, cut connections, robots that die. `scripts/soak --jobs` runs more of it.

use std::time::Duration;

use storage_testkit::robots::{Fire, under_fire};

/// Replay one: `SEED=17 cargo test --release --workspace --test deliveries under_fire`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_job_is_lost_under_fire_and_none_goes_astray() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let outcome = under_fire(Fire {
        seed,
        robots: 20,
        jobs: 200,
        length: Duration::from_secs(5),
        kills: 2,
    })
    .await;
    println!("{outcome:?}");
    assert!(
        outcome.violations.is_empty(),
        "SEED={seed}: {:#?}",
        outcome.violations
    );
    let done = outcome.of.get("done").copied().unwrap_or(0);
    // What was scheduled before the fire; how many triggers come through depends on how long a start takes.
    assert!(done >= 100, "SEED={seed}: {outcome:?}");
}
