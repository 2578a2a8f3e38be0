//! Lines on their way to where they are written, by a thread of their own.
//!
//! Whoever logs never waits: a line that does not fit behind those that wait is dropped and counted, and when lines are
//! taken again the log says how many are missing. So a standard error that nobody reads costs lines, and nothing else.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// What may wait, in bytes.
pub(super) const QUEUE_BYTES_MAX: usize = 1 << 20;

/// One destination.
#[derive(Debug)]
pub(super) struct Queue {
    /// Where to, for people.
    name: &'static str,
    /// Short sections only.
    waiting: Mutex<Waiting>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// Of the lines, those at hand included.
    bytes: usize,
}

impl Queue {
    /// Starts its thread, which also calls `each_round` at least each `round`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(
        name: &'static str,
        to: impl Write + Send + 'static,
        round: Duration,
        each_round: impl Fn() + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            name,
            waiting: Mutex::default(),
            changed: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let writer = queue.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.write_all(to, round, each_round))?;
        Ok(queue)
    }

    /// Lines that were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes + line.len() > QUEUE_BYTES_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        drop(waiting);
        self.changed.notify_all();
    }

    /// Waits until everything is written, for so long.
    pub(super) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.bytes > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = self
                .changed
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn write_all(&self, mut to: impl Write, round: Duration, each_round: impl Fn()) {
        let mut told = 0;
        let mut next_round = Instant::now() + round;
        loop {
            let Some(lines) = self.next(next_round) else {
                each_round();
                next_round = Instant::now() + round;
                continue;
            };
            let (mut bytes, mut was_written) = (0, false);
            for line in lines {
                bytes += line.len();
                match to.write_all(&line) {
                    Ok(()) => was_written = true,
                    // Nobody is there any more.
                    Err(_) => {
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            let _ = to.flush();
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.bytes -= bytes;
            drop(waiting);
            self.changed.notify_all();
            let dropped = self.dropped();
            // Not where nothing can be written: that line would be dropped too, for ever.
            if was_written && dropped > told {
                let lines = dropped - told;
                told = dropped;
                tracing::warn!(
                    lines,
                    to = self.name,
                    "lines of the log were dropped: they were not taken in time"
                );
            }
        }
    }

    /// All that waits; `None` at `until`.
    fn next(&self, until: Instant) -> Option<VecDeque<Vec<u8>>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if !waiting.lines.is_empty() {
                return Some(std::mem::take(&mut waiting.lines));
            }
            waiting = self
                .changed
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Takes the lines of a formatter, each in one write.
#[derive(Clone, Debug)]
pub(super) struct Lines(pub(super) Arc<Queue>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes one write for each permit, and passes on what it was.
    struct Gate {
        permits: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.permits.recv().map_err(io::Error::other)?;
            let _ = self.written.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_logs_never_waits_and_what_is_dropped_is_counted() {
        let (permit, permits) = mpsc::channel();
        let (written, read) = mpsc::channel();
        let hour = Duration::from_secs(3600);
        let queue = Queue::start("a test", Gate { permits, written }, hour, || ()).unwrap();
        let line = vec![b'x'; QUEUE_BYTES_MAX / 8];
        // Nothing is taken: eight fit, in the queue or at hand.
        for _ in 0..10 {
            queue.push(&line);
        }
        assert_eq!(queue.dropped(), 2);
        queue.flush(Duration::from_millis(1));
        for _ in 0..8 {
            permit.send(()).unwrap();
            assert_eq!(read.recv().unwrap(), line);
        }
        queue.flush(hour);
        queue.push(b"again");
        permit.send(()).unwrap();
        assert_eq!(read.recv().unwrap(), b"again");
        assert_eq!(queue.dropped(), 2);
        // The writer is gone: lines are dropped, and nobody is hindered.
        drop(permit);
        queue.push(b"lost");
        queue.flush(hour);
        assert_eq!(queue.dropped(), 3);
    }
}
