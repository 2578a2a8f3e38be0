//! The mwDB dialect against vectors recorded from mwDB itself, and against random input.
//!
//! Every line of `tests/golden/*.jsonl` is read; each test states how many lines it expects, so that an emptied file
//! does not pass. See `tests/golden/README.md` for the origin of the vectors.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use storage_protocol::mwdb::{
    Answer, AnswerKind, ForceReload, Items, Malformed, Request, RequestKind, ServerMessage,
    connect_request, force_reload, force_reload_verbatim, get_answer, get_request, prefix_answer,
    prefix_request, put_answer, put_request, remove_answer, remove_request, to_client, to_server,
};
use storage_protocol::number::{
    ID_MAX, NumberError, decode_id, decode_int, decode_long, encode_id, encode_int, encode_long,
};

mod numbers {
    use super::*;

    #[derive(Deserialize)]
    struct Int {
        int: i32,
        base64: String,
    }

    #[derive(Deserialize)]
    struct Long {
        long: i64,
        base64: String,
    }

    #[derive(Deserialize)]
    struct Lossy {
        kind: String,
        value: String,
        base64: String,
        decodes_to: i64,
    }

    #[derive(Deserialize)]
    struct Decode {
        kind: String,
        base64: String,
        value: Option<i64>,
    }

    #[test]
    fn ints() {
        for line in lines::<Int>("base64-int", 224) {
            assert_eq!(int_text(line.int), line.base64);
            assert_eq!(decode_int(line.base64.as_bytes()), Ok(line.int));
            if let Ok(id) = u32::try_from(line.int) {
                assert_eq!(id_text(id), line.base64);
                assert_eq!(decode_id(line.base64.as_bytes()), Ok(id));
            } else {
                assert!(decode_id(line.base64.as_bytes()).is_err());
            }
        }
    }

    #[test]
    fn longs() {
        for line in lines::<Long>("base64-long", 280) {
            assert_eq!(long_text(line.long), line.base64);
            assert_eq!(decode_long(line.base64.as_bytes()), Ok(line.long));
        }
    }

    #[test]
    fn longs_beyond_53_bits_lose_their_upper_bits() {
        for line in lines::<Lossy>("base64-lossy", 8) {
            assert_eq!(line.kind, "long");
            assert_eq!(long_text(line.value.parse().unwrap()), line.base64);
            assert_eq!(decode_long(line.base64.as_bytes()), Ok(line.decodes_to));
        }
    }

    #[test]
    fn unusual_texts_are_read_as_mwdb_reads_them() {
        for line in lines::<Decode>("base64-decode", 52) {
            let text = line.base64.as_bytes();
            let value = match line.kind.as_str() {
                "int" => decode_int(text).map(i64::from),
                "long" => decode_long(text),
                other => panic!("unknown kind {other}"),
            };
            assert_eq!(value.ok(), line.value, "{} {:?}", line.kind, line.base64);
        }
    }
}

mod frames {
    use super::*;

    #[derive(Deserialize)]
    struct Frame {
        name: String,
        direction: String,
        hex: Hex,
        meaning: Meaning,
        split: Split,
    }

    /// Only what the parsers must find; the vectors also explain the chunk a key stands for.
    #[derive(Deserialize)]
    struct Meaning {
        code: Option<u8>,
        id: Option<u32>,
        id_text: Option<String>,
        keys: Option<Vec<Key>>,
        pairs: Option<Vec<Pair>>,
        values: Option<Vec<Option<Hex>>>,
        ok: Option<bool>,
        prefix: Option<i16>,
    }

    #[derive(Deserialize)]
    struct Key {
        hex: Hex,
    }

    #[derive(Deserialize)]
    struct Pair {
        key: Key,
        value: Hex,
    }

    #[derive(Deserialize)]
    struct Split {
        items: Vec<Hex>,
        last_item: Option<Hex>,
        stripped_bytes: Option<usize>,
        payload: Option<Hex>,
        payload_items: Option<Vec<Hex>>,
    }

    impl Frame {
        fn all(direction: &str, expected_len: usize) -> Vec<Self> {
            let mut frames = lines::<Self>("frames", 83);
            frames.retain(|frame| frame.direction == direction);
            assert_eq!(frames.len(), expected_len, "{direction}");
            frames
        }

        /// The payload as the recorded cut left it.
        fn payload(&self) -> Bytes {
            self.split.payload.clone().map(|p| p.0).unwrap_or_default()
        }

        fn payload_items(&self) -> Vec<Bytes> {
            plain(self.split.payload_items.as_deref().unwrap_or_default())
        }

        fn id(&self) -> Bytes {
            let info = self.split.last_item.clone().expect("an info").0;
            let id = info.slice(1..);
            if let Some(id_text) = &self.meaning.id_text {
                assert_eq!(&id, id_text, "{}", self.name);
            }
            if let Some(number) = self.meaning.id {
                assert_eq!(decode_id(&id), Ok(number), "{}", self.name);
                assert_eq!(id_text(number), id, "{}", self.name);
            }
            id
        }
    }

    #[test]
    fn items_are_those_of_mwdb() {
        for frame in lines::<Frame>("frames", 83) {
            let items: Vec<_> = Items::new(frame.hex.0.clone()).collect();
            assert_eq!(items, plain(&frame.split.items), "{}", frame.name);
            assert_eq!(Items::count_in(&frame.hex.0), items.len(), "{}", frame.name);
            let last_item = frame.split.last_item.clone().map(|item| item.0);
            assert_eq!(items.last(), last_item.as_ref(), "{}", frame.name);

            let payload_items: Vec<_> = Items::new(frame.payload()).collect();
            assert_eq!(payload_items, frame.payload_items(), "{}", frame.name);
            if let Some(stripped_bytes) = frame.split.stripped_bytes {
                let payload_bytes = frame.hex.0.len().saturating_sub(stripped_bytes);
                assert_eq!(payload_bytes, frame.payload().len(), "{}", frame.name);
                assert_eq!(last_item.unwrap().len() + 1, stripped_bytes);
            }
        }
    }

    #[test]
    fn requests_parse_as_meant() {
        for frame in Frame::all("request", 56) {
            let parsed = Request::parse(frame.hex.0.clone());
            let expected_error = match frame.name.as_str() {
                "malformed-empty-message" => Some(Malformed::EmptyMessage),
                "malformed-one-separator" | "malformed-two-separators-after-id" => {
                    Some(Malformed::NoType)
                }
                "malformed-unknown-type" => Some(Malformed::UnknownType(0x63)),
                "malformed-force-reload-from-client" => Some(Malformed::UnknownType(5)),
                _ => None,
            };
            if let Some(error) = expected_error {
                assert_eq!(parsed, Err(error), "{}", frame.name);
                continue;
            }
            let request = parsed.unwrap();
            assert_eq!(request.id, frame.id(), "{}", frame.name);
            check_request(&frame, &request.kind);
            check_reencoding(&frame, &request);
        }
    }

    fn check_request(frame: &Frame, kind: &RequestKind) {
        let (code, keys) = match kind {
            RequestKind::Get { keys } => (to_server::GET, keys),
            RequestKind::Remove { keys } => (to_server::REMOVE, keys),
            RequestKind::Put { pairs, payload } => {
                assert_eq!(frame.meaning.code, Some(to_server::PUT), "{}", frame.name);
                assert_eq!(*payload, frame.payload(), "{}", frame.name);
                check_pairs(frame, pairs);
                return;
            }
            RequestKind::PutWithoutSeparator => panic!("{}: never recorded", frame.name),
            RequestKind::Prefix => {
                assert_eq!(
                    frame.meaning.code,
                    Some(to_server::PREFIX),
                    "{}",
                    frame.name
                );
                return;
            }
        };
        assert_eq!(*keys, frame.payload_items(), "{}", frame.name);
        // The two frames of a readable form that no client sends have no stated meaning.
        if let Some(meant) = &frame.meaning.keys {
            assert_eq!(frame.meaning.code, Some(code), "{}", frame.name);
            let mut present = keys.clone();
            present.retain(|key| !key.is_empty());
            let meant: Vec<_> = meant.iter().map(|key| key.hex.0.clone()).collect();
            assert_eq!(present, meant, "{}", frame.name);
        } else {
            assert!(frame.name.starts_with("malformed-"), "{}", frame.name);
        }
    }

    fn check_pairs(frame: &Frame, pairs: &[(Bytes, Bytes)]) {
        let items = frame.payload_items();
        let flat: Vec<_> = pairs
            .iter()
            .flat_map(|(k, v)| [k.clone(), v.clone()])
            .collect();
        assert_eq!(flat[..items.len()], items, "{}", frame.name);
        assert!(
            flat[items.len()..].iter().all(Bytes::is_empty),
            "{}",
            frame.name
        );
        if let Some(meant) = &frame.meaning.pairs {
            let meant: Vec<_> = meant
                .iter()
                .map(|pair| (pair.key.hex.0.clone(), pair.value.0.clone()))
                .collect();
            assert_eq!(pairs, meant, "{}", frame.name);
        }
    }

    fn check_reencoding(frame: &Frame, request: &Request) {
        let written = reencode(request, &frame.hex.0);
        match frame.name.as_str() {
            // Readable, but not what an encoder writes: the same request comes back.
            "put-odd-items"
            | "put-trailing-separator"
            | "malformed-separator-after-id"
            | "malformed-prefix-with-separator" => {
                assert_ne!(written, frame.hex.0, "{}", frame.name);
                let again = Request::parse(written).expect("a request that was written");
                assert_eq!(again.id, request.id, "{}", frame.name);
                assert_eq!(
                    pairs_or_keys(&again),
                    pairs_or_keys(request),
                    "{}",
                    frame.name
                );
            }
            _ => assert_eq!(written, frame.hex.0, "{}", frame.name),
        }
    }

    /// What a request is about, without the payload that may be spelt in several ways.
    fn pairs_or_keys(request: &Request) -> Vec<Bytes> {
        match &request.kind {
            RequestKind::Get { keys } | RequestKind::Remove { keys } => keys.clone(),
            RequestKind::Put { pairs, .. } => pairs
                .iter()
                .flat_map(|(k, v)| [k.clone(), v.clone()])
                .collect(),
            RequestKind::PutWithoutSeparator | RequestKind::Prefix => Vec::new(),
        }
    }

    #[test]
    fn responses_parse_as_meant_and_are_written_byte_for_byte() {
        for frame in Frame::all("response", 22) {
            let answer = Answer::parse(frame.hex.0.clone()).unwrap();
            assert_eq!(answer.id, frame.id(), "{}", frame.name);
            let meaning = &frame.meaning;
            let (code, written) = match &answer.kind {
                AnswerKind::Get(values) => {
                    let meant = meaning.values.as_ref().expect("values");
                    let meant: Vec<_> = meant.iter().map(|v| v.clone().map(|v| v.0)).collect();
                    assert_eq!(
                        values.split(meant.len()),
                        Ok(meant.clone()),
                        "{}",
                        frame.name
                    );
                    let written = get_answer(meant.iter().map(Option::as_deref), &answer.id);
                    (to_client::GET, written.unwrap())
                }
                AnswerKind::Put { done } => {
                    assert_eq!(meaning.ok, Some(*done), "{}", frame.name);
                    (to_client::PUT, put_answer(*done, &answer.id))
                }
                AnswerKind::Remove { done } => {
                    assert_eq!(meaning.ok, Some(*done), "{}", frame.name);
                    (to_client::REMOVE, remove_answer(*done, &answer.id))
                }
                AnswerKind::Prefix { prefix } => {
                    assert_eq!(meaning.prefix, Some(*prefix), "{}", frame.name);
                    (to_client::PREFIX, prefix_answer(*prefix, &answer.id))
                }
            };
            assert_eq!(meaning.code, Some(code), "{}", frame.name);
            assert_eq!(written, frame.hex.0, "{}", frame.name);
            let message = ServerMessage::parse(frame.hex.0.clone());
            assert_eq!(message, Ok(ServerMessage::Answer(answer)), "{}", frame.name);
        }
    }

    #[test]
    fn pushes_parse_as_meant_and_are_written_byte_for_byte() {
        for frame in Frame::all("push", 5) {
            let parsed = ServerMessage::parse(frame.hex.0.clone());
            if frame.name == "force-reload-empty-message" {
                assert_eq!(parsed, Err(Malformed::EmptyMessage));
                continue;
            }
            let push = expect_push(parsed.unwrap());
            assert_eq!(
                frame.meaning.code,
                Some(to_client::FORCE_RELOAD),
                "{}",
                frame.name
            );
            assert_eq!(push.payload, frame.payload(), "{}", frame.name);
            check_pairs(&frame, &push.pairs);
            assert_eq!(
                force_reload(slices(&push.pairs)).unwrap(),
                frame.hex.0,
                "{}",
                frame.name
            );
            assert_eq!(
                force_reload_verbatim(&push.payload),
                frame.hex.0,
                "{}",
                frame.name
            );
        }
    }
}

mod recordings {
    use super::*;

    #[derive(Deserialize)]
    struct Exchange {
        name: String,
        request: Hex,
        answers: Vec<Hex>,
    }

    #[derive(Deserialize)]
    struct Line {
        dir: String,
        hex: Hex,
    }

    /// As much of mwDB's server as its recorded answers need; its habits are not those of a good server.
    #[derive(Default)]
    struct Mwdb {
        pairs: HashMap<Bytes, Bytes>,
    }

    impl Mwdb {
        fn serve(&mut self, message: &Bytes) -> Vec<Bytes> {
            let Ok(Request { id, kind }) = Request::parse(message.clone()) else {
                return Vec::new();
            };
            match kind {
                RequestKind::Get { keys } => {
                    let values = keys.iter().map(|key| self.pairs.get(key).map(|v| &v[..]));
                    vec![get_answer(values, &id).expect("values without separators")]
                }
                RequestKind::Put { pairs, payload } => {
                    self.pairs.extend(pairs);
                    vec![force_reload_verbatim(&payload), put_answer(true, &id)]
                }
                RequestKind::Remove { keys } => {
                    for key in keys {
                        self.pairs.remove(&key);
                    }
                    vec![remove_answer(false, &id)]
                }
                RequestKind::PutWithoutSeparator => vec![put_answer(false, &id)],
                RequestKind::Prefix => vec![prefix_answer(0, &id)],
            }
        }
    }

    #[test]
    fn answers_of_the_original_come_out_byte_for_byte() {
        let mut server = Mwdb::default();
        for exchange in lines::<Exchange>("original-answers", 56) {
            let answers = server.serve(&exchange.request.0);
            assert_eq!(answers, plain(&exchange.answers), "{}", exchange.name);
        }
    }

    #[test]
    fn producer_and_then_consumer_come_out_byte_for_byte() {
        let mut server = Mwdb::default();
        for (session, expected_len) in [("session-producer", 9), ("session-consumer", 843)] {
            let mut unsent = std::collections::VecDeque::new();
            for line in lines::<Line>(session, expected_len) {
                if line.dir == "c2s" {
                    unsent.extend(server.serve(&line.hex.0));
                } else {
                    assert_eq!(unsent.pop_front(), Some(line.hex.0), "{session}");
                }
            }
            assert!(unsent.is_empty(), "{session}");
        }
    }

    #[test]
    fn sessions_are_read_and_written_byte_for_byte() {
        for (session, expected_len) in [
            ("session-producer", 9),
            ("session-consumer", 843),
            ("session-reload-consumer", 29),
            ("session-reload-writer", 31),
        ] {
            let mut keys_by_id = HashMap::new();
            for line in lines::<Line>(session, expected_len) {
                let message = line.hex.0;
                match line.dir.as_str() {
                    "c2s" => {
                        let request = Request::parse(message.clone()).unwrap();
                        assert_eq!(reencode(&request, &message), message, "{session}");
                        if let RequestKind::Get { keys } = request.kind {
                            keys_by_id.insert(request.id, keys.len());
                        }
                    }
                    "s2c" => {
                        let parsed = ServerMessage::parse(message.clone()).unwrap();
                        let written = reencode_from_server(&parsed, &keys_by_id);
                        assert_eq!(written, message, "{session}");
                    }
                    other => panic!("unknown direction {other}"),
                }
            }
        }
    }

    fn reencode_from_server(message: &ServerMessage, keys_by_id: &HashMap<Bytes, usize>) -> Bytes {
        match message {
            ServerMessage::ForceReload(push) => {
                assert_eq!(
                    force_reload(slices(&push.pairs)),
                    Ok(force_reload_verbatim(&push.payload))
                );
                force_reload_verbatim(&push.payload)
            }
            ServerMessage::Answer(Answer { id, kind }) => match kind {
                AnswerKind::Get(values) => {
                    let values = values.split(keys_by_id[id]).expect("a value for each key");
                    get_answer(values.iter().map(Option::as_deref), id)
                        .expect("values without separators")
                }
                AnswerKind::Put { done } => put_answer(*done, id),
                AnswerKind::Remove { done } => remove_answer(*done, id),
                AnswerKind::Prefix { prefix } => prefix_answer(*prefix, id),
            },
        }
    }
}

mod random {
    use super::*;

    /// Bytes without a separator, short ones often empty.
    fn item(len_max: usize) -> impl Strategy<Value = Bytes> {
        let byte = any::<u8>().prop_filter("separator", |byte| *byte != b'#');
        prop::collection::vec(byte, 0..=len_max).prop_map(Bytes::from)
    }

    /// Few different bytes, so that separators, type bytes and digits meet often.
    fn message() -> impl Strategy<Value = Bytes> {
        let likely = prop::sample::select(&b"###\x00\x01\x02\x03\x04\x05\x06\x07ABk"[..]);
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            prop::collection::vec(likely, 0..24),
        ]
        .prop_map(Bytes::from)
    }

    fn keys() -> impl Strategy<Value = Vec<Bytes>> {
        prop::collection::vec(item(4), 0..6)
    }

    fn pairs() -> impl Strategy<Value = Vec<(Bytes, Bytes)>> {
        prop::collection::vec((item(4), item(8)), 0..6)
    }

    proptest! {
        #[test]
        fn ints_come_back(value: i32) {
            prop_assert_eq!(decode_int(int_text(value).as_bytes()), Ok(value));
        }

        #[test]
        fn longs_of_53_bits_come_back(value in -((1_i64 << 53) - 1)..=(1 << 53) - 1) {
            prop_assert_eq!(decode_long(long_text(value).as_bytes()), Ok(value));
        }

        #[test]
        fn longs_keep_their_low_53_bits(value: i64) {
            let kept = i64::try_from(value.unsigned_abs() & ((1 << 53) - 1)).unwrap();
            let kept = if value < 0 { -kept } else { kept };
            prop_assert_eq!(decode_long(long_text(value).as_bytes()), Ok(kept));
        }

        #[test]
        fn ids_come_back(id in 0..=ID_MAX) {
            prop_assert_eq!(decode_id(id_text(id).as_bytes()), Ok(id));
        }

        #[test]
        fn an_id_has_one_text(text in "[A-Da-b/+#=]{0,7}") {
            if let Ok(id) = decode_id(text.as_bytes()) {
                prop_assert_eq!(id_text(id), text);
            }
        }

        #[test]
        fn any_bytes_are_a_number_or_an_error(text: Vec<u8>) {
            let int = decode_int(&text);
            let _ = decode_id(&text);
            let long = decode_long(&text);
            if text.is_empty() {
                prop_assert_eq!(int, Err(NumberError::Empty));
                prop_assert_eq!(long, Err(NumberError::Empty));
            }
        }

        #[test]
        fn items_join_to_their_buffer(buffer in message()) {
            let items: Vec<_> = Items::new(buffer.clone()).collect();
            prop_assert_eq!(Items::count_in(&buffer), items.len());
            let mut joined = items.join(&b'#');
            if joined.len() < buffer.len() {
                joined.push(b'#');
            }
            prop_assert_eq!(joined, buffer);
        }

        #[test]
        fn get_and_remove_come_back(keys in keys(), id in item(5)) {
            let plain = || keys.iter().map(|key| &key[..]);
            let get = RequestKind::Get { keys: keys.clone() };
            for message in [get_request(plain(), &id), connect_request(plain(), &id)] {
                let request = Request::parse(message.unwrap()).unwrap();
                prop_assert_eq!(request, Request { id: id.clone(), kind: get.clone() });
            }
            let request = Request::parse(remove_request(plain(), &id).unwrap()).unwrap();
            prop_assert_eq!(request, Request { id, kind: RequestKind::Remove { keys } });
        }

        #[test]
        fn put_and_its_push_come_back(sent in pairs(), id in item(5)) {
            let message = put_request(slices(&sent), &id).unwrap();
            let request = Request::parse(message).unwrap();
            prop_assert_eq!(&request.id, &id);
            let RequestKind::Put { pairs, payload } = request.kind else {
                return Err(TestCaseError::fail("not a PUT"));
            };
            prop_assert_eq!(&pairs, &sent);
            let message = force_reload(slices(&sent)).unwrap();
            prop_assert_eq!(&message, &force_reload_verbatim(&payload));
            let push = expect_push(ServerMessage::parse(message).unwrap());
            prop_assert_eq!(push, ForceReload { pairs, payload });
        }

        #[test]
        fn prefix_request_comes_back(id in item(5)) {
            let request = Request::parse(prefix_request(&id)).unwrap();
            prop_assert_eq!(request, Request { id, kind: RequestKind::Prefix });
        }

        #[test]
        fn get_answer_comes_back(
            values in prop::collection::vec(prop::option::of(item(4)), 0..6),
            id in item(5),
        ) {
            let message = get_answer(values.iter().map(Option::as_deref), &id).unwrap();
            let answer = Answer::parse(message).unwrap();
            prop_assert_eq!(answer.id, id);
            let AnswerKind::Get(read) = answer.kind else {
                return Err(TestCaseError::fail("not an answer to GET"));
            };
            let absent_if_empty = |value: Option<Bytes>| value.filter(|value| !value.is_empty());
            let values: Vec<_> = values.into_iter().map(absent_if_empty).collect();
            prop_assert_eq!(read.split(values.len()), Ok(values));
        }

        #[test]
        fn other_answers_come_back(done: bool, prefix: i16, id in item(5)) {
            for (message, kind) in [
                (put_answer(done, &id), AnswerKind::Put { done }),
                (remove_answer(done, &id), AnswerKind::Remove { done }),
                (prefix_answer(prefix, &id), AnswerKind::Prefix { prefix }),
            ] {
                prop_assert_eq!(Answer::parse(message), Ok(Answer { id: id.clone(), kind }));
            }
        }

        #[test]
        fn any_message_is_a_request_or_an_error(message in message(), keys_max in 0_usize..8) {
            let Ok(Request { id, kind }) = Request::parse_within(message, keys_max) else {
                return Ok(());
            };
            prop_assert!(!id.contains(&b'#'));
            let keys = match &kind {
                RequestKind::Get { keys } | RequestKind::Remove { keys } => keys.len(),
                RequestKind::Put { pairs, .. } => pairs.len(),
                RequestKind::PutWithoutSeparator | RequestKind::Prefix => 0,
            };
            prop_assert!(keys <= keys_max);
            // Whatever was read can be written, and is read again as the same.
            let written = reencode(&Request { id: id.clone(), kind: kind.clone() }, &[]);
            let again = Request::parse(written).unwrap();
            prop_assert_eq!(again.id, id);
            if !matches!(kind, RequestKind::Put { .. }) {
                prop_assert_eq!(again.kind, kind);
            }
        }

        #[test]
        fn any_message_is_from_a_server_or_an_error(message in message(), keys in 0_usize..8) {
            if let Ok(ServerMessage::Answer(Answer { kind: AnswerKind::Get(values), .. })) =
                ServerMessage::parse(message)
                && let Ok(values) = values.split(keys)
            {
                prop_assert_eq!(values.len(), keys);
            }
        }
    }
}

/// Bytes written as hex in the vectors.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Hex(Bytes);

impl TryFrom<String> for Hex {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        hex::decode(text).map(|bytes| Self(bytes.into()))
    }
}

fn plain(list: &[Hex]) -> Vec<Bytes> {
    list.iter().map(|hex| hex.0.clone()).collect()
}

fn lines<T: DeserializeOwned>(name: &str, expected_len: usize) -> Vec<T> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = fs::read_to_string(folder.join(name).with_extension("jsonl")).expect("golden file");
    let lines: Vec<T> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("golden line"))
        .collect();
    assert_eq!(lines.len(), expected_len, "lines of {name}");
    lines
}

/// Writes `request` with the encoder of its kind; `received` tells whether its key list had a separator of its own.
fn reencode(request: &Request, received: &[u8]) -> Bytes {
    let Request { id, kind } = request;
    let info_len = 1 + id.len();
    let own_separator =
        received.len() > info_len + 1 && received[..received.len() - info_len].ends_with(b"##");
    match kind {
        RequestKind::Get { keys } => {
            let keys = keys.iter().map(|key| &key[..]);
            if own_separator {
                connect_request(keys, id)
            } else {
                get_request(keys, id)
            }
        }
        RequestKind::Put { pairs, .. } => put_request(slices(pairs), id),
        RequestKind::Remove { keys } => remove_request(keys.iter().map(|key| &key[..]), id),
        RequestKind::PutWithoutSeparator => Ok([&[to_server::PUT], &id[..]].concat().into()),
        RequestKind::Prefix => Ok(prefix_request(id)),
    }
    .expect("a parsed part has no separator")
}

fn slices(pairs: &[(Bytes, Bytes)]) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    pairs.iter().map(|(key, value)| (&key[..], &value[..]))
}

fn expect_push(message: ServerMessage) -> ForceReload {
    match message {
        ServerMessage::ForceReload(push) => push,
        ServerMessage::Answer(answer) => panic!("not a push: {answer:?}"),
    }
}

fn int_text(value: i32) -> String {
    let mut text = Vec::new();
    encode_int(value, &mut text);
    String::from_utf8(text).expect("base-64 digits")
}

fn long_text(value: i64) -> String {
    let mut text = Vec::new();
    encode_long(value, &mut text);
    String::from_utf8(text).expect("base-64 digits")
}

fn id_text(id: u32) -> String {
    let mut text = Vec::new();
    encode_id(id, &mut text).expect("an id in range");
    String::from_utf8(text).expect("base-64 digits")
}
