//! The native dialect as a gateway: at `/storage/<keyspace>`.

use hyper::StatusCode;
use storage_protocol::Keyspace;
use storage_protocol::native::SUBPROTOCOL;

use super::Native;
use crate::gateway::{Gateway, ServerHandle};
use crate::http::Refusal;
use crate::http::protocol::{Opening, WebSocketProtocol};
use crate::metrics::RefusedLabel;
use crate::shared::{KeyspacePlace, Shared};
use crate::ws::driver;

/// The native dialect, at `/storage/<keyspace>`.
#[derive(Debug)]
pub(crate) struct NativeGateway;

impl Gateway for NativeGateway {
    fn name(&self) -> &'static str {
        "storage"
    }

    fn protocols(&self, server: &ServerHandle) -> Vec<WebSocketProtocol> {
        let shared = server.shared().clone();
        let open = WebSocketProtocol::opened_by("native", "/storage/{*keyspace}", move |request| {
            let keyspace = keyspace_of(request.parameter("keyspace"))?;
            let place = place_in(&shared, &keyspace)?;
            let opening: Opening = Box::new(move |shared, peer, stream, early| {
                tracing::Span::current().record("keyspace", keyspace.as_str());
                let dialect = Native::new(&shared, &peer, keyspace);
                Box::pin(async move {
                    let _place = place;
                    driver::run(shared, peer, stream, early, dialect).await;
                })
            });
            Ok(opening)
        });
        // A path without a name is refused by the check of names.
        vec![open.also_at("/storage/").with_subprotocol(SUBPROTOCOL)]
    }
}

/// The keyspace of a request, or why there is none of this name.
pub(crate) fn keyspace_of(name: &str) -> std::result::Result<Keyspace, Refusal> {
    Keyspace::new(name).map_err(|error| {
        let (status, label) = (StatusCode::BAD_REQUEST, RefusedLabel::Keyspace);
        Refusal::new(status, label, error.to_string())
    })
}

/// A place for a session in a keyspace, or why there is none.
pub(crate) fn place_in(
    shared: &Shared,
    keyspace: &Keyspace,
) -> std::result::Result<KeyspacePlace, Refusal> {
    let place = shared.enter(keyspace);
    place.map_err(|error| Refusal::no_session(&error))
}
