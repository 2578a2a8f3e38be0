//! The Base64 numbers: lenient readers never panic, and an id has exactly one text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage_protocol::number::{
    ID_DIGITS_MAX, ID_MAX, INT_DIGITS_MAX, LONG_DIGITS_MAX, decode_id, decode_int, decode_long,
    encode_id, encode_int, encode_long,
};

fuzz_target!(|input: &[u8]| {
    let mut text = Vec::new();
    if let Ok(id) = decode_id(input) {
        assert!(id <= ID_MAX && input.len() <= ID_DIGITS_MAX);
        encode_id(id, &mut text).expect("an id that was read");
        assert_eq!(text, input);
        // The strict reader agrees with the lenient one.
        assert_eq!(decode_int(input).map(i64::from), Ok(i64::from(id)));
    }
    if let Ok(value) = decode_int(input) {
        text.clear();
        encode_int(value, &mut text);
        assert!(text.len() <= INT_DIGITS_MAX);
        assert_eq!(decode_int(&text), Ok(value));
    }
    if let Ok(value) = decode_long(input) {
        text.clear();
        encode_long(value, &mut text);
        assert!(text.len() <= LONG_DIGITS_MAX);
        assert_eq!(decode_long(&text), Ok(value));
    }
});
