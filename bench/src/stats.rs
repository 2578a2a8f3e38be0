//! Figures: latencies of many requests, and medians of rounds.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Latencies up to this are told apart; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(60);

/// Histograms that lanes share, so that they seldom wait for each other.
const SHARDS: usize = 16;

/// The time in which requests count: neither those of the warm-up, nor those after its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Its beginning.
    pub(crate) begin: Instant,
    /// Its end.
    pub(crate) end: Instant,
}

impl Window {
    /// Begins after the warm-up.
    pub(crate) fn after(warm_up: Duration, time: Duration) -> Self {
        let begin = Instant::now() + warm_up;
        let end = begin + time;
        Self { begin, end }
    }

    pub(crate) fn contains(&self, at: Instant) -> bool {
        self.begin <= at && at < self.end
    }
}

/// Collects latencies from many tasks.
#[derive(Debug)]
pub(crate) struct Recorder {
    shards: Vec<Mutex<Histogram<u64>>>,
    window: Window,
}

impl Recorder {
    pub(crate) fn new(window: Window) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(empty()));
        Self {
            shards: shards.collect(),
            window,
        }
    }

    /// Notes a request that was to be sent at `due` and is answered now, if it counts. `due` is when it was meant to be sent,
    /// also if it was sent later: who waits for a slow answer must not leave out the requests that had to wait meanwhile.
    /// Returns the time, and whether the window goes on.
    pub(crate) fn note(&self, lane: usize, due: Instant) -> (Instant, bool) {
        let now = Instant::now();
        self.note_at(lane, due, now);
        (now, now < self.window.end)
    }

    /// The same for an answer at this time.
    pub(crate) fn note_at(&self, lane: usize, due: Instant, answered: Instant) {
        if !self.window.contains(answered) {
            return;
        }
        if let Some(shard) = self.shards.get(lane % SHARDS) {
            let took = answered.saturating_duration_since(due).min(LONGEST);
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            let mut histogram = shard.lock().unwrap_or_else(PoisonError::into_inner);
            histogram.saturating_record(nanos.max(1));
        }
    }

    /// What was noted.
    pub(crate) fn summary(&self) -> Latencies {
        let mut all = empty();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            // The bounds are the same, so this cannot fail.
            let _ = all.add(&*shard);
        }
        Latencies::of(&all)
    }
}

#[expect(
    clippy::expect_used,
    reason = "bounds that are constants are good or not"
)]
fn empty() -> Histogram<u64> {
    let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    Histogram::new_with_bounds(1, longest, 3).expect("good bounds")
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latencies {
    /// Requests that were noted.
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Latencies {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1000.0,
        }
    }
}

/// The median; of an even number the mean of both in the middle. `None` of nothing.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.into_iter().filter(|one| one.is_finite()).collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let upper = *figures.get(middle)?;
    if figures.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = figures.get(middle - 1).copied().unwrap_or(upper);
    Some(f64::midpoint(lower, upper))
}

/// The median of the ratios of two figures that were taken in the same rounds. `None` if there is no round with both.
pub(crate) fn median_ratio(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
    median(pairs.into_iter().map(|(ours, theirs)| ours / theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([3.0, 1.0, 100.0]), Some(3.0));
        assert_eq!(median([4.0, 1.0, 2.0, 100.0]), Some(3.0));
        assert_eq!(median([f64::NAN, 2.0]), Some(2.0));
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine was twice as slow in the second round, for both.
        let rounds = [(200.0, 100.0), (100.0, 50.0), (210.0, 100.0)];
        assert_eq!(median_ratio(rounds), Some(2.0));
        assert_eq!(median_ratio([(1.0, 0.0)]), None);
    }

    #[test]
    fn only_what_is_answered_within_the_window_counts() {
        let begin = Instant::now();
        let end = begin + Duration::from_secs(1);
        let recorder = Recorder::new(Window { begin, end });
        let ms = Duration::from_millis;
        let before = begin.checked_sub(ms(1)).unwrap();
        recorder.note_at(0, before, before);
        recorder.note_at(0, before, begin);
        recorder.note_at(1, begin, begin + ms(10));
        recorder.note_at(2, begin, end);
        let summary = recorder.summary();
        assert_eq!(summary.count, 2);
        assert!((summary.max - 10_000.0).abs() < 20.0, "{summary:?}");
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due() {
        // 10 requests a second that are due while one answer takes a second: all of them had to wait.
        let begin = Instant::now();
        let end = begin + Duration::from_secs(10);
        let recorder = Recorder::new(Window { begin, end });
        let answered = begin + Duration::from_secs(1);
        for n in 0..10 {
            let due = begin + Duration::from_millis(100) * n;
            recorder.note_at(0, due, answered);
        }
        let summary = recorder.summary();
        assert_eq!(summary.count, 10);
        assert!((summary.p50 / 1000.0 - 600.0).abs() < 110.0, "{summary:?}");
        assert!((summary.max / 1000.0 - 1000.0).abs() < 2.0, "{summary:?}");
    }
}
