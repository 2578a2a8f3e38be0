//! One connection, from TCP to its session: TLS, HTTP, and the bounds before a peer is known.
//!
//! Everything up to the first message of a session, or the first request for a route, has one deadline, and one of the
//! listener's places (see [`crate::net::admission`]). A connection with requests for routes may stay: idle for
//! `timeouts.http_idle`, and as long as an answer takes. At a shutdown it ends after the answer that is due.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::audit::{Event, Outcome, Record};
use crate::auth::{Identity, IdentityError};
use crate::http::protocol::Running;
use crate::http::{Admitted, Front, Patient, Targets};
use crate::metrics::RefusedLabel;
use crate::net::admission::{Heard, Place};
use crate::net::stream::Stream;
use crate::net::tls::{AcceptError, LiveTls};
use crate::shared::Shared;
use crate::ws::Peer;

/// What the system buffers of a connection without having sent it: half of that is 0.5 ms at 1 Gbit/s.
const UNSENT_BYTES: u32 = 128 * 1024;
/// The longest HTTP request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long the answer to a request may take whose peer is not let in any more.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// Time for an orderly end of TLS and TCP.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Who the peer is by its certificate; `None`: it has none.
pub(super) type Certified = Result<Option<Identity>, IdentityError>;

/// See the module.
pub(super) struct Connection {
    shared: Arc<Shared>,
    front: Arc<Front>,
    number: u64,
    address: SocketAddr,
    deadline: Instant,
    /// Kept until the connection ends.
    place: Arc<Place>,
}

impl Connection {
    pub(super) fn new(
        shared: &Arc<Shared>,
        front: &Arc<Front>,
        address: SocketAddr,
        place: Place,
    ) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            address,
            deadline: Instant::now() + shared.config.timeouts.handshake,
            place: Arc::new(place),
            shared: shared.clone(),
            front: front.clone(),
        }
    }

    pub(super) fn span(&self) -> tracing::Span {
        tracing::info_span!(
            "connection",
            conn = self.number,
            peer = %self.address,
            principal = tracing::field::Empty,
            keyspace = tracing::field::Empty,
        )
    }

    pub(super) async fn run(self, stream: TcpStream, tls: Option<Arc<LiveTls>>) {
        // Boxed, as the session is: of thousands of idle sessions none keeps the memory of its handshake.
        let arriving = Box::pin(self.arrive(stream, tls));
        if let Some(session) = arriving.await {
            session.await;
        }
    }

    /// The same from behind TLS on, for a peer in memory: where it is to be fuzzed.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) async fn run_in_memory(self, stream: tokio::io::DuplexStream, certified: Certified) {
        let stream = Stream::Memory(Heard::new(stream, self.place.seat()));
        if let Some(session) = Box::pin(self.http(stream, certified)).await {
            session.await;
        }
    }

    /// The session that the peer asked for; `None` if it is over.
    async fn arrive(&self, stream: TcpStream, tls: Option<Arc<LiveTls>>) -> Option<Running> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        // A small answer waits behind what the system has not sent, so that is kept small.
        if let Err(error) = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES) {
            tracing::debug!(%error, "cannot set TCP_NOTSENT_LOWAT");
        }
        let stream = Heard::new(stream, self.place.seat());
        let arriving = async {
            let secured = tokio::select! {
                secured = self.secure(stream, tls) => secured,
                () = self.shared.stop.cancelled() => None,
            };
            let (stream, certified) = secured?;
            self.http(stream, certified).await
        };
        let arrived = self.place.unless_asked_to_leave(arriving).await;
        if arrived.is_none() {
            self.shared.metrics.refused(RefusedLabel::Handshakes);
            tracing::info!(
                "closed a connection: it was silent, or one of too many of its address, and its place was needed"
            );
        }
        arrived.flatten()
    }

    /// The TLS handshake, and who the peer is.
    async fn secure(
        &self,
        stream: Heard<TcpStream>,
        tls: Option<Arc<LiveTls>>,
    ) -> Option<(Stream, Certified)> {
        // Ordering: before the TLS that it goes with, so it is never newer than that.
        let verified = self.shared.access.verifier_version();
        let Some(tls) = tls.map(|tls| tls.now()) else {
            return Some((Stream::Plain(stream), Ok(None)));
        };
        let accepting = tls.accept(stream, verified);
        let accepted = tokio::time::timeout_at(self.deadline.into(), accepting).await;
        match accepted {
            Ok(Ok(accepted)) => {
                let address = Some(self.address);
                let certified = accepted.identity;
                let certified = certified.map(|known| known.map(|known| known.at(address)));
                if let Ok(Some(identity)) = &certified {
                    tracing::Span::current().record("principal", identity.principal().as_str());
                    let record = Record::new(Event::Session, "log_in", Outcome::Allowed);
                    self.shared.audit.put(record.by(identity));
                }
                if accepted.resumed {
                    self.shared.metrics.resumed.inc();
                }
                let stream = Stream::Tls(Box::new(accepted.stream));
                Some((stream, certified))
            }
            Ok(Err(AcceptError::Handshake { error, .. })) if !self.place.seat().was_heard() => {
                // Health checks of load balancers do this.
                self.shared.metrics.refused(RefusedLabel::Unused);
                tracing::debug!(%error, "a connection was closed by its peer, who said nothing");
                None
            }
            Ok(Err(error)) => {
                self.shared.metrics.refused(RefusedLabel::Tls);
                let claimed = error.claimed();
                let principal = claimed.and_then(|claimed| claimed.principal.as_ref());
                tracing::info!(
                    %error,
                    claimed = principal.map(tracing::field::display),
                    serial = claimed.map(|claimed| claimed.serial.as_str()),
                    "refused a connection"
                );
                // A peer that broke off is nobody who was refused.
                if error.is_refusal() {
                    let record = Record::new(Event::Denied, "log_in", Outcome::Denied);
                    let record = record.address(self.address);
                    let principal = principal.map(ToString::to_string);
                    let record = record.claiming("certificate", principal);
                    let record = match claimed {
                        Some(claimed) => record.serial(&claimed.serial),
                        None => record,
                    };
                    self.shared.audit.put(record.reason(&error.to_string()));
                }
                None
            }
            Err(_) => {
                self.shared.metrics.refused(RefusedLabel::Timeout);
                tracing::info!("closed a connection: no TLS handshake in time");
                None
            }
        }
    }

    /// HTTP until an upgrade, whose session is given back, or until its end.
    async fn http(&self, stream: Stream, certified: Certified) -> Option<Running> {
        let known = certified.as_ref().ok().and_then(Option::as_ref);
        let is_named = known.is_some();
        let live = self.shared.access.connected(
            known.cloned().unwrap_or_else(Identity::anonymous),
            self.shared.cut.child_token(),
        );
        let visit = self
            .front
            .visit(self.address, certified, &live, &self.place);
        let visited = visit.clone();
        let service = service_fn(move |request| {
            let visit = visited.clone();
            Box::pin(async move { Ok::<_, std::convert::Infallible>(visit.answer(request).await) })
        });
        let timeouts = &self.shared.config.timeouts;
        let stream = Targets::new(stream, self.front.takes_raw_targets);
        let stream = Patient::new(stream, timeouts.slow_peer);
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // The connection's deadline bounds the time for the first head.
            .header_read_timeout(timeouts.http_idle.max(timeouts.handshake))
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut drain = pin!(self.shared.drain.cancelled());
        let mut draining = false;
        let mut cut = pin!(live.cut().clone().cancelled_owned());
        let mut ending: Option<Pin<Box<Sleep>>> = None;
        let serving = poll_fn(|cx| {
            if ending.is_none() && cut.as_mut().poll(cx).is_ready() {
                if !self.place.is_settled() {
                    return Poll::Ready(None);
                }
                // Who has just ended its own credential learns that it is done.
                Pin::new(&mut connection).graceful_shutdown();
                ending = Some(Box::pin(sleep(ANSWER_PATIENCE)));
            }
            if let Some(ending) = &mut ending
                && ending.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(None);
            }
            if !draining && drain.as_mut().poll(cx).is_ready() {
                if !self.place.is_settled() {
                    return Poll::Ready(None);
                }
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            // (For an upgrade it leaves the stream as it is; else it flushes and shuts it down.)
            Pin::new(&mut connection).poll(cx).map(Some)
        });
        let served = tokio::select! {
            served = serving => served?,
            () = self.no_request_in_time() => {
                self.shared.metrics.refused(RefusedLabel::Timeout);
                tracing::info!("closed a connection: no upgrade in time");
                return None;
            }
        };
        if let Err(error) = served {
            self.ended(&error);
            return None;
        }
        let parts = connection.into_parts();
        let (mut stream, not_taken) = parts.io.into_inner().into_inner().into_parts();
        let Some(admitted) = visit.admitted() else {
            // Closed with a request unread, it would be reset, and the answer might be lost on its way.
            let ending = async {
                stream.shutdown().await?;
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
            };
            let _ = tokio::time::timeout(END_PATIENCE, ending).await;
            return None;
        };
        let Admitted {
            opening,
            identity,
            slot,
            open,
        } = admitted;
        live.set_identity(identity.clone());
        // A name that is recorded twice is shown twice.
        if !is_named {
            tracing::Span::current().record("principal", identity.principal().as_str());
        }
        // Who asked for something else before has as long from now on.
        let deadline = match self.place.is_settled() {
            true => Instant::now() + timeouts.handshake,
            false => self.deadline,
        };
        self.place.settle();
        let peer = Peer {
            identity,
            deadline,
            slot,
            open,
            drain: self.shared.drain.child_token(),
            live,
        };
        let early = match not_taken.is_empty() {
            true => parts.read_buf,
            false => [parts.read_buf, not_taken].concat().into(),
        };
        Some(opening(self.shared.clone(), peer, stream, early))
    }

    /// Completes when the deadline passes before a request after which the connection may stay.
    async fn no_request_in_time(&self) {
        tokio::time::sleep_until(self.deadline.into()).await;
        if self.place.is_settled() {
            std::future::pending::<()>().await;
        }
    }

    /// Why HTTP ended without an answer to a request.
    fn ended(&self, error: &hyper::Error) {
        if error.is_timeout() && self.place.is_settled() {
            tracing::debug!("closed a connection: no further HTTP request in time");
            return;
        }
        if error.is_timeout() {
            self.shared.metrics.refused(RefusedLabel::Timeout);
            tracing::info!("closed a connection: no HTTP request in time");
            return;
        }
        let cause = std::error::Error::source(error);
        let cause = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
        if cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut) {
            self.shared.metrics.refused(RefusedLabel::Timeout);
            tracing::info!("closed a connection: its peer did not take the answer in time");
            return;
        }
        self.shared.metrics.refused(RefusedLabel::Http);
        if error.is_parse_too_large() {
            tracing::info!(
                limit = HEAD_BYTES_MAX,
                "refused a request: its head is too large"
            );
        } else if error.is_parse() {
            tracing::info!(%error, "refused a request that is no HTTP/1.1");
        } else {
            tracing::info!(%error, "closed a connection in the middle of a request");
        }
    }
}
