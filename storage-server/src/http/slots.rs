//! Bounds the connections of a listener that speak plain HTTP; one peer may have at most half of them.
//!
//! A peer is its principal, or its address (or IPv6 network of 64 bits) where that is `anonymous`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::auth::Principal;
use crate::limits::address::peer_name;

/// The slots of one listener.
#[derive(Debug)]
pub(super) struct HttpSlots {
    max: usize,
    /// Connections of each peer that has any. Locked for short sections only.
    peers: Mutex<HashMap<String, usize>>,
}

/// A slot, until it is dropped.
#[derive(Debug)]
pub(super) struct HttpSlot {
    slots: Arc<HttpSlots>,
    peer: String,
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit http_connections_max is reached ({0})")]
pub(super) struct Full(usize);

impl HttpSlots {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            peers: Mutex::default(),
        })
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(
        self: &Arc<Self>,
        principal: &Principal,
        address: IpAddr,
    ) -> Result<HttpSlot, Full> {
        let peer = peer_name(principal, address);
        let mut peers = self.peers();
        let all: usize = peers.values().sum();
        let own = peers.get(&peer).copied().unwrap_or(0);
        let own_max = self.max.div_ceil(2);
        if all >= self.max {
            return Err(Full(self.max));
        }
        if own >= own_max {
            return Err(Full(own_max));
        }
        *peers.entry(peer.clone()).or_default() += 1;
        drop(peers);
        Ok(HttpSlot {
            slots: self.clone(),
            peer,
        })
    }
}

impl Drop for HttpSlot {
    fn drop(&mut self) {
        let mut peers = self.slots.peers();
        if let Some(own) = peers.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_half_and_all_together_no_more_than_all() {
        let slots = HttpSlots::new(4);
        let address = |last| IpAddr::from([127, 0, 0, last]);
        let anonymous = |last| slots.take(&Principal::anonymous(), address(last));
        let first = (anonymous(1).unwrap(), anonymous(1).unwrap());
        assert_eq!(anonymous(1).unwrap_err(), Full(2));
        // By name, whatever the address.
        let user = Principal::user("ann").unwrap();
        let named = (
            slots.take(&user, address(1)).unwrap(),
            slots.take(&user, address(2)).unwrap(),
        );
        assert_eq!(anonymous(3).unwrap_err(), Full(4));
        drop(first);
        assert_eq!(slots.take(&user, address(3)).unwrap_err(), Full(2));
        let _other = anonymous(3).unwrap();
        drop(named);
        assert_eq!(slots.peers().len(), 1);
    }
}
