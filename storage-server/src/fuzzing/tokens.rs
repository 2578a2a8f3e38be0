//! Bearer tokens: of all texts only those that were minted verify; and what is near them, credentials in requests and the
//! stored signing keys.

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::Value;

use crate::auth::tokens::request::TOKEN_PARAMETERS;
use crate::auth::tokens::{
    Claims, Credential, SigningKeys, TokenError, TokenId, Tokens, UnixSeconds, from_authorization,
    from_query, from_subprotocols, is_token, redact,
};

/// When all of it happens.
const NOW: UnixSeconds = UnixSeconds(1_000_000_000);
const LIFE: Duration = Duration::from_hours(1);
/// The store whose tokens are good.
const INSTANCE: &str = "fuzz";
/// The secrets: of a key that was replaced, of the current one, and of one that the store never had.
const SECRETS: [[u8; 32]; 3] = [[1; 32], [2; 32], [3; 32]];

/// A token that is good for as long as anybody fuzzes, and all that a store has of it.
pub(super) struct Lasting {
    pub(super) keys: Vec<u8>,
    pub(super) instance: &'static str,
    pub(super) id: String,
    pub(super) record: String,
    /// Seeds have it.
    #[cfg(test)]
    pub(super) token: String,
}

impl Lasting {
    pub(super) fn new() -> Self {
        let mut claims = claims(6, "cert:zoe", NOW);
        claims.exp = UnixSeconds(99_999_999_999);
        let tokens = store(&[1], INSTANCE);
        let (issued, expires) = (claims.iat.0, claims.exp.0);
        Self {
            keys: tokens.keys().to_json().to_vec(),
            instance: INSTANCE,
            id: claims.jti.to_string(),
            record: format!(r#"{{"principal":"cert:zoe","issued":{issued},"expires":{expires}}}"#),
            #[cfg(test)]
            token: tokens.sign(&claims).expect("a token"),
        }
    }
}

/// What was minted. The same in each run: secrets, times and ids are fixed, and so is HS256.
struct Minted {
    tokens: Tokens,
    good: Vec<(String, Claims)>,
    /// Expired, of another store, of another key.
    bad: Vec<String>,
}

/// A store with some of [`SECRETS`], the last one the current.
fn store(keys: &[usize], instance: &str) -> Tokens {
    let keys = keys.iter().map(|place| {
        let secret = STANDARD.encode(SECRETS[*place]);
        format!(r#"{{"kid":"{place:016x}","made":{place},"secret":"{secret}"}}"#)
    });
    let keys = keys.collect::<Vec<_>>().join(",");
    let keys = format!(r#"{{"version":1,"keys":[{keys}]}}"#);
    let keys = SigningKeys::from_json(keys.as_bytes()).expect("keys");
    Tokens::new(keys, instance.to_owned()).expect("tokens")
}

fn claims(id: u8, sub: &str, iat: UnixSeconds) -> Claims {
    Claims {
        jti: TokenId::try_from(hex::encode([id; 16])).expect("an id"),
        sub: sub.to_owned(),
        iat,
        exp: iat.after(LIFE),
    }
}

fn minted() -> &'static Minted {
    static MINTED: OnceLock<Minted> = OnceLock::new();
    MINTED.get_or_init(|| {
        let good = [
            (&[1][..], claims(1, "cert:producer", NOW)),
            (&[0][..], claims(2, "user:ann", NOW)),
        ];
        let good = good.map(|(keys, claims)| {
            let token = store(keys, INSTANCE).sign(&claims);
            (token.expect("a token"), claims)
        });
        let short = claims(7, "user:ann", NOW);
        let token = store(&[1], INSTANCE).sign_short(&short).expect("a token");
        // The short form does not say whose it is, and since when.
        let short = Claims {
            sub: String::new(),
            iat: UnixSeconds(0),
            ..short
        };
        let good = good.into_iter().chain([(token, short)]);
        let bad = [
            store(&[1], INSTANCE).sign(&claims(3, "user:ann", UnixSeconds(1))),
            store(&[1], "other").sign(&claims(4, "user:ann", NOW)),
            store(&[2], INSTANCE).sign(&claims(5, "user:ann", NOW)),
        ];
        Minted {
            tokens: store(&[0, 1], INSTANCE),
            good: good.collect(),
            bad: bad.map(|token| token.expect("a token")).into(),
        }
    })
}

/// The first byte, a digit, says what the others are.
///
/// # Panics
/// If a promise does not hold.
pub fn check(input: &[u8]) {
    let Some((choice, input)) = input.split_first() else {
        return;
    };
    match choice.wrapping_sub(b'0') % 5 {
        0 => check_token(&String::from_utf8_lossy(input)),
        1 => check_signed(input),
        2 => check_changed(input),
        3 => check_request(&String::from_utf8_lossy(input)),
        _ => check_keys(input),
    }
}

/// A token as a peer sends it: it verifies if and only if it was minted here, with what was minted.
fn check_token(token: &str) {
    let minted = minted();
    let known = minted.good.iter().find(|(text, _)| text == token);
    let known = known.map(|(_, claims)| claims);
    match minted.tokens.verify(token, NOW) {
        Ok(claims) => assert_eq!(Some(&claims), known, "verified without being minted"),
        Err(error) => assert_eq!(known, None, "minted and refused: {error}"),
    }
}

/// Any header and any payload, a line each, signed with the current secret, as nobody outside can. What verifies is what
/// this server could have signed.
fn check_signed(input: &[u8]) {
    let minted = minted();
    let line = input.iter().position(|byte| *byte == b'\n');
    let (header, payload) = input.split_at(line.unwrap_or(input.len()));
    let payload = payload.get(1..).unwrap_or_default();
    let [head, body] = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
    let message = format!("{head}.{body}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &SECRETS[1]);
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
    let Ok(claims) = minted.tokens.verify(&format!("{message}.{signature}"), NOW) else {
        return;
    };
    let [header, payload] = [header, payload]
        .map(|part| serde_json::from_slice::<Value>(part).expect("a verified part is JSON"));
    assert_eq!(header["alg"], "HS256");
    assert_eq!(header["kid"], format!("{:016x}", 1));
    assert_eq!(payload["aud"], INSTANCE);
    assert!(claims.exp > NOW && claims.iat < claims.exp, "{claims:?}");
    let again = minted
        .tokens
        .sign(&claims)
        .expect("what verifies can be signed");
    assert_eq!(minted.tokens.verify(&again, NOW), Ok(claims));
}

/// A token that was minted, good or bad, with bytes changed: a byte that says which, and three for each change.
fn check_changed(input: &[u8]) {
    let minted = minted();
    let Some((which, changes)) = input.split_first() else {
        return;
    };
    let good = minted.good.iter().map(|(token, _)| token);
    let all: Vec<_> = good.chain(&minted.bad).collect();
    let mut token = all[usize::from(*which) % all.len()].clone().into_bytes();
    for change in changes.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([change[0], change[1]]));
        let length = token.len();
        token[place % length] ^= change[2];
    }
    check_token(&String::from_utf8_lossy(&token));
}

/// A text as a header, a query and a list of subprotocols, and in a log. What is found there is a token as any other.
fn check_request(text: &str) {
    match from_authorization(text) {
        Ok(Credential::Bearer(token)) => check_token(token),
        Ok(Credential::Basic { user, password }) => {
            assert!(!user.is_empty() && user.len() <= 256 && !user.contains(':'));
            assert!(password.len() <= 1024);
            let again = STANDARD.encode(format!("{user}:{}", *password));
            let again = format!("Basic {again}");
            assert_eq!(
                from_authorization(&again),
                Ok(Credential::Basic { user, password })
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Some(token) = from_query(text, TOKEN_PARAMETERS) {
        check_token(&token);
    }
    let offered: Vec<_> = text
        .split(',')
        .map(|entry| entry.trim().to_owned())
        .collect();
    let found = from_subprotocols(&offered);
    assert_eq!(found.is_some(), offered.iter().any(|entry| is_token(entry)));
    if let Some(token) = found {
        check_token(token);
    }
    check_redacted(text);
}

/// A token between any two texts, at each place where a request may have one, does not stand in a log.
fn check_redacted(text: &str) {
    let (token, _) = &minted().good[0];
    let (_, signature) = token.rsplit_once('.').expect("three parts");
    let (before, behind) = text.split_once('\n').unwrap_or((text, ""));
    if text.contains(signature) {
        return;
    }
    for shown in [
        format!("{before}?token={token}&{behind}"),
        format!("{before}\nAuthorization: Bearer {token}\r\n{behind}"),
        format!("{before}, bearer.{token}, {behind}"),
        format!("{before} {token} {behind}"),
    ] {
        let hidden = redact(&shown);
        assert!(!hidden.contains(signature), "{shown:?}: {hidden:?}");
    }
}

/// The stored signing keys: what can be read is written the same, and signs.
fn check_keys(json: &[u8]) {
    let Ok(keys) = SigningKeys::from_json(json) else {
        return;
    };
    let written = keys.to_json();
    let again = SigningKeys::from_json(&written).expect("what was written is read");
    assert_eq!(*again.to_json(), *written);
    let tokens = Tokens::new(again, INSTANCE.to_owned()).expect("tokens");
    let (_, claims) = &minted().good[0];
    let token = tokens.sign(claims).expect("keys sign");
    assert_eq!(tokens.verify(&token, NOW).as_ref(), Ok(claims));
    let other = minted().tokens.verify(&token, NOW);
    assert!(
        other.as_ref() == Ok(claims)
            || matches!(
                other,
                Err(TokenError::UnknownKey | TokenError::BadSignature)
            ),
        "{other:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::tests::seeds;

    #[test]
    fn the_seeds_hold_what_is_promised_and_have_all_that_was_minted() {
        let seeds = seeds("tokens");
        for (_, seed) in &seeds {
            check(seed);
        }
        // A change of tokens changes the seeds with it: fuzz/examples/seeds.
        for token in minted()
            .good
            .iter()
            .map(|(token, _)| token)
            .chain(&minted().bad)
        {
            let seed = format!("0{token}");
            assert!(
                seeds.iter().any(|(_, known)| known == seed.as_bytes()),
                "{token}"
            );
        }
        assert!(seeds.iter().any(|(_, seed)| seed.starts_with(b"1") && {
            let text = String::from_utf8_lossy(seed);
            text.contains("\"HS256\"") && text.contains(INSTANCE)
        }));
    }
}
