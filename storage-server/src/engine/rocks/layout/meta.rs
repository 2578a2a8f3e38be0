//! The table `meta`, but for sessions and the clock: keyspaces, horizons, epochs.

use bytes::{Buf, BufMut};
use storage_protocol::{Epoch, Keyspace, Revision};

use super::{Damaged, KeyspaceId};

/// What the store knows of a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyspaceRow {
    pub(crate) id: KeyspaceId,
    /// Fixed when it is made: whether the mwDB dialect serves it, so that no `#` may stand in it.
    pub(crate) mwdb: bool,
    /// Before this revision it had nothing.
    pub(crate) made: Revision,
}

pub(crate) const KEYSPACE_PREFIX: &[u8] = b"mkeyspace/";

pub(crate) fn keyspace_key(name: &Keyspace) -> Vec<u8> {
    [KEYSPACE_PREFIX, name.as_str().as_bytes()].concat()
}

impl KeyspaceRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(13);
        out.put_u32(self.id.0);
        out.put_u8(u8::from(self.mwdb));
        out.put_u64(self.made.0);
        out
    }

    pub(crate) fn decode(mut row: &[u8]) -> Result<Self, Damaged> {
        let short = || Damaged {
            table: "meta",
            what: "a short keyspace",
        };
        Ok(Self {
            id: KeyspaceId(row.try_get_u32().map_err(|_| short())?),
            mwdb: row.try_get_u8().map_err(|_| short())? == 1,
            made: Revision(row.try_get_u64().map_err(|_| short())?),
        })
    }
}

/// The tombstones of a keyspace up to this revision may be gone.
pub(crate) fn compacted_key(keyspace: KeyspaceId) -> Vec<u8> {
    [b"mhorizon/".as_slice(), &keyspace.0.to_be_bytes()].concat()
}

pub(crate) const EPOCHS_KEY: &[u8] = b"mepochs";

/// The store's histories, oldest first, each with the revision where it forked from the one before.
pub(crate) fn encode_epochs(epochs: &[(Epoch, Revision)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 * epochs.len());
    for (epoch, fork) in epochs {
        out.put_u64(epoch.0);
        out.put_u64(fork.0);
    }
    out
}

pub(crate) fn decode_epochs(row: &[u8]) -> Result<Vec<(Epoch, Revision)>, Damaged> {
    let (pairs, []) = row.as_chunks::<16>() else {
        return Err(Damaged {
            table: "meta",
            what: "epochs of an odd length",
        });
    };
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    Ok(pairs
        .iter()
        .map(|pair| (Epoch(number(&pair[..8])), Revision(number(&pair[8..]))))
        .collect())
}
