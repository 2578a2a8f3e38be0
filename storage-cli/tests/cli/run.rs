//! Runs the command, and says what came of it.
//!
//! The environment is empty of `STORAGE_*`; each run is ended by a time-out. The command is the one that was built with the
//! tests, unless there is one beside them, as `scripts/planted-bugs` puts it.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here takes; a run that hangs fails by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a run left behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The lines of stdout of a run that went well.
    pub(crate) fn lines(&self) -> Vec<&str> {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.lines().collect()
    }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let beside = std::env::current_exe().unwrap().with_file_name("storage");
    let built = PathBuf::from(env!("CARGO_BIN_EXE_storage"));
    let mut command = Command::new(if beside.is_file() { beside } else { built });
    command
        .args(arguments)
        .env_remove("STORAGE_URL")
        .env_remove("STORAGE_CERTS")
        .env_remove("STORAGE_IDENTITY")
        .env_remove("STORAGE_TOKEN_FILE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs without a server.
pub(crate) fn storage(arguments: &[&str]) -> Ran {
    finish(command(arguments).spawn().unwrap())
}

/// Runs with this on stdin.
pub(crate) fn with_stdin(mut command: Command, input: &[u8]) -> Ran {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || {
        // A command that ends before it has read all is what some tests are about.
        let _ = stdin.write_all(&input);
    });
    let ran = finish(child);
    writer.join().unwrap();
    ran
}

pub(crate) fn finish(mut child: Child) -> Ran {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut bytes).unwrap();
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(out.take().map(|pipe| Box::new(pipe) as _));
    let err = read(err.take().map(|pipe| Box::new(pipe) as _));
    let code = wait(&mut child).code().unwrap_or(-1);
    Ran {
        code,
        out: out.join().unwrap(),
        err: err.join().unwrap(),
    }
}

pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the command hangs");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}
