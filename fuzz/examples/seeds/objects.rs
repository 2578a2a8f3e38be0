//! Seeds of the target `objects`: a manifest, with its magic and without, an intent and a part.

use storage_protocol::objects::{MAGIC, Manifest, ObjectId, PartKey};

use crate::Seeds;

pub(crate) fn write(seeds: &Seeds) {
    let objects = |name: &str, bytes: &[u8]| seeds.write("objects", name, bytes);
    let id = ObjectId([0xab; 16]);
    let manifest = Manifest {
        id,
        size: (70 << 20) + 3,
        part_bytes: 1 << 20,
    };
    let manifest = manifest.encode();
    objects("manifest", &manifest);
    objects("digits", manifest.strip_prefix(MAGIC).unwrap_or_default());
    objects("intent", &PartKey::intent(b"k", id));
    objects("part", &PartKey::part(b"k", id, 31));
}
