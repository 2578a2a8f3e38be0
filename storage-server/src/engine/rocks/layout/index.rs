//! The table `index`: keyspace u32, revision u64 and user key, to nothing. One row per live entry or tombstone. A row whose
//! revision is not its entry's was replaced and is yet to be deleted: readers pass over it.

use storage_protocol::Revision;

use super::{Damaged, KeyspaceId, Table};

pub(crate) fn index_key(keyspace: KeyspaceId, revision: Revision, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(13 + key.len());
    write_index_key(&mut out, keyspace, revision, key);
    out
}

/// The same behind what a buffer has.
pub(crate) fn write_index_key(
    out: &mut Vec<u8>,
    keyspace: KeyspaceId,
    revision: Revision,
    key: &[u8],
) {
    out.push(Table::Index.tag());
    out.extend_from_slice(&keyspace.0.to_be_bytes());
    out.extend_from_slice(&revision.0.to_be_bytes());
    out.extend_from_slice(key);
}

/// Revision and user key of an `index` key.
pub(crate) fn parse_index_key(key: &[u8]) -> Result<(Revision, &[u8]), Damaged> {
    let damaged = Damaged {
        table: "index",
        what: "a short key",
    };
    let rest = key.get(5..).ok_or(damaged)?;
    match rest.split_first_chunk::<8>() {
        Some((revision, key)) => Ok((Revision(u64::from_be_bytes(*revision)), key)),
        None => Err(Damaged {
            table: "index",
            what: "a short key",
        }),
    }
}
