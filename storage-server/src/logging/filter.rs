//! Which events become lines: by level, by what they may tell, and by how many of a kind there were.
//!
//! Peers that nobody knows yet cause lines, as many as they like; so each kind of line (each place in the sources) has a
//! bound, and the log says how many of it are left out. Crates that print what they carry do not get to do so, however
//! detailed a log is asked for: keys and values are never logged.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Filter};

/// Lines of one kind that may come at once.
pub(super) const BURST: u32 = 100;
/// And per second, from then on.
pub(super) const PER_SECOND: u32 = 10;
/// Of the text of a kind, for the line that counts what was left out.
const TEXT_BYTES_MAX: usize = 200;

/// Kinds of lines, with what is left of their bound. As many as there are places in the sources.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    /// Short sections only.
    kinds: Mutex<HashMap<Identifier, Kind>>,
    suppressed: AtomicU64,
}

#[derive(Debug)]
struct Kind {
    left: f64,
    seen: Instant,
    /// Since the log said so.
    suppressed: u64,
    target: String,
    text: String,
}

impl Kinds {
    /// Lines that were left out.
    pub(super) fn suppressed(&self) -> u64 {
        self.suppressed.load(Ordering::Relaxed)
    }

    fn admit(&self, event: &Event<'_>, now: Instant) -> bool {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds
            .entry(event.metadata().callsite())
            .or_insert_with(|| Kind {
                left: f64::from(BURST),
                seen: now,
                suppressed: 0,
                target: event.metadata().target().to_owned(),
                text: String::new(),
            });
        let passed = now.saturating_duration_since(kind.seen).as_secs_f64();
        kind.left = (kind.left + passed * f64::from(PER_SECOND)).min(f64::from(BURST));
        kind.seen = now;
        if kind.left >= 1.0 {
            kind.left -= 1.0;
            return true;
        }
        if kind.text.is_empty() {
            event.record(&mut Text(&mut kind.text));
        }
        kind.suppressed += 1;
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Says what was left out since the last time, a line for each kind.
    pub(super) fn report(&self) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let told: Vec<_> = kinds
            .values_mut()
            .filter(|kind| kind.suppressed > 0)
            .map(|kind| {
                let lines = std::mem::take(&mut kind.suppressed);
                (lines, kind.target.clone(), kind.text.clone())
            })
            .collect();
        // To log is to come here again.
        drop(kinds);
        for (lines, of, text) in told {
            tracing::warn!(lines, of, text, "too many lines of a kind were left out");
        }
    }
}

/// The text of an event.
struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
            let mut end = TEXT_BYTES_MAX.min(self.0.len());
            while !self.0.is_char_boundary(end) {
                end -= 1;
            }
            self.0.truncate(end);
        }
    }
}

/// The whole filter.
#[derive(Debug)]
pub(super) struct Lined {
    pub(super) directives: EnvFilter,
    pub(super) kinds: &'static Kinds,
}

/// The most detailed level of a crate: what it prints beyond is, or may be, what it carries.
fn most_detailed(target: &str) -> Level {
    let is_of = |name: &str| {
        target
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    if target.starts_with("storage_") {
        Level::TRACE
    } else if is_of("tungstenite") || is_of("tokio_tungstenite") {
        Level::INFO
    } else {
        Level::DEBUG
    }
}

fn may_tell(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= most_detailed(metadata.target())
}

impl<S: Subscriber> Filter<S> for Lined
where
    EnvFilter: Filter<S>,
{
    fn enabled(&self, metadata: &Metadata<'_>, cx: &Context<'_, S>) -> bool {
        may_tell(metadata) && Filter::enabled(&self.directives, metadata, cx)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if may_tell(metadata) {
            Filter::<S>::callsite_enabled(&self.directives, metadata)
        } else {
            Interest::never()
        }
    }

    fn event_enabled(&self, event: &Event<'_>, cx: &Context<'_, S>) -> bool {
        // Whoever asks for details wants them all.
        let is_detail = *event.metadata().level() > Level::INFO;
        Filter::event_enabled(&self.directives, event, cx)
            && (is_detail || self.kinds.admit(event, Instant::now()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Filter::<S>::max_level_hint(&self.directives)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        Filter::on_new_span(&self.directives, attributes, id, cx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        Filter::on_record(&self.directives, id, values, cx);
    }

    fn on_enter(&self, id: &Id, cx: Context<'_, S>) {
        Filter::on_enter(&self.directives, id, cx);
    }

    fn on_exit(&self, id: &Id, cx: Context<'_, S>) {
        Filter::on_exit(&self.directives, id, cx);
    }

    fn on_close(&self, id: Id, cx: Context<'_, S>) {
        Filter::on_close(&self.directives, id, cx);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Layer, Registry};

    use super::*;
    use crate::logging::queue::{Lines, Queue};

    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged by `work`.
    fn logged(directives: &str, kinds: &'static Kinds, work: impl FnOnce()) -> String {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let hour = std::time::Duration::from_secs(3600);
        let queue = Queue::start("a test", Kept(kept.clone()), hour, || ()).unwrap();
        let layer = tracing_subscriber::fmt::layer().with_writer(Lines(queue.clone()));
        let filter = Lined {
            directives: EnvFilter::new(directives),
            kinds,
        };
        let subscriber = Registry::default().with(layer.with_ansi(false).with_filter(filter));
        tracing::subscriber::with_default(subscriber, work);
        queue.flush(hour);
        String::from_utf8(kept.lock().unwrap().clone()).unwrap()
    }

    fn kinds() -> &'static Kinds {
        Box::leak(Box::default())
    }

    #[test]
    fn one_kind_of_line_does_not_fill_the_log_and_is_counted() {
        let kinds = kinds();
        let log = logged("info", kinds, || {
            for n in 0..10_000 {
                tracing::info!(n, "one of many");
            }
            tracing::info!("another");
            kinds.report();
        });
        let many = log
            .lines()
            .filter(|line| line.contains("one of many n="))
            .count();
        assert!(many >= BURST as usize && many < 5_000, "{many}");
        assert!(log.contains("another"), "each kind has its own bound");
        let left_out = 10_000 - many as u64;
        assert_eq!(kinds.suppressed(), left_out);
        let told = format!(
            "lines={left_out} of=\"storage_server::logging::filter::tests\" text=\"one of many\""
        );
        assert!(log.contains(&told), "{told}: {log}");
        assert!(
            logged("info", kinds, || kinds.report()).is_empty(),
            "it is told once"
        );
    }

    #[test]
    fn details_are_not_left_out() {
        let log = logged("debug", kinds(), || {
            (0..1_000).for_each(|n| tracing::debug!(n, "detail"))
        });
        assert_eq!(log.lines().count(), 1_000);
    }

    #[test]
    fn crates_that_print_what_they_carry_are_quiet_at_any_level() {
        let log = logged("trace", kinds(), || {
            tracing::trace!(target: "tungstenite::protocol", "frame: secret");
            tracing::debug!(target: "tungstenite::protocol", "close: secret");
            tracing::trace!(target: "rustls::server", "secret");
            tracing::debug!(target: "rustls::server", "suite");
            tracing::trace!(target: "storage_server::session", "ours");
        });
        assert!(
            !log.contains("secret") && log.contains("suite") && log.contains("ours"),
            "{log}"
        );
    }
}
