//! `ping`: the time to the server and back, through the queues that calls go through.
//!
//! One after the other, without a pause; a line each, then the summary.

use std::time::Duration;

use clap::Args;

use crate::app::App;
use crate::failure::Exit;
use crate::json::Object;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage ping
  storage ping --count 100 | tail --lines 1

Prints a line per round trip, then the smallest, the mean and the largest time.";

/// Measures round trips
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Ping {
    /// Round trips
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

impl Ping {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let storage = app.connect().await?;
        let (mut min, mut max, mut sum) = (Duration::MAX, Duration::ZERO, Duration::ZERO);
        for number in 1..=self.count {
            let time = storage.ping().await?;
            (min, max, sum) = (min.min(time), max.max(time), sum + time);
            match app.json() {
                false => out.line(&format!("{number}: {} ms", millis(time)))?,
                true => out.line(
                    &Object::new()
                        .number("ping", number.into())
                        .raw("ms", &millis(time))
                        .finish(),
                )?,
            }
            out.flush()?;
        }
        let (min, avg, max) = (millis(min), millis(sum / self.count), millis(max));
        match app.json() {
            false => out.line(&format!("min/avg/max {min}/{avg}/{max} ms"))?,
            true => out.line(
                &Object::new()
                    .number("count", self.count.into())
                    .raw("min_ms", &min)
                    .raw("avg_ms", &avg)
                    .raw("max_ms", &max)
                    .finish(),
            )?,
        }
        Ok(Exit::Done)
    }
}

fn millis(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1e3)
}
