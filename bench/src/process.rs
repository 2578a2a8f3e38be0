//! Processes that are measured: started here, looked at through `/proc`, and ended when dropped.
//!
//! Invariant: nothing that was started outlives its [`Process`], and every wait has an end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a system may take to start, to stop, or to answer a command.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A system gets so long to end by itself before it is killed.
const END: Duration = Duration::from_secs(10);

/// A child process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Option<Mutex<Receiver<String>>>,
}

impl Process {
    /// Starts it with its error output, and unless `talks` its output too, in the file `log`.
    pub(crate) fn start(
        name: &str,
        command: &mut Command,
        log: &Path,
        talks: bool,
    ) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stderr(file.try_clone()?);
        if talks {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            command.stdin(Stdio::null()).stdout(file);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("{name} cannot be started: {command:?}"))?;
        let input = child.stdin.take();
        let lines = child.stdout.take().map(|output| {
            let (lines, read) = sync_channel(64);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if lines.send(line).is_err() {
                        return;
                    }
                }
            });
            Mutex::new(read)
        });
        Ok(Self {
            name: name.to_owned(),
            child,
            input,
            lines,
        })
    }

    /// The next line of its output, within so long.
    pub(crate) fn line(&mut self, patience: Duration) -> Result<String> {
        let lines = self.lines.as_mut().context("it does not talk")?;
        let lines = lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        lines.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                anyhow!("{} said nothing within {patience:?}", self.name)
            }
            RecvTimeoutError::Disconnected => anyhow!("{} has ended", self.name),
        })
    }

    /// Gives it a line of input.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("it does not listen")?;
        writeln!(input, "{line}")?;
        input.flush()?;
        Ok(())
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}", self.name),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end (SIGTERM), and waits until it did.
    pub(crate) async fn terminate(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(began.elapsed() < PATIENCE, "{} does not end", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// See [`cpu_of`].
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(&self.id().to_string())
    }

    /// Its resident memory in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        resident_of(&self.id().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has a journal may be killed: its data goes with it. One that waits for input ends by itself.
        drop(self.input.take());
        let _ = self.child.kill();
        let began = Instant::now();
        while began.elapsed() < END && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The processor time that a process (or `self`) has taken, of all its threads, in steps of 10 ms.
pub(crate) fn cpu_of(process: &str) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let ticks = ticks(&stat).with_context(|| format!("/proc/{process}/stat: {stat}"))?;
    // USER_HZ is 100 on every Linux that this runs on.
    Ok(Duration::from_millis(10 * ticks))
}

fn ticks(stat: &str) -> Option<u64> {
    // Behind the name, which may hold anything, come the fields from the third on; times are the 14th to the 17th: user
    // and system, of the process and of its children that have ended.
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(4);
    let times: Vec<u64> = times.map(|time| time.parse().ok()).collect::<Option<_>>()?;
    (times.len() == 4).then(|| times.iter().sum())
}

/// The resident memory of a process (or `self`) in bytes.
pub(crate) fn resident_of(process: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("/proc does not tell the resident memory")? * 1024)
}

/// A port of the loopback that nobody has at the moment, for systems that cannot choose one themselves.
pub(crate) fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    Ok(listener.local_addr()?.port())
}

/// Tries until it succeeds, for as long as the process lives and patience lasts.
pub(crate) async fn until_ready<T, F, R>(process: &mut Process, attempt: F) -> Result<T>
where
    F: Fn() -> R + Send + Sync,
    R: Future<Output = Result<T>> + Send,
    T: Send,
{
    let began = Instant::now();
    loop {
        process.check()?;
        let tried = tokio::time::timeout(Duration::from_secs(5), attempt()).await;
        let error = match tried {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("no answer within 5 s"),
        };
        if began.elapsed() > PATIENCE {
            return Err(error.context(format!("{} is not ready in time", process.name)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_a_name_with_anything_in_it() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 1 0 0 0 7 5 3 9 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(7 + 5 + 3 + 9));
        assert_eq!(ticks("12 (x) S 1"), None);
        assert_eq!(ticks("12 (x) S 1 12 12 0 -1 4194560 1 0 0 0 7 5 3"), None);
    }

    #[test]
    fn a_process_is_seen_and_ends_with_its_handle() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("cat");
        let mut process = Process::start("cat", &mut command, log.path(), true).unwrap();
        process.say("hello").unwrap();
        assert_eq!(process.line(PATIENCE).unwrap(), "hello");
        assert!(process.resident().unwrap() > 0);
        let id = process.id();
        drop(process);
        assert!(cpu_of(&id.to_string()).is_err());
    }
}
