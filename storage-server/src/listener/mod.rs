//! Accepts TCP connections, within the bounds of [`crate::net::admission`]. Each connection is one task of the server's
//! tracker; a panic in it ends that connection only.

mod connection;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::config::ListenerConfig;
use crate::http::Front;
use crate::metrics::RefusedLabel;
use crate::net::admission::Handshakes;
use crate::net::descriptors::REFUSALS_MAX;
use crate::net::tls::LiveTls;
use crate::shared::Shared;

use self::connection::Connection;

/// Between two attempts to accept when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to a peer without TLS for which there is no connection; one with TLS is closed without an answer.
const NO_CONNECTION: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 40\r\nConnection: close\r\n\r\nall connections of the server are taken\n";

/// A socket that is bound, with what it serves.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    tls: Option<Arc<LiveTls>>,
    pub(crate) address: SocketAddr,
}

impl Listener {
    pub(crate) async fn bind(
        config: &ListenerConfig,
        tls: Option<Arc<LiveTls>>,
    ) -> io::Result<Self> {
        let socket = TcpListener::bind(config.address).await?;
        let address = socket.local_addr()?;
        Ok(Self {
            socket,
            tls,
            address,
        })
    }

    /// Accepts until the server stops; what is served is `front`.
    pub(crate) async fn run(
        self,
        shared: Arc<Shared>,
        front: Arc<Front>,
        handshakes: Arc<Handshakes>,
    ) {
        let tls = self.tls;
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        loop {
            // Cancel-safe: a connection is either accepted or stays in the backlog.
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
            shared.metrics.accepted.inc();
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
            let connection = Connection::new(&shared, &front, peer, place);
            let span = connection.span();
            shared
                .tasks
                .spawn(connection.run(stream, tls.clone()).instrument(span));
        }
    }
}

/// Serves a peer at the other end of a stream in memory until its connection ends: all that a connection is behind TCP and
/// TLS. For fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) async fn serve_in_memory(
    shared: &Arc<Shared>,
    front: &Arc<Front>,
    certified: connection::Certified,
    stream: tokio::io::DuplexStream,
) {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let handshakes = Handshakes::new(1, &shared.connections, 0);
    let place = handshakes.enter(address.ip()).await;
    let place = place.expect("there is no other connection");
    let connection = Connection::new(shared, front, address, place);
    let span = connection.span();
    let serving = connection.run_in_memory(stream, certified);
    serving.instrument(span).await;
}

/// Answers that there is no connection for the peer, and waits a little until the peer has closed: if the server closed
/// with a request unread, the connection would be reset and the answer lost.
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
        let builder = Server::builder(config).engine(MemoryEngine::new());
        let server = builder.start().await.unwrap();
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
