//! From a TCP connection to a session: accept, TLS, HTTP, and the bounds before a peer is known.
//!
//! Everything up to the session's first message has one deadline. Connections that are not that far are bounded in
//! number; at the bound the listener waits, and the system's backlog holds the others back. Each connection is one
//! task of the server's tracker; a panic in it ends that connection only.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::config::{Gateways, ListenerConfig};
use crate::gateway::mwdb::Mwdb;
use crate::gateway::native::Native;
use crate::http::{Admitted, Kind, Router};
use crate::metrics::RefusedLabel;
use crate::session::identity::Principal;
use crate::session::{Peer, driver};
use crate::shared::Shared;
use crate::tls::{AcceptError, Tls};

/// Between two attempts to accept when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What the system takes of a connection before it has sent what it took before: half of that is 0.5 ms at 1 Gbit/s.
const UNSENT_BYTES: u32 = 128 * 1024;
/// The longest HTTP request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A socket that is bound, with what it serves.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) tls: Option<Tls>,
    pub(crate) gateways: Gateways,
    pub(crate) address: SocketAddr,
}

impl Listener {
    pub(crate) async fn bind(config: &ListenerConfig, tls: Option<Tls>) -> io::Result<Self> {
        let socket = TcpListener::bind(config.address).await?;
        let address = socket.local_addr()?;
        Ok(Self {
            socket,
            tls,
            gateways: config.gateways,
            address,
        })
    }

    /// Accepts until the server stops.
    pub(crate) async fn run(self, shared: Arc<Shared>, handshakes: Arc<Semaphore>) {
        let Self {
            socket,
            tls,
            gateways,
            address,
        } = self;
        let tls = Arc::new(tls);
        loop {
            // Cancel-safe: a permit or a connection is either had or not.
            let permit = tokio::select! {
                () = shared.stop.cancelled() => break,
                permit = handshakes.clone().acquire_owned() => permit,
            };
            let Ok(permit) = permit else { break };
            let accepted = tokio::select! {
                () = shared.stop.cancelled() => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    shared.metrics.accepted.increment();
                    let connection = Connection::new(shared.clone(), gateways, permit);
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
                Err(error) if is_about_one_connection(&error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    tracing::error!(%error, %address, "cannot accept connections; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
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
    gateways: Gateways,
    number: u64,
    deadline: Instant,
    handshake: OwnedSemaphorePermit,
}

impl Connection {
    fn new(shared: Arc<Shared>, gateways: Gateways, handshake: OwnedSemaphorePermit) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let deadline = Instant::now() + shared.config.timeouts.handshake;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            shared,
            gateways,
            number,
            deadline,
            handshake,
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
        let Some(tls) = &*tls else {
            tracing::Span::current().record("principal", "anonymous");
            return Box::pin(self.serve(stream, Principal::anonymous())).await;
        };
        let stop = self.shared.stop.clone();
        let accepted = tokio::select! {
            accepted = tokio::time::timeout_at(self.deadline.into(), tls.accept(stream)) => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok(Ok((stream, principal, resumed))) => {
                tracing::Span::current().record("principal", principal.as_str());
                if resumed {
                    self.shared.metrics.resumed.increment();
                }
                Box::pin(self.serve(stream, principal)).await;
            }
            Ok(Err(error)) => {
                self.shared.metrics.refused(match error {
                    AcceptError::Identity(_) => RefusedLabel::Principal,
                    AcceptError::Handshake(_) | AcceptError::Resumed(_) => RefusedLabel::Tls,
                });
                tracing::info!(%error, "refused a connection");
            }
            Err(_) => {
                self.shared.metrics.refused(RefusedLabel::Timeout);
                tracing::info!("closed a connection: no TLS handshake in time");
            }
        }
    }

    /// HTTP until an upgrade; then the session.
    async fn serve<S>(self, stream: S, principal: Principal)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some((stream, early, admitted)) = self.http(stream, &principal).await else {
            return;
        };
        let Self {
            shared,
            deadline,
            handshake,
            ..
        } = self;
        drop(handshake);
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
        match kind {
            Kind::Native => {
                let dialect = Native::new(&shared, &peer);
                driver::run(&shared, peer, stream, early, dialect).await;
            }
            Kind::Mwdb => {
                let dialect = Mwdb::new(&shared, &peer);
                driver::run(&shared, peer, stream, early, dialect).await;
            }
        }
    }

    /// The stream, what was read behind the upgrade request, and who was let in; `None` if nobody was.
    async fn http<S>(&self, stream: S, principal: &Principal) -> Option<(S, Bytes, Admitted)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = Arc::new(Router {
            shared: self.shared.clone(),
            gateways: self.gateways,
            principal: principal.clone(),
            admitted: std::sync::Mutex::new(None),
        });
        let service = {
            let router = router.clone();
            service_fn(move |request| {
                std::future::ready(Ok::<_, std::convert::Infallible>(router.answer(&request)))
            })
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.shared.config.timeouts.handshake)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        // A collector's connection to the admin gateway may stay; its idle time is bounded by the header's time-out.
        let patience = async {
            match self.gateways.admin {
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
            () = self.shared.stop.cancelled() => return None,
        };
        let parts = match done {
            Ok(parts) => parts,
            Err(error) => {
                self.shared.metrics.refused(RefusedLabel::Http);
                tracing::info!(%error, "closed a connection that spoke no HTTP");
                return None;
            }
        };
        let mut stream = parts.io.into_inner();
        let admitted = router
            .admitted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(admitted) = admitted else {
            // An orderly end of TLS and TCP; whether the peer takes note is its own matter.
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await;
            return None;
        };
        Some((stream, parts.read_buf, admitted))
    }
}
