//! The mwDB gateway's reader: any message is a request or ignored; a request written anew reads the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use storage_protocol::mwdb::{
    Malformed, Request, RequestKind, get_request, prefix_request, put_request, remove_request,
};

const KEYS_MAX: usize = 50;

fuzz_target!(|input: &[u8]| {
    let message = Bytes::copy_from_slice(input);
    let request = match Request::parse_within(message.clone(), KEYS_MAX) {
        Ok(request) => request,
        Err(Malformed::TooManyKeys { keys, keys_max }) => {
            assert!(keys > keys_max && keys <= input.len());
            return;
        }
        Err(_) => return,
    };
    assert!(!request.id.contains(&b'#'));
    assert!(message.ends_with(&request.id) || message.ends_with(b"#"));
    let id = &request.id;
    let again = match &request.kind {
        RequestKind::Get { keys } => {
            assert!(keys.len() <= KEYS_MAX);
            get_request(keys.iter().map(AsRef::as_ref), id)
        }
        RequestKind::Remove { keys } => {
            assert!(keys.len() <= KEYS_MAX);
            remove_request(keys.iter().map(AsRef::as_ref), id)
        }
        RequestKind::Put { pairs, payload } => {
            assert!(pairs.len() <= KEYS_MAX);
            assert!(payload.len() <= input.len());
            put_request(pairs.iter().map(|(key, value)| (&key[..], &value[..])), id)
        }
        RequestKind::PutWithoutSeparator => {
            assert!(!message.contains(&b'#'));
            return;
        }
        RequestKind::Prefix => Ok(prefix_request(id)),
    };
    let again =
        Request::parse(again.expect("what was parsed has no separators")).expect("a request");
    assert_eq!(again.id, request.id);
    match (again.kind, request.kind) {
        // An odd last key got its empty value, so the payload may differ; what it says may not.
        (RequestKind::Put { pairs: again, .. }, RequestKind::Put { pairs, .. }) => {
            assert_eq!(again, pairs);
        }
        (again, kind) => assert_eq!(again, kind),
    }
});
