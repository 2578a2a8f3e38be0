//! Objects: what any value and any key are taken for, and that it is what they would be written as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage_protocol::objects::{MAGIC, Manifest, PartKey, is_part};

fuzz_target!(|input: &[u8]| {
    for value in [input.to_vec(), [MAGIC, input].concat()] {
        let Ok(Some(manifest)) = Manifest::decode(&value) else {
            continue;
        };
        assert_eq!(manifest.encode(), value);
        let parts = manifest.parts();
        assert!(parts > 0 && manifest.part_len(parts - 1) > 0);
        let before_last = u64::from(parts - 1) * manifest.part_bytes;
        assert_eq!(before_last + manifest.part_len(parts - 1), manifest.size);
    }
    let parsed = PartKey::parse(input);
    assert_eq!(parsed.is_some(), is_part(input));
    if let Some(PartKey { object, id, number }) = parsed {
        let key = match number {
            Some(number) => PartKey::part(&object, id, number),
            None => PartKey::intent(&object, id),
        };
        assert_eq!(key, input);
    }
});
