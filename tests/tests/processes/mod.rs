//! Processes of this workspace that run to their end, with what they said, within a bound.
//!
//! Both pipes are read while the process runs, so that none can fill up and stop it.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// For a command that should take a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a process left behind.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("UTF-8")
    }

    /// Fails, with all that was said, unless the exit code is this.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Fails unless standard error has all of these texts.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "{text:?} is not in: {}",
                self.stderr
            );
        }
        self
    }
}

/// Runs `command` with this standard input.
#[track_caller]
pub(crate) fn run(command: &mut Command, stdin: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("piped");
    let bytes = stdin.to_vec();
    // Who does not read all of it has its reasons.
    thread::spawn(move || drop(input.write_all(&bytes)));
    finish(child)
}

/// Waits for a process whose output is piped.
#[track_caller]
pub(crate) fn finish(mut child: Child) -> Ran {
    let stdout = child.stdout.take().map(read);
    let stderr = child.stderr.take().map(read);
    let code = wait(&mut child, PATIENCE);
    let take = |reading: Option<JoinHandle<Vec<u8>>>| {
        reading.map_or_else(Vec::new, |reading| reading.join().expect("it was read"))
    };
    Ran {
        code,
        stdout: take(stdout),
        stderr: String::from_utf8_lossy(&take(stderr)).into_owned(),
    }
}

/// The exit code; fails, and kills the process, when it does not come in time.
#[track_caller]
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            return status.code();
        }
        if began.elapsed() > patience {
            child.kill().expect("it can be killed");
            panic!("it did not end within {patience:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn read(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before a failure counts.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}
