//! From a TCP connection to a session: accept, TLS, HTTP, and the bounds before a peer is known.
//!
//! Everything up to the session's first message has one deadline. Connections that are not that far are bounded in
//! number, for each listener by itself (see [`admission`](crate::net::admission)). Each connection is one task of the server's
//! tracker; a panic in it ends that connection only.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::auth::{IdentityError, Principal};
use crate::config::ListenerConfig;
use crate::gateway::mwdb::Mwdb;
use crate::gateway::native::Native;
use crate::http::{Admitted, Kind, Patient, Router};
use crate::metrics::RefusedLabel;
use crate::net::admission::{Handshakes, Heard, Place};
use crate::net::tls::{AcceptError, Tls};
use crate::shared::Shared;
use crate::ws::{Peer, driver};

/// Between two attempts to accept when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What the system takes of a connection before it has sent what it took before: half of that is 0.5 ms at 1 Gbit/s.
const UNSENT_BYTES: u32 = 128 * 1024;
/// The longest HTTP request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Peers that are just being told so, of one listener; others are closed without a word.
pub(crate) const REFUSALS_MAX: usize = 4;
/// To a peer without TLS for which there is no connection; one with TLS is just closed.
const NO_CONNECTION: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 40\r\nConnection: close\r\n\r\nall connections of the server are taken\n";

/// A socket that is bound, with what it serves.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) tls: Option<Tls>,
    pub(crate) config: Arc<ListenerConfig>,
    pub(crate) address: SocketAddr,
}

impl Listener {
    pub(crate) async fn bind(config: &ListenerConfig, tls: Option<Tls>) -> io::Result<Self> {
        let socket = TcpListener::bind(config.address).await?;
        let address = socket.local_addr()?;
        Ok(Self {
            socket,
            tls,
            config: Arc::new(config.clone()),
            address,
        })
    }

    /// Accepts until the server stops.
    pub(crate) async fn run(self, shared: Arc<Shared>, handshakes: Arc<Handshakes>) {
        let tls = Arc::new(self.tls);
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        loop {
            // Cancel-safe: a connection is either had or not.
            let accepted = tokio::select! {
                () = shared.stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_about_one_connection(&error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                    continue;
                }
                Err(error) => {
                    let address = self.address;
                    tracing::error!(%error, %address, "cannot accept connections; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            shared.metrics.accepted.increment();
            // While this one waits for a place, the system's backlog holds the others back.
            let entered = tokio::select! {
                () = shared.stop.cancelled() => break,
                entered = handshakes.enter(peer.ip()) => entered,
            };
            let Ok(place) = entered else {
                shared.metrics.refused(RefusedLabel::Connections);
                let max = shared.connections.max();
                tracing::warn!(%peer, connections_max = max, "refused a connection: there are as many as there can be");
                if tls.is_none()
                    && let Ok(place) = refusals.clone().try_acquire_owned()
                {
                    shared.tasks.spawn(refuse(stream, place));
                }
                continue;
            };
            let connection = Connection::new(shared.clone(), self.config.clone(), place);
            let span = tracing::info_span!(
                "connection",
                conn = connection.number,
                peer = %peer,
                principal = tracing::field::Empty,
                keyspace = tracing::field::Empty,
            );
            shared
                .tasks
                .spawn(connection.run(stream, tls.clone()).instrument(span));
        }
    }
}

/// Says that there is no connection for it, and waits a little until the peer has closed: closed by us, with a request
/// unread, it would lose what it was told.
async fn refuse(mut stream: TcpStream, _place: OwnedSemaphorePermit) {
    let talk = async {
        stream.write_all(NO_CONNECTION).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), talk).await;
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// One accepted connection on its way to a session.
struct Connection {
    shared: Arc<Shared>,
    config: Arc<ListenerConfig>,
    number: u64,
    deadline: Instant,
    place: Place,
}

/// A stream behind its upgrade, what was read of it already, and who was let in.
type Upgraded<S> = (S, Bytes, Admitted, Principal);

impl Connection {
    fn new(shared: Arc<Shared>, config: Arc<ListenerConfig>, place: Place) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let deadline = Instant::now() + shared.config.timeouts.handshake;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            shared,
            config,
            number,
            deadline,
            place,
        }
    }

    async fn run(self, stream: TcpStream, tls: Arc<Option<Tls>>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        // A small answer stands behind what the system holds unsent, so that is to be little.
        if let Err(error) = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES) {
            tracing::debug!(%error, "cannot set TCP_NOTSENT_LOWAT");
        }
        let stream = Heard::new(stream, self.place.seat());
        let Some(tls) = &*tls else {
            tracing::Span::current().record("principal", "anonymous");
            let http = Box::pin(self.http(stream, Ok(Principal::anonymous())));
            if let Some(upgraded) = self.while_welcome(http).await {
                self.session(upgraded).await;
            }
            return;
        };
        let secured = Box::pin(async {
            let (stream, principal) = self.handshake(stream, tls).await?;
            self.http(stream, principal).await
        });
        if let Some(upgraded) = self.while_welcome(secured).await {
            self.session(upgraded).await;
        }
    }

    /// Runs `work` as long as the place is not needed for somebody else, and the server does not stop.
    async fn while_welcome<T>(&self, work: impl Future<Output = Option<T>>) -> Option<T> {
        let done = tokio::select! {
            done = self.place.unless_asked_to_leave(work) => done,
            () = self.shared.stop.cancelled() => return None,
        };
        if done.is_none() {
            self.shared.metrics.refused(RefusedLabel::Handshakes);
            tracing::info!(
                "closed a connection: it was silent, or one of too many of its address, and its place was needed"
            );
        }
        done.flatten()
    }

    async fn handshake<S>(
        &self,
        stream: S,
        tls: &Tls,
    ) -> Option<(
        tokio_rustls::server::TlsStream<S>,
        Result<Principal, IdentityError>,
    )>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = tokio::time::timeout_at(self.deadline.into(), tls.accept(stream)).await;
        match accepted {
            Ok(Ok(accepted)) => {
                if let Ok(principal) = &accepted.principal {
                    tracing::Span::current().record("principal", principal.as_str());
                }
                if accepted.resumed {
                    self.shared.metrics.resumed.increment();
                }
                Some((accepted.stream, accepted.principal))
            }
            Ok(Err(AcceptError::Handshake(error))) if !self.place.seat().was_heard() => {
                // As the health checks of load balancers do.
                self.shared.metrics.refused(RefusedLabel::Unused);
                tracing::debug!(%error, "a connection was closed by its peer, who said nothing");
                None
            }
            Ok(Err(error)) => {
                self.shared.metrics.refused(RefusedLabel::Tls);
                tracing::info!(%error, "refused a connection");
                None
            }
            Err(_) => {
                self.shared.metrics.refused(RefusedLabel::Timeout);
                tracing::info!("closed a connection: no TLS handshake in time");
                None
            }
        }
    }

    fn session<S>(
        self,
        (stream, early, admitted, principal): Upgraded<S>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self {
            shared,
            deadline,
            place,
            ..
        } = self;
        let Some(connected) = place.settle() else {
            return Box::pin(std::future::ready(()));
        };
        let Admitted {
            kind,
            keyspace,
            slot,
        } = admitted;
        tracing::Span::current().record("keyspace", keyspace.as_str());
        let peer = Peer {
            principal,
            keyspace,
            deadline,
            slot,
            drain: shared.drain.child_token(),
            cut: shared.cut.child_token(),
        };
        // Boxed here: a future has a second place for another one that it was given and waits for.
        let session: Pin<Box<dyn Future<Output = ()> + Send>> = match kind {
            Kind::Native => {
                let dialect = Native::new(&shared, &peer);
                Box::pin(driver::run(shared, peer, stream, early, dialect))
            }
            Kind::Mwdb => {
                let dialect = Mwdb::new(&shared, &peer);
                Box::pin(driver::run(shared, peer, stream, early, dialect))
            }
        };
        Box::pin(async move {
            session.await;
            drop(connected);
        })
    }

    /// HTTP until an upgrade; `None` if nobody was let in.
    async fn http<S>(
        &self,
        stream: S,
        principal: Result<Principal, IdentityError>,
    ) -> Option<Upgraded<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = Arc::new(Router {
            shared: self.shared.clone(),
            listener: self.config.clone(),
            principal: principal.clone(),
            admitted: std::sync::Mutex::new(None),
        });
        let service = {
            let router = router.clone();
            service_fn(move |request| {
                std::future::ready(Ok::<_, std::convert::Infallible>(router.answer(&request)))
            })
        };
        let timeouts = &self.shared.config.timeouts;
        let stream = Patient::new(stream, timeouts.slow_peer);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(timeouts.handshake)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        // A collector's connection to the admin gateway may stay: while nothing is asked the header's time-out runs, and
        // while an answer is not taken the stream's.
        let patience = async {
            match self.config.gateways.admin {
                true => std::future::pending().await,
                false => tokio::time::sleep_until(self.deadline.into()).await,
            }
        };
        let done = tokio::select! {
            done = connection.without_shutdown() => done,
            () = patience => {
                self.shared.metrics.refused(RefusedLabel::Timeout);
                tracing::info!("closed a connection: no upgrade in time");
                return None;
            }
        };
        let parts = match done {
            Ok(parts) => parts,
            Err(error) => {
                self.ended(&error);
                return None;
            }
        };
        let mut stream = parts.io.into_inner().into_inner();
        let admitted = router
            .admitted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (Some(admitted), Ok(principal)) = (admitted, principal) else {
            // An orderly end of TLS and TCP; whether the peer takes note is its own matter.
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await;
            return None;
        };
        Some((stream, parts.read_buf, admitted, principal))
    }

    /// Why HTTP ended without an answer to a request.
    fn ended(&self, error: &hyper::Error) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Server;
    use crate::config::ServerConfig;
    use crate::testing::MemoryEngine;

    /// For what is to happen at all; nothing is measured.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_asks_for_metrics_and_takes_no_answer_is_closed() {
        let admin = ListenerConfig::admin(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut config = ServerConfig::embedded("unused", None, vec![admin]);
        config.timeouts.slow_peer = Duration::from_millis(500);
        let server = Server::start_with(config, MemoryEngine::new()).await;
        let server = server.unwrap();
        let address = server.addresses()[0].address;
        let mut peer = TcpStream::connect(address).await.unwrap();
        // The answers fill what the system holds for the peer, then the requests what it holds for the server.
        let asking = async {
            let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
            while peer.write_all(request).await.is_ok() {}
        };
        let closed = tokio::time::timeout(PATIENCE, asking).await;
        closed.expect("it is closed although it reads nothing");
        server.shutdown().await;
    }
}
