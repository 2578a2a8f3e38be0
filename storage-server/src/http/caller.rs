//! Who sent a request, for the handlers of routes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use hyper::StatusCode;
use hyper::http::request::Parts;
use storage_protocol::{Keyspace, Storage};

use crate::auth::Identity;
use crate::limits::address::peer_name;
use crate::shared::ServerHandle;

/// Who sent a request: an extractor for handlers of routes.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who it is.
    pub identity: Identity,
    /// The other end of the TCP connection.
    pub address: SocketAddr,
    pub(crate) server: ServerHandle,
}

impl Caller {
    /// The server that was asked.
    #[must_use]
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// A keyspace, as the caller sees it: see [`ServerHandle::storage_as`].
    #[must_use]
    pub fn storage(&self, keyspace: &Keyspace) -> Arc<dyn Storage> {
        self.server.storage_as(&self.identity, keyspace)
    }

    /// What bounds count as one peer.
    pub(crate) fn peer_name(&self) -> String {
        peer_name(self.identity.principal(), self.address.ip())
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}
