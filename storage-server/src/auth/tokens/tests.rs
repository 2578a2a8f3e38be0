//! Good tokens, and each kind of bad one.

use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};

use super::*;

/// Long ago, so that a look at a real clock would show.
const NOW: UnixSeconds = UnixSeconds(1_000_000_000);
const HOUR: Duration = Duration::from_hours(1);
const INSTANCE: &str = "7f3a9c";

fn tokens() -> Tokens {
    let keys = SigningKeys::generate(NOW).unwrap();
    Tokens::new(keys, INSTANCE.to_owned()).unwrap()
}

fn claims() -> Claims {
    Claims::new("cert:producer", NOW, HOUR).unwrap()
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

/// A token of any header and payload, with a good signature of the current key.
fn forged(tokens: &Tokens, header: &Value, payload: &Value) -> String {
    let message = format!("{}.{}", part(header), part(payload));
    let key = hmac::Key::new(hmac::HMAC_SHA256, tokens.keys().current().secret());
    let signature = hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn header(tokens: &Tokens) -> Value {
    json!({"typ": "JWT", "alg": "HS256", "kid": tokens.keys().current().kid()})
}

fn payload() -> Value {
    json!({
        "iss": "storage-sync", "aud": INSTANCE, "jti": "00".repeat(16), "sub": "user:ann",
        "iat": NOW.0, "exp": NOW.0 + 60,
    })
}

/// The same with one member changed.
fn with(mut json: Value, name: &str, value: impl Into<Value>) -> Value {
    json[name] = value.into();
    json
}

fn without(mut json: Value, name: &str) -> Value {
    json.as_object_mut().unwrap().remove(name);
    json
}

#[test]
fn a_token_says_what_was_signed_until_it_expires() {
    let (tokens, claims) = (tokens(), claims());
    let token = tokens.sign(&claims).unwrap();
    assert!(token.len() < 500, "{}", token.len());
    assert_eq!(tokens.verify(&token, NOW), Ok(claims.clone()));
    let last = UnixSeconds(claims.exp.0 - 1);
    assert_eq!(tokens.verify(&token, last), Ok(claims.clone()));
    // No leeway.
    let expired = Err(TokenError::Expired { at: claims.exp });
    assert_eq!(tokens.verify(&token, claims.exp), expired);
    assert_eq!(tokens.verify(&token, UnixSeconds(u64::MAX)), expired);
    assert_eq!(tokens.verify(&token, UnixSeconds(0)), Ok(claims));
}

#[test]
fn ids_are_random_and_have_one_form() {
    let (one, other) = (claims().jti, claims().jti);
    assert_ne!(one, other);
    assert_eq!(TokenId::try_from(one.to_string()), Ok(one.clone()));
    for bad in [
        "",
        "../x",
        &one.as_str()[1..],
        &one.as_str().replace(char::is_alphanumeric, "A"),
    ] {
        assert!(TokenId::try_from(bad.to_owned()).is_err(), "{bad}");
    }
}

#[test]
fn claims_that_no_token_can_have() {
    let long = "x".repeat(257);
    for (minter, now, life) in [
        ("", NOW, HOUR),
        (&long, NOW, HOUR),
        ("a", NOW, Duration::ZERO),
        ("a", NOW, Duration::from_millis(999)),
        ("a", NOW, Duration::MAX),
        ("a", UnixSeconds(u64::MAX), HOUR),
    ] {
        let made = Claims::new(minter, now, life);
        assert!(matches!(made, Err(TokenError::Claims(_))), "{made:?}");
    }
    assert!(Claims::new(&long[1..], NOW, Duration::from_secs(1)).is_ok());
    let mut claims = claims();
    claims.exp = claims.iat;
    assert!(matches!(tokens().sign(&claims), Err(TokenError::Claims(_))));
    // Each of its bytes takes six in JSON.
    let (keys, escaped) = (SigningKeys::generate(NOW).unwrap(), "\u{1}".repeat(256));
    let tokens = Tokens::new(keys.clone(), escaped.clone()).unwrap();
    claims = Claims::new(&escaped, NOW, HOUR).unwrap();
    assert!(matches!(tokens.sign(&claims), Err(TokenError::Claims(_))));
    assert!(Tokens::new(keys.clone(), String::new()).is_err());
    assert!(Tokens::new(keys, long).is_err());
}

#[test]
fn no_token_and_garbage() {
    let tokens = tokens();
    for text in [
        "",
        ".",
        "..",
        "...",
        "garbage",
        "a.b.c",
        "ä.ö.ü",
        "e30.e30.e30",
        "W10.e30.e30",
    ] {
        let error = tokens.verify(text, NOW).unwrap_err();
        assert!(matches!(error, TokenError::Malformed(_)), "{text}: {error}");
    }
    let token = tokens.sign(&claims()).unwrap();
    let parts = TokenError::Malformed("it has not three parts");
    assert_eq!(tokens.verify(&format!("{token}."), NOW), Err(parts));
    for text in [
        format!("{token}."),
        format!(".{token}"),
        format!("{token} "),
        format!("{token}="),
    ] {
        let error = tokens.verify(&text, NOW).unwrap_err();
        assert!(matches!(error, TokenError::Malformed(_)), "{text}: {error}");
    }
}

#[test]
fn a_long_text_is_refused_before_it_is_parsed() {
    let tokens = tokens();
    let long = TokenError::Malformed("it is longer than 4096 bytes");
    assert_eq!(tokens.verify(&"x".repeat(5 * 1024), NOW), Err(long.clone()));
    // Good but for its length.
    let mut header = header(&tokens);
    header["kid"] = "x".repeat(5 * 1024).into();
    let token = forged(&tokens, &header, &payload());
    assert_eq!(tokens.verify(&token, NOW), Err(long));
    header["kid"] = "x".repeat(1024).into();
    let token = forged(&tokens, &header, &payload());
    assert_eq!(tokens.verify(&token, NOW), Err(TokenError::UnknownKey));
}

#[test]
fn a_token_of_another_server() {
    let (ours, theirs) = (tokens(), tokens());
    let token = theirs.sign(&claims()).unwrap();
    assert_eq!(ours.verify(&token, NOW), Err(TokenError::UnknownKey));
    // A copy of the store has its keys too.
    let copy = Tokens::new(ours.keys().clone(), "another".to_owned()).unwrap();
    let token = copy.sign(&claims()).unwrap();
    assert_eq!(ours.verify(&token, NOW), Err(TokenError::OtherServer));
    let text = TokenError::OtherServer.to_string();
    assert!(text.contains("of another server"), "{text}");
    // Nor one of another product.
    let payload = with(payload(), "iss", "other-product");
    let token = forged(&ours, &header(&ours), &payload);
    assert_eq!(ours.verify(&token, NOW), Err(TokenError::OtherServer));
}

#[test]
fn a_key_id_that_is_not_ours() {
    let tokens = tokens();
    for kid in ["", "0011223344556677", "../../etc/passwd"] {
        let header = with(header(&tokens), "kid", kid);
        let token = forged(&tokens, &header, &payload());
        assert_eq!(tokens.verify(&token, NOW), Err(TokenError::UnknownKey));
    }
}

#[test]
fn no_signature_is_no_algorithm() {
    let tokens = tokens();
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = with(header(&tokens), "alg", alg);
        let unsigned = format!("{}.{}.", part(&header), part(&payload()));
        assert_eq!(tokens.verify(&unsigned, NOW), Err(TokenError::Algorithm));
        let signed = forged(&tokens, &header, &payload());
        assert_eq!(tokens.verify(&signed, NOW), Err(TokenError::Algorithm));
    }
    let unsigned = format!("{}.{}.", part(&header(&tokens)), part(&payload()));
    assert_eq!(tokens.verify(&unsigned, NOW), Err(TokenError::BadSignature));
}

#[test]
fn other_algorithms_are_refused() {
    let tokens = tokens();
    for alg in [
        "RS256", "ES256", "EdDSA", "PS512", "HS384", "HS512", "hs256",
    ] {
        let header = with(header(&tokens), "alg", alg);
        let token = forged(&tokens, &header, &payload());
        assert_eq!(
            tokens.verify(&token, NOW),
            Err(TokenError::Algorithm),
            "{alg}"
        );
    }
}

/// By itself: if the check of the header were not there.
#[test]
fn the_library_allows_one_algorithm() {
    let tokens = tokens();
    assert_eq!(tokens.validation.algorithms, [Algorithm::HS256]);
    for alg in ["RS256", "HS512"] {
        let token = forged(&tokens, &with(header(&tokens), "alg", alg), &payload());
        let secret = tokens.keys().current().secret();
        let error = tokens.payload(&token, secret).map(|_| ()).unwrap_err();
        assert_eq!(error, TokenError::Algorithm);
    }
}

#[test]
fn headers_that_are_not_ours() {
    let tokens = tokens();
    let good = header(&tokens);
    assert!(
        tokens
            .verify(&forged(&tokens, &good, &payload()), NOW)
            .is_ok()
    );
    for header in [
        without(good.clone(), "kid"),
        without(good.clone(), "typ"),
        without(good.clone(), "alg"),
        with(good.clone(), "typ", "JWE"),
        with(good.clone(), "kid", 7),
        with(good.clone(), "crit", json!(["exp"])),
        with(good.clone(), "jku", "https://example.org/keys"),
        json!([good]),
    ] {
        let token = forged(&tokens, &header, &payload());
        let error = tokens.verify(&token, NOW).unwrap_err();
        assert!(
            matches!(error, TokenError::Malformed(_)),
            "{header}: {error}"
        );
    }
}

#[test]
fn claims_that_are_not_ours() {
    let tokens = tokens();
    let good = payload();
    for payload in [
        without(good.clone(), "iss"),
        without(good.clone(), "aud"),
        without(good.clone(), "jti"),
        without(good.clone(), "sub"),
        without(good.clone(), "iat"),
        without(good.clone(), "exp"),
        with(good.clone(), "exp", "never"),
        with(good.clone(), "exp", 1e300),
        with(good.clone(), "exp", -1),
        with(good.clone(), "exp", u64::MAX),
        with(good.clone(), "exp", NOW.0),
        with(good.clone(), "aud", json!([INSTANCE, "another"])),
        with(good.clone(), "jti", "../../keys"),
        with(good.clone(), "sub", ""),
        with(good.clone(), "sub", "x".repeat(257)),
        with(good.clone(), "admin", true),
        json!("text"),
    ] {
        let token = forged(&tokens, &header(&tokens), &payload);
        let error = tokens.verify(&token, NOW).unwrap_err();
        assert!(
            matches!(error, TokenError::Malformed(_)),
            "{payload}: {error}"
        );
    }
}

#[test]
fn a_tampered_payload_or_signature() {
    let tokens = tokens();
    let token = tokens.sign(&claims()).unwrap();
    let parts: Vec<_> = token.split('.').collect();
    let [header, own, signature] = parts[..] else {
        panic!("not three parts")
    };
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(own).unwrap()).unwrap();
    claims["sub"] = "user:admin".into();
    let tampered = format!("{header}.{}.{signature}", part(&claims));
    assert_eq!(tokens.verify(&tampered, NOW), Err(TokenError::BadSignature));
    let other = tokens.sign(&self::claims()).unwrap();
    let other = other.rsplit('.').next().unwrap();
    for signature in [other, &signature[..40], "", &format!("{signature}AAAA")] {
        let tampered = format!("{header}.{own}.{signature}");
        assert_eq!(tokens.verify(&tampered, NOW), Err(TokenError::BadSignature));
    }
}

#[test]
fn tokens_outlive_a_rotation_until_their_key_is_dropped() {
    let before = tokens();
    let token = before.sign(&claims()).unwrap();
    let rotate = |tokens: &Tokens, now| {
        let keys = tokens.keys().rotate(now, HOUR).unwrap();
        // As the server does after a restart.
        let keys = SigningKeys::from_json(&keys.to_json()).unwrap();
        Tokens::new(keys, INSTANCE.to_owned()).unwrap()
    };
    let after = rotate(&before, NOW.after(Duration::from_secs(10)));
    assert_eq!(after.verify(&token, NOW), before.verify(&token, NOW));
    assert!(after.verify(&token, NOW).is_ok());
    let newer = after.sign(&claims()).unwrap();
    assert_ne!(kid_of(&newer), kid_of(&token));
    assert_eq!(before.verify(&newer, NOW), Err(TokenError::UnknownKey));
    let later = rotate(&after, NOW.after(Duration::from_secs(10) + HOUR));
    // Its time does not matter: the key is gone.
    assert_eq!(later.verify(&token, NOW), Err(TokenError::UnknownKey));
    assert!(later.verify(&newer, NOW).is_ok());
}

#[test]
fn no_error_shows_the_token() {
    let ours = tokens();
    let secret = "Top5ecret";
    let bearing = |name| with(payload(), name, secret);
    let mut texts = vec![
        secret.to_owned(),
        format!("{secret}.{secret}.{secret}"),
        tokens()
            .sign(&Claims::new(secret, NOW, HOUR).unwrap())
            .unwrap(),
        forged(&ours, &with(header(&ours), "kid", secret), &payload()),
        forged(&ours, &with(header(&ours), "alg", secret), &payload()),
        forged(&ours, &with(header(&ours), secret, 1), &payload()),
        forged(&ours, &header(&ours), &with(payload(), secret, 1)),
    ];
    texts.extend(
        ["iss", "aud", "jti", "iat", "exp"]
            .map(|name| forged(&ours, &header(&ours), &bearing(name))),
    );
    for text in texts {
        let error = ours.verify(&text, NOW).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(secret), "{shown}");
        for part in text.split('.').filter(|part| part.len() > 3) {
            assert!(!shown.contains(part), "{shown}");
        }
    }
    let shown = format!("{ours:?}");
    let secret = ours.keys().current().secret();
    assert!(!shown.contains(&format!("{secret:?}")), "{shown}");
}

#[test]
fn a_token_is_redacted_where_it_travels() {
    let token = tokens().sign(&claims()).unwrap();
    let text = format!("x {token} y?token={token}&z bearer.{token}, Bearer {token}");
    assert_eq!(redact(&text), "x *** y?token=***&z bearer.***, Bearer ***");
}

/// A change that a text of ASCII can have.
fn mutated(token: &str, at: usize, kind: u8, byte: u8) -> String {
    let mut bytes = token.as_bytes().to_vec();
    let at = at % bytes.len();
    match kind {
        0 => bytes[at] = byte,
        1 => bytes.insert(at, byte),
        2 => drop(bytes.remove(at)),
        3 => bytes.truncate(at),
        4 => bytes.swap(at, 0),
        _ => bytes.push(byte),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_text_never_verifies(text in ".*|[A-Za-z0-9_-]*\\.[A-Za-z0-9_-]*\\.[A-Za-z0-9_-]*") {
        prop_assert!(tokens().verify(&text, NOW).is_err());
    }

    #[test]
    fn no_mutation_of_a_good_token_verifies(
        changes in prop::collection::vec((any::<usize>(), 0..6_u8, any::<u8>()), 1..4)
    ) {
        let tokens = tokens();
        let token = tokens.sign(&claims()).unwrap();
        let mut changed = token.clone();
        for (at, kind, byte) in changes {
            if !changed.is_empty() {
                changed = mutated(&changed, at, kind, byte);
            }
        }
        prop_assume!(changed != token);
        prop_assert!(tokens.verify(&changed, NOW).is_err(), "{}", changed);
    }

    #[test]
    fn no_single_character_can_be_another(at in any::<usize>(), byte in "[A-Za-z0-9_-]") {
        let tokens = tokens();
        let token = tokens.sign(&claims()).unwrap();
        let changed = mutated(&token, at, 0, byte.as_bytes()[0]);
        prop_assume!(changed != token);
        prop_assert!(tokens.verify(&changed, NOW).is_err(), "{}", changed);
    }

    #[test]
    fn keys_of_random_json_never_panic(
        text in "\\PC*",
        keys in prop::collection::vec(
            ("[0-9a-f]{15,17}", any::<u64>(), "[A-Za-z0-9+/]{0,60}={0,2}"),
            0..3,
        ),
    ) {
        let keys = keys.into_iter();
        let keys = keys.map(|(kid, made, secret)| json!({"kid": kid, "made": made, "secret": secret}));
        let stored = json!({"version": 1, "keys": keys.collect::<Vec<_>>()});
        for json in [text, stored.to_string()] {
            let _ = SigningKeys::from_json(json.as_bytes());
        }
    }
}
