//! An mwDB client's reader: any message is an answer, a push or refused; written anew it reads the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use storage_protocol::mwdb::{
    Answer, AnswerKind, ServerMessage, force_reload, get_answer, prefix_answer, put_answer,
    remove_answer,
};

fuzz_target!(|input: &[u8]| {
    let (keys, message) = input
        .split_first()
        .map_or((0, input), |(keys, rest)| (*keys, rest));
    match ServerMessage::parse(Bytes::copy_from_slice(message)) {
        Ok(ServerMessage::Answer(answer)) => check_answer(&answer, usize::from(keys)),
        Ok(ServerMessage::ForceReload(push)) => {
            let pairs = push.pairs.iter().map(|(key, value)| (&key[..], &value[..]));
            let again = force_reload(pairs).expect("what was parsed has no separators");
            match ServerMessage::parse(again) {
                Ok(ServerMessage::ForceReload(again)) => assert_eq!(again.pairs, push.pairs),
                other => panic!("a push came back as {other:?}"),
            }
        }
        Err(_) => {}
    }
});

fn check_answer(answer: &Answer, keys: usize) {
    let id = &answer.id;
    let again = match &answer.kind {
        AnswerKind::Get(values) => {
            let Ok(values) = values.split(keys) else {
                return;
            };
            assert_eq!(values.len(), keys);
            let again = get_answer(values.iter().map(Option::as_deref), id);
            let again = Answer::parse(again.expect("no separators")).expect("an answer");
            match again.kind {
                AnswerKind::Get(again) => assert_eq!(again.split(keys), Ok(values)),
                other => panic!("a GET answer came back as {other:?}"),
            }
            return;
        }
        AnswerKind::Put { done } => put_answer(*done, id),
        AnswerKind::Remove { done } => remove_answer(*done, id),
        AnswerKind::Prefix { prefix } => prefix_answer(*prefix, id),
    };
    assert_eq!(Answer::parse(again).as_ref(), Ok(answer));
}
