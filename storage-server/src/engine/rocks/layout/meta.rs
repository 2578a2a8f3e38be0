//! The table `meta`, but for sessions and the clock: keyspaces, what they hold, horizons, epochs.

use std::num::NonZeroU32;

use bytes::{Buf, BufMut};
use storage_protocol::{Epoch, Keyspace, Revision};

use super::{Damaged, KeyspaceId};
use crate::engine::Usage;
use crate::engine::rocks::KeyspaceRules;

/// What the store knows of a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyspaceRow {
    pub(crate) id: KeyspaceId,
    /// Fixed when it is made.
    pub(crate) rules: KeyspaceRules,
    /// Before this revision it had nothing.
    pub(crate) made: Revision,
}

pub(crate) const KEYSPACE_PREFIX: &[u8] = b"mkeyspace/";

pub(crate) fn keyspace_key(name: &Keyspace) -> Vec<u8> {
    [KEYSPACE_PREFIX, name.as_str().as_bytes()].concat()
}

impl KeyspaceRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let KeyspaceRules {
            forbidden_byte,
            items_max,
        } = self.rules;
        let mut out = Vec::with_capacity(19);
        out.put_u32(self.id.0);
        out.put_u8(u8::from(self.rules != KeyspaceRules::default()));
        out.put_u64(self.made.0);
        if self.rules != KeyspaceRules::default() {
            out.put_u8(u8::from(forbidden_byte.is_some()));
            out.put_u8(forbidden_byte.unwrap_or(0));
            out.put_u32(items_max.map_or(0, NonZeroU32::get));
        }
        out
    }

    pub(crate) fn decode(mut row: &[u8]) -> Result<Self, Damaged> {
        let short = || Damaged {
            table: "meta",
            what: "a short keyspace",
        };
        let id = KeyspaceId(row.try_get_u32().map_err(|_| short())?);
        let has_rules = row.try_get_u8().map_err(|_| short())? == 1;
        let made = Revision(row.try_get_u64().map_err(|_| short())?);
        let rules = match (has_rules, row.is_empty()) {
            (false, _) => KeyspaceRules::default(),
            (true, true) => FIRST_RULES,
            (true, false) => {
                let forbids = row.try_get_u8().map_err(|_| short())? == 1;
                let byte = row.try_get_u8().map_err(|_| short())?;
                let items_max = row.try_get_u32().map_err(|_| short())?;
                KeyspaceRules {
                    forbidden_byte: forbids.then_some(byte),
                    items_max: NonZeroU32::new(items_max),
                }
            }
        };
        Ok(Self { id, rules, made })
    }
}

/// Before rows told which rules, there was one set of them: that of keyspaces for mwDB clients.
const FIRST_RULES: KeyspaceRules = KeyspaceRules {
    forbidden_byte: Some(b'#'),
    items_max: NonZeroU32::new(1_000_000),
};

/// The tombstones of a keyspace up to this revision may be gone.
pub(crate) fn compacted_key(keyspace: KeyspaceId) -> Vec<u8> {
    [b"mhorizon/".as_slice(), &keyspace.0.to_be_bytes()].concat()
}

/// What a keyspace holds, as of a revision. Versions before there were such rows leave it as it is, so it is true only if
/// nothing in the keyspace is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UsageRow {
    pub(crate) usage: Usage,
    /// The last commit that it counts.
    pub(crate) at: Revision,
}

pub(crate) fn usage_key(keyspace: KeyspaceId) -> Vec<u8> {
    [b"musage/".as_slice(), &keyspace.0.to_be_bytes()].concat()
}

impl UsageRow {
    /// All of them are of this length.
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(&self.usage.entries.to_be_bytes());
        out[8..16].copy_from_slice(&self.usage.bytes.to_be_bytes());
        out[16..].copy_from_slice(&self.at.0.to_be_bytes());
        out
    }

    pub(crate) fn decode(row: &[u8]) -> Result<Self, Damaged> {
        let ([entries, bytes, at], []) = row.as_chunks::<8>() else {
            return Err(Damaged {
                table: "meta",
                what: "a usage of another length",
            });
        };
        Ok(Self {
            usage: Usage {
                entries: u64::from_be_bytes(*entries),
                bytes: u64::from_be_bytes(*bytes),
            },
            at: Revision(u64::from_be_bytes(*at)),
        })
    }
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
