//! Where results go: stdout, or a file that appears only when it is whole; and progress for people.
//!
//! A closed pipe on stdout is not a failure but an end ([`StdoutClosed`]); everything that writes goes through here,
//! so that it is told apart in one place.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::failure::{StdoutClosed, usage};

/// Lines of results, buffered.
pub(super) struct Output {
    writer: BufWriter<Box<dyn Write + Send>>,
    name: String,
}

impl Output {
    pub(super) fn stdout() -> Self {
        Self::new(Box::new(io::stdout()), "stdout".to_owned())
    }

    fn new(writer: Box<dyn Write + Send>, name: String) -> Self {
        let writer = BufWriter::with_capacity(64 * 1024, writer);
        Self { writer, name }
    }

    pub(super) fn line(&mut self, text: &str) -> anyhow::Result<()> {
        self.bytes(text.as_bytes())?;
        self.bytes(b"\n")
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let written = self.writer.write_all(bytes);
        written.map_err(|error| self.failed(&error))
    }

    /// For lines that somebody waits for.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        let flushed = self.writer.flush();
        flushed.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> anyhow::Error {
        match error.kind() {
            ErrorKind::BrokenPipe => StdoutClosed.into(),
            _ => usage(format!("{} cannot be written: {error}", self.name)),
        }
    }
}

/// A file that is written as `FILE.part` and gets its name when it is whole. Dropped before, it takes the part away.
pub(super) struct WholeFile {
    pub(super) output: Output,
    file: std::fs::File,
    part: PathBuf,
    path: PathBuf,
    whole: bool,
}

impl WholeFile {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let name = part.display().to_string();
        let create = || {
            let file = std::fs::File::create(&part)?;
            Ok::<_, io::Error>((file.try_clone()?, file))
        };
        let (writer, file) =
            create().map_err(|error| usage(format!("{name} cannot be made: {error}")))?;
        Ok(Self {
            output: Output::new(Box::new(writer), name),
            file,
            part,
            path: path.to_owned(),
            whole: false,
        })
    }

    /// Ordering: the bytes are on the disk before the name says that they are.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.output.flush()?;
        let named = self
            .file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.part, &self.path));
        named.map_err(|error| {
            usage(format!(
                "{} cannot be written: {error}",
                self.path.display()
            ))
        })?;
        self.whole = true;
        Ok(())
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.whole {
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

/// A bar (or a count, where the end is not known) on stderr, and nothing where stderr is no terminal.
pub(super) fn progress(total_bytes: Option<u64>) -> ProgressBar {
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
