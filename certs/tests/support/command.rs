//! Runs the `storage-certs` binary as a script would, on a folder that is removed afterwards.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

pub(crate) struct Certs {
    _root: TempDir,
    pub(crate) dir: PathBuf,
}

/// What a run ended with.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Certs {
    /// A folder name in which there is nothing yet.
    pub(crate) fn empty() -> Self {
        let root = TempDir::new().unwrap();
        Self {
            dir: root.path().join("certs"),
            _root: root,
        }
    }

    /// A folder with a CA and a server for localhost and 127.0.0.1.
    pub(crate) fn initialised() -> Self {
        let certs = Self::empty();
        let args = "init --server-name localhost --server-name 127.0.0.1";
        assert_eq!(certs.run(args.split(' ')).code, 0);
        certs
    }

    /// Runs with these arguments and `--dir`.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        let output = Command::new(env!("CARGO_BIN_EXE_storage-certs"))
            .args(args)
            .arg("--dir")
            .arg(&self.dir)
            .output()
            .unwrap();
        Run::from(output)
    }

    /// Runs and insists on exit code 0.
    pub(crate) fn done(&self, args: &str) -> String {
        let run = self.run(args.split(' '));
        assert_eq!(run.code, 0, "{args}: {}", run.err);
        run.out
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.join(relative)
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
