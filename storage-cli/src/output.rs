//! Where results go: stdout, or a file (see [`target`](crate::target)); and progress for people.
//!
//! A closed pipe on stdout is not a failure but an end ([`StdoutClosed`]); everything that writes goes through here,
//! so that it is told apart in one place.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::failure::{StdoutClosed, usage};

/// Lines of results, buffered.
pub(crate) struct Output {
    writer: BufWriter<Box<dyn Write + Send>>,
    /// What errors call it; `None`: stdout.
    name: Option<String>,
}

impl Output {
    pub(crate) fn stdout() -> Self {
        Self::new(Box::new(io::stdout()), None)
    }

    /// A file, under this name.
    pub(crate) fn file(writer: std::fs::File, name: String) -> Self {
        Self::new(Box::new(writer), Some(name))
    }

    fn new(writer: Box<dyn Write + Send>, name: Option<String>) -> Self {
        let writer = BufWriter::with_capacity(64 * 1024, writer);
        Self { writer, name }
    }

    pub(crate) fn line(&mut self, text: &str) -> anyhow::Result<()> {
        self.bytes(text.as_bytes())?;
        self.bytes(b"\n")
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let written = self.writer.write_all(bytes);
        written.map_err(|error| self.failed(&error))
    }

    /// For lines that somebody waits for.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        let flushed = self.writer.flush();
        flushed.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> anyhow::Error {
        match (&self.name, error.kind()) {
            (None, ErrorKind::BrokenPipe) => StdoutClosed.into(),
            (name, _) => {
                let name = name.as_deref().unwrap_or("stdout");
                usage(format!("{name} cannot be written: {error}"))
            }
        }
    }
}

/// Comes when nobody reads stdout any more, also while there is nothing to write to it. Never where that cannot be told.
pub(crate) async fn stdout_closed() {
    let closed = CancellationToken::new();
    let seen = closed.clone();
    // It blocks for as long as the process lives, and ends with it.
    let waiting = std::thread::Builder::new().name("stdout".to_owned());
    let waiting = waiting.spawn(move || {
        if wait_for_closed_stdout() {
            seen.cancel();
        }
    });
    match waiting {
        Ok(_) => closed.cancelled().await,
        Err(_) => std::future::pending().await,
    }
}

/// Blocks until then; `false` where it cannot be told.
#[cfg(target_os = "linux")]
fn wait_for_closed_stdout() -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let stdout = io::stdout();
    // An error and a hang-up are told without being asked for. A file has neither.
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return fds.iter().any(|fd| !fd.revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn wait_for_closed_stdout() -> bool {
    false
}

/// A bar (or a count, where the end is not known) on stderr, and nothing where stderr is no terminal.
pub(crate) fn progress(total_bytes: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, form) = match total_bytes {
        Some(total) => (
            ProgressBar::new(total),
            "{bar:30} {percent}% {bytes_per_sec} {msg} {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
