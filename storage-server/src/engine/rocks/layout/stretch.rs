//! The rows about the clock, in the table `meta`: see the engine's `clock`.

use bytes::{Buf, BufMut};
use storage_protocol::{Revision, UnixMillis};

use super::{Damaged, decode_revision, encode_revision};
use crate::engine::rocks::clock::{Jump, Stretch};

/// What the rows of the clock's jumps begin with.
pub(crate) const STRETCH_PREFIX: &[u8] = b"mclock/";

/// They sort by the revision that the jump came behind.
pub(crate) fn stretch_key(above: Revision) -> Vec<u8> {
    [STRETCH_PREFIX, &encode_revision(above)].concat()
}

pub(crate) fn encode_stretch(stretch: &Stretch) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    out.put_u64(stretch.jump.before.0);
    out.put_u64(stretch.jump.after.0);
    out
}

pub(crate) fn decode_stretch(key: &[u8], mut row: &[u8]) -> Result<Stretch, Damaged> {
    let damaged = || Damaged {
        table: "meta",
        what: "a jump of the clock of another length",
    };
    let above = key.strip_prefix(STRETCH_PREFIX).ok_or_else(damaged)?;
    let above = decode_revision(above)?;
    let before = UnixMillis(row.try_get_u64().map_err(|_| damaged())?);
    let after = UnixMillis(row.try_get_u64().map_err(|_| damaged())?);
    if row.has_remaining() {
        return Err(damaged());
    }
    let jump = Jump { before, after };
    Ok(Stretch { above, jump })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_round_trip() {
        let stretch = Stretch {
            above: Revision(7),
            jump: Jump {
                before: UnixMillis(9),
                after: UnixMillis(5),
            },
        };
        let (key, row) = (stretch_key(stretch.above), encode_stretch(&stretch));
        assert_eq!(decode_stretch(&key, &row).unwrap(), stretch);
        assert!(decode_stretch(&key, &row[1..]).is_err());
        assert!(decode_stretch(&key[1..], &row).is_err());
    }
}
