//! Finds the credential in a request: in `Authorization`, in the query, or in the list of WebSocket subprotocols.
//!
//! A browser can set no header for a WebSocket, so a page gives its token as a subprotocol, or in the query. What is
//! found is not checked here: a token that is empty or far too long is handed on, and refused by
//! [`Tokens::verify`](super::Tokens::verify), so that a bad credential is never taken for none.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::TOKEN_BYTES_MAX;

/// The names of a query's parameters that have a token; [`redact`](super::redact()) knows these.
pub(crate) const TOKEN_PARAMETERS: &[&str] = &["token", "access_token"];

/// What stands before a token in a list of subprotocols.
const SUBPROTOCOL_PREFIX: &str = "bearer.";
/// The longest `Authorization`, in bytes.
const AUTHORIZATION_BYTES_MAX: usize = 8192;
/// The longest user of HTTP Basic, in bytes.
const USER_BYTES_MAX: usize = 256;
/// The longest password of HTTP Basic, in bytes.
const PASSWORD_BYTES_MAX: usize = 1024;
/// The longest encoded name of a parameter that is looked at.
const NAME_BYTES_MAX: usize = 256;

/// With or without padding: RFC 7617 wants it, and some clients leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a peer shows in `Authorization`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential<'a> {
    /// A token (RFC 6750), not checked yet.
    Bearer(&'a str),
    /// A user and a password (RFC 7617).
    Basic {
        /// 1 to 256 bytes, without a colon.
        user: String,
        /// At most 1024 bytes; may be empty.
        password: Zeroizing<String>,
    },
}

impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bearer(_) => f.write_str("Bearer(***)"),
            Self::Basic { user, .. } => f
                .debug_struct("Basic")
                .field("user", user)
                .finish_non_exhaustive(),
        }
    }
}

/// Why an `Authorization` has no credential. No text of it has any part of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CredentialError {
    /// Neither `Bearer` nor `Basic`. A server may choose to take it for none.
    #[error("the scheme of Authorization is neither Bearer nor Basic")]
    Scheme,
    /// Nothing is behind the scheme.
    #[error("Authorization has no credential behind its scheme")]
    Empty,
    /// The token has characters that no token has.
    #[error("the token in Authorization has a space, a control character or one that is not ASCII")]
    Token,
    /// The header, the user or the password is too long.
    #[error(
        "Authorization is too long: a user has at most 256 bytes, a password 1024, all of it 8192"
    )]
    TooLong,
    /// Behind `Basic` is no base64.
    #[error("the credential of Basic is not base64")]
    NotBase64,
    /// The decoded text is not UTF-8.
    #[error("user and password of Basic are not UTF-8")]
    NotUtf8,
    /// There is no colon between user and password.
    #[error("the credential of Basic has no colon between user and password")]
    NoColon,
    /// The user has no name.
    #[error("the user of Basic is empty")]
    NoUser,
}

/// The credential of an `Authorization` header's value.
///
/// # Errors
/// See [`CredentialError`].
pub(crate) fn from_authorization(value: &str) -> Result<Credential<'_>, CredentialError> {
    if value.len() > AUTHORIZATION_BYTES_MAX {
        return Err(CredentialError::TooLong);
    }
    let value = value.trim_matches([' ', '\t']);
    let (scheme, rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    let rest = rest.trim_start_matches([' ', '\t']);
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    if !is_bearer && !scheme.eq_ignore_ascii_case("basic") {
        return Err(CredentialError::Scheme);
    }
    if rest.is_empty() {
        return Err(CredentialError::Empty);
    }
    if !is_bearer {
        return basic(rest);
    }
    match rest.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Credential::Bearer(rest)),
        false => Err(CredentialError::Token),
    }
}

/// The user and the password behind the word `Basic`.
///
/// # Errors
/// See [`CredentialError`].
pub(crate) fn basic(encoded: &str) -> Result<Credential<'static>, CredentialError> {
    if encoded.len() > AUTHORIZATION_BYTES_MAX {
        return Err(CredentialError::TooLong);
    }
    let decoded = BASE64.decode(encoded);
    let decoded = Zeroizing::new(decoded.map_err(|_| CredentialError::NotBase64)?);
    let decoded = str::from_utf8(&decoded).map_err(|_| CredentialError::NotUtf8)?;
    let (user, password) = decoded.split_once(':').ok_or(CredentialError::NoColon)?;
    if user.is_empty() {
        return Err(CredentialError::NoUser);
    }
    if user.len() > USER_BYTES_MAX || password.len() > PASSWORD_BYTES_MAX {
        return Err(CredentialError::TooLong);
    }
    Ok(Credential::Basic {
        user: user.to_owned(),
        password: Zeroizing::new(password.to_owned()),
    })
}

/// Whether an entry of the list of subprotocols is a token.
#[must_use]
pub(crate) fn is_token(entry: &str) -> bool {
    entry.starts_with(SUBPROTOCOL_PREFIX)
}

/// The token among the subprotocols that a client offers, as `bearer.TOKEN`: the first. `None` if there is no such
/// entry.
///
/// The entry is never to be chosen as the subprotocol: the answer would show the token.
#[must_use]
pub(crate) fn from_subprotocols(offered: &[String]) -> Option<&str> {
    let mut offered = offered.iter();
    offered.find_map(|entry| entry.strip_prefix(SUBPROTOCOL_PREFIX))
}

/// The token of a query, without its `?`: the value of the first parameter with one of `names`, which are
/// [`TOKEN_PARAMETERS`] or some of them, in any case. `None` if there is no such parameter; empty if it has no value.
#[must_use]
pub(crate) fn from_query<'a>(query: &'a str, names: &[&str]) -> Option<Cow<'a, str>> {
    let has_name = |name: &str| {
        let name = percent_decode_str(name).decode_utf8_lossy();
        names.iter().any(|known| name.eq_ignore_ascii_case(known))
    };
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name.len() > NAME_BYTES_MAX || !has_name(name) {
            continue;
        }
        // Too long for a token even when decoded: it is refused for its length as it stands.
        return match value.len() > 3 * TOKEN_BYTES_MAX {
            true => Some(Cow::Borrowed(value)),
            false => Some(percent_decode_str(value).decode_utf8_lossy()),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn basic_of(decoded: impl AsRef<[u8]>) -> Result<(String, String), CredentialError> {
        let value = format!("Basic {}", STANDARD.encode(decoded));
        match from_authorization(&value)? {
            Credential::Basic { user, password } => Ok((user, password.to_string())),
            Credential::Bearer(_) => panic!("a bearer"),
        }
    }

    fn pair(user: &str, password: &str) -> Result<(String, String), CredentialError> {
        Ok((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn bearer_in_any_case() {
        for value in ["Bearer a.b.c", "bearer a.b.c", " BEARER \t a.b.c "] {
            assert_eq!(from_authorization(value), Ok(Credential::Bearer("a.b.c")));
        }
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        let value = format!("Bearer {long}");
        assert_eq!(from_authorization(&value), Ok(Credential::Bearer(&long)));
    }

    #[test]
    fn authorization_without_a_credential_says_why() {
        for (value, error) in [
            ("", CredentialError::Scheme),
            ("garbage", CredentialError::Scheme),
            ("Digest x", CredentialError::Scheme),
            ("Bearerx y", CredentialError::Scheme),
            ("Bearer", CredentialError::Empty),
            ("Basic  ", CredentialError::Empty),
            ("Bearer a b", CredentialError::Token),
            ("Bearer \u{e4}", CredentialError::Token),
            ("Basic a:b", CredentialError::NotBase64),
            ("Basic YTpi YTpi", CredentialError::NotBase64),
        ] {
            assert_eq!(from_authorization(value), Err(error), "{value}");
        }
        let value = format!("Bearer {}", "x".repeat(AUTHORIZATION_BYTES_MAX));
        assert_eq!(from_authorization(&value), Err(CredentialError::TooLong));
    }

    #[test]
    fn basic_has_user_and_password() {
        assert_eq!(basic_of("ann:secret"), pair("ann", "secret"));
        assert_eq!(basic_of("ann:"), pair("ann", ""));
        assert_eq!(basic_of("ann:a:b:"), pair("ann", "a:b:"));
        assert_eq!(basic_of("zoë:пароль"), pair("zoë", "пароль"));
        let unpadded = from_authorization("basic YTpi").unwrap();
        assert_eq!(unpadded, from_authorization("BASIC  YTpi").unwrap());
        assert!(from_authorization("Basic YTpiYw").is_ok());
        assert!(from_authorization("Basic YTpiYw==").is_ok());
    }

    #[test]
    fn basic_that_is_wrong_says_why() {
        assert_eq!(basic_of(b"ann:\xff\xfe"), Err(CredentialError::NotUtf8));
        assert_eq!(basic_of("ann"), Err(CredentialError::NoColon));
        assert_eq!(basic_of(":secret"), Err(CredentialError::NoUser));
        assert_eq!(basic_of(":"), Err(CredentialError::NoUser));
        let (user, password) = ("u".repeat(256), "p".repeat(1024));
        let longest = format!("{user}:{password}");
        assert_eq!(basic_of(&longest), pair(&user, &password));
        for longer in [
            format!("u{user}:"),
            format!("a:p{password}"),
            "a:".to_owned() + &"p".repeat(5_000),
            "a:".to_owned() + &"p".repeat(10_000),
        ] {
            assert_eq!(basic_of(longer), Err(CredentialError::TooLong));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!(
            "{:?} {:?}",
            from_authorization("Bearer Top5ecret"),
            from_authorization(&format!("Basic {}", STANDARD.encode("ann:Top5ecret")))
        );
        assert!(
            shown.contains("ann") && !shown.contains("Top5ecret"),
            "{shown}"
        );
    }

    #[test]
    fn the_token_among_subprotocols() {
        let find = |offered: &[&str]| {
            let offered: Vec<_> = offered.iter().map(|entry| (*entry).to_owned()).collect();
            from_subprotocols(&offered).map(str::to_owned)
        };
        assert_eq!(find(&[]), None);
        assert_eq!(find(&["storage-sync.v1", "bearer", "xbearer.a"]), None);
        assert_eq!(find(&["storage-sync.v1", "bearer.a.b.c"]).unwrap(), "a.b.c");
        assert_eq!(find(&["bearer.one", "bearer.two"]).unwrap(), "one");
        assert_eq!(find(&["bearer."]).unwrap(), "");
    }

    #[test]
    fn the_token_of_a_query() {
        let find = |query| from_query(query, TOKEN_PARAMETERS);
        assert_eq!(find(""), None);
        assert_eq!(find("a=token&tokens=x&my_token=y"), None);
        assert_eq!(find("a=1&token=a.b.c&b=2").unwrap(), "a.b.c");
        assert_eq!(find("Token=a.b.c").unwrap(), "a.b.c");
        assert_eq!(find("%74oken=a%2Eb%2Ec").unwrap(), "a.b.c");
        assert_eq!(find("access%5ftoken=a=b").unwrap(), "a=b");
        assert_eq!(find("token=one&token=two").unwrap(), "one");
        assert_eq!(from_query("token=a", &["access_token"]), None);
        // Bad ones are found too, so that they are refused, not overlooked.
        assert_eq!(find("a=1&token").unwrap(), "");
        assert_eq!(find("token=%ff%zz").unwrap(), "\u{fffd}%zz");
        let long = "%41".repeat(TOKEN_BYTES_MAX) + "B";
        let query = format!("token={long}");
        assert_eq!(find(&query).unwrap(), long.as_str());
        let query = format!("{}=x", "%74oken".repeat(100));
        assert_eq!(find(&query), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*", more in "(?i)(bearer|basic) (.*|[A-Za-z0-9+/=]*)", query in "([a-z%=&]|token)*") {
            let _ = from_authorization(&text);
            let _ = from_authorization(&more);
            let _ = from_query(&text, TOKEN_PARAMETERS);
            let _ = from_query(&query, TOKEN_PARAMETERS);
        }

        #[test]
        fn basic_says_what_was_encoded(user in "[^:]{1,60}", password in ".{0,200}") {
            prop_assert_eq!(basic_of(format!("{user}:{password}")), pair(&user, &password));
        }
    }
}
