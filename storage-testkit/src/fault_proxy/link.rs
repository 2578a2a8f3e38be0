//! One connection through the proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Direction, Fault};

/// The piece that is passed on at once.
const PIECE_BYTES: usize = 16 * 1024;

/// How long the server's side is kept after a cut behind a request, so that the server reads it.
const LINGER: Duration = Duration::from_millis(300);

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// FIN.
    Fin,
    /// RST.
    Rst,
}

/// What a connection is under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    delay: Duration,
    jitter: Duration,
    bytes_per_second: Option<u32>,
    paused: bool,
    drop_up: bool,
    drop_down: bool,
    after_request: bool,
    before_answer: bool,
    cut: Option<Cut>,
}

impl Mode {
    /// Whether a fault goes on until it is healed.
    #[must_use]
    pub fn lasts(fault: Fault) -> bool {
        matches!(
            fault,
            Fault::Delay { .. }
                | Fault::Throttle { .. }
                | Fault::Pause
                | Fault::HalfOpen
                | Fault::Drop(_)
        )
    }

    pub(super) fn take(&mut self, fault: Fault) {
        match fault {
            Fault::Delay { by, jitter } => (self.delay, self.jitter) = (by, jitter),
            Fault::Throttle { bytes_per_second } => self.bytes_per_second = Some(bytes_per_second),
            Fault::Pause => self.paused = true,
            Fault::Cut => self.cut = Some(Cut::Fin),
            Fault::Reset => self.cut = Some(Cut::Rst),
            Fault::HalfOpen => (self.drop_up, self.drop_down) = (true, true),
            Fault::Drop(Direction::Up) => self.drop_up = true,
            Fault::Drop(Direction::Down) => self.drop_down = true,
            Fault::CutAfterRequest => self.after_request = true,
            Fault::CutBeforeAnswer => self.before_answer = true,
            Fault::Refuse { .. } => {}
        }
    }

    /// What lost bytes cannot go on.
    pub(super) fn heal(&mut self) {
        let lossy = self.drop_up || self.drop_down;
        let cut = if lossy { Some(Cut::Rst) } else { self.cut };
        *self = Self {
            cut,
            ..Self::default()
        };
    }

    fn drops(&self, direction: Direction) -> bool {
        match direction {
            Direction::Up => self.drop_up,
            Direction::Down => self.drop_down,
        }
    }
}

/// Why a pump stopped.
enum End {
    /// Its reader said that no more comes, and its writer knows.
    Eof,
    Cut(Cut),
    /// A request went through; its answer must not.
    AfterRequest,
}

/// Passes bytes both ways until an end.
pub(super) async fn run(
    mut client: TcpStream,
    mut server: TcpStream,
    mode: watch::Receiver<Mode>,
    passed: Arc<AtomicU64>,
    seed: u64,
) {
    // A small frame must not wait for the next; if the socket is gone already, the first read tells.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = Pump::new(from_client, to_server, Direction::Up, &mode, &passed, seed);
        let down = Pump::new(
            from_server,
            to_client,
            Direction::Down,
            &mode,
            &passed,
            !seed,
        );
        let (up, down) = (up.run(), down.run());
        tokio::pin!(up, down);
        let first = tokio::select! {
            end = &mut up => (end, Direction::Up),
            end = &mut down => (end, Direction::Down),
        };
        match first {
            // Half of a connection may go on.
            (End::Eof, Direction::Up) => down.await,
            (End::Eof, Direction::Down) => up.await,
            (end, _) => end,
        }
    };
    match end {
        End::Eof | End::Cut(Cut::Fin) => {
            // What is gone already needs no end.
            let _ = client.shutdown().await;
            let _ = server.shutdown().await;
        }
        End::Cut(Cut::Rst) => {
            let _ = client.set_zero_linger();
            let _ = server.set_zero_linger();
        }
        End::AfterRequest => {
            let _ = client.set_zero_linger();
            drop(client);
            // A reset could overtake the request, so the server is given an end in order and is read out.
            let _ = server.shutdown().await;
            let mut nowhere = tokio::io::sink();
            let _ = timeout(LINGER, tokio::io::copy(&mut server, &mut nowhere)).await;
        }
    }
}

struct Pump<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    direction: Direction,
    mode: watch::Receiver<Mode>,
    passed: Arc<AtomicU64>,
    random: StdRng,
}

impl<'a> Pump<'a> {
    fn new(
        from: ReadHalf<'a>,
        to: WriteHalf<'a>,
        direction: Direction,
        mode: &watch::Receiver<Mode>,
        passed: &Arc<AtomicU64>,
        seed: u64,
    ) -> Self {
        Self {
            from,
            to,
            direction,
            mode: mode.clone(),
            passed: passed.clone(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    async fn run(mut self) -> End {
        let mut watched = self.mode.clone();
        let cut = async move {
            match watched.wait_for(|mode| mode.cut.is_some()).await {
                Ok(mode) => mode.cut.unwrap_or(Cut::Rst),
                // The proxy is gone.
                Err(_) => Cut::Rst,
            }
        };
        tokio::select! {
            cut = cut => End::Cut(cut),
            end = self.pass() => end,
        }
    }

    async fn pass(&mut self) -> End {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = match self.from.read(&mut piece).await {
                Ok(0) => {
                    if self.running().await.drops(self.direction) {
                        // The other side is not to know.
                        std::future::pending::<()>().await;
                    }
                    return match self.to.shutdown().await {
                        Ok(()) => End::Eof,
                        Err(_) => End::Cut(Cut::Rst),
                    };
                }
                Ok(count) => count,
                Err(_) => return End::Cut(Cut::Rst),
            };
            let mode = self.running().await;
            if mode.drops(self.direction) {
                continue;
            }
            if mode.before_answer && self.direction == Direction::Down {
                return End::Cut(Cut::Rst);
            }
            if !mode.delay.is_zero() || !mode.jitter.is_zero() {
                sleep(mode.delay + mode.jitter.mul_f64(self.random.random())).await;
            }
            let bytes = piece.get(..count).unwrap_or_default();
            if self.to.write_all(bytes).await.is_err() {
                return End::Cut(Cut::Rst);
            }
            self.passed.fetch_add(count as u64, Ordering::SeqCst);
            if mode.after_request && self.direction == Direction::Up {
                return End::AfterRequest;
            }
            if let Some(rate) = mode.bytes_per_second {
                let share = count as f64 / f64::from(rate.max(1));
                sleep(Duration::from_secs_f64(share)).await;
            }
        }
    }

    /// The mode, as soon as nothing is paused.
    async fn running(&mut self) -> Mode {
        match self.mode.wait_for(|mode| !mode.paused).await {
            Ok(mode) => *mode,
            Err(_) => Mode::default(),
        }
    }
}
