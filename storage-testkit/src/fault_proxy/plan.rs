//! Which faults come when, by a seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Direction, Fault, Scope};

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A fault begins.
    Make(Fault, Scope),
    /// All that last are over.
    Heal,
}

/// Faults with their times from the start. The same seed gives the same plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// What it was made of.
    pub seed: u64,
    /// In the order of time.
    pub steps: Vec<(Duration, Step)>,
}

impl FaultPlan {
    /// No fault at all.
    #[must_use]
    pub fn quiet() -> Self {
        Self {
            seed: 0,
            steps: Vec::new(),
        }
    }

    /// Faults over `length`, one about every `pace`; what lasts is healed after about as long.
    #[must_use]
    pub fn from_seed(seed: u64, length: Duration, pace: Duration) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut steps = Vec::new();
        let mut at = pace.mul_f64(random.random_range(0.3..1.0));
        while at < length {
            let fault = fault(&mut random, pace);
            let scope = if random.random_bool(0.3) {
                Scope::All
            } else {
                Scope::One
            };
            steps.push((at, Step::Make(fault, scope)));
            let lasts = super::Mode::lasts(fault);
            if lasts && random.random_bool(0.7) {
                at += pace.mul_f64(random.random_range(0.2..1.0));
                steps.push((at, Step::Heal));
            }
            at += pace.mul_f64(random.random_range(0.4..1.6));
        }
        Self { seed, steps }
    }
}

fn fault(random: &mut StdRng, pace: Duration) -> Fault {
    match random.random_range(0..14) {
        0 => Fault::Delay {
            by: Duration::from_millis(random.random_range(1..20)),
            jitter: Duration::from_millis(random.random_range(0..20)),
        },
        1 => Fault::Throttle {
            bytes_per_second: random.random_range(20_000..400_000),
        },
        2 => Fault::Pause,
        3 => Fault::Cut,
        4 | 5 => Fault::Reset,
        6 => Fault::HalfOpen,
        7 => Fault::Drop(Direction::Up),
        8 => Fault::Drop(Direction::Down),
        // What tells exactly-once from the rest.
        9..=11 => Fault::CutAfterRequest,
        12 => Fault::CutBeforeAnswer,
        _ => Fault::Refuse {
            during: pace.mul_f64(random.random_range(0.2..1.0)),
        },
    }
}
