//! `GET /users/NAME/token`: a token for whoever asks, and for nobody else.
//!
//! `ttl` is its life in seconds. `scope`, `action` and `specific` narrow what it allows, as far as access rules can say it: to
//! types, to reading or to all, and to the keys that begin with a text. It never allows more than whoever asks may.

use std::time::Duration;

use axum::extract::{Path, Query};
use hyper::header::{HeaderMap, HeaderValue};
use serde_json::json;
use storage_protocol::Keyspace;

use super::answer::{Answer, Fault, ok};
use super::info;
use super::login::Visitor;
use super::objects::check_type;
use crate::auth::rules::{KeyspacePattern, Permission, Permissions, Rule, Subject};
use crate::gateway::{MintError, TokenWish};

/// Of a token that says nothing else.
const LIFE: Duration = Duration::from_secs(3600);
/// How tokens of this gateway are called where tokens are listed.
const NAME: &str = "events";
/// Actions that only look.
const READING: [&str; 2] = ["get", "list"];

type Pairs = Vec<(String, String)>;

pub(super) async fn token(
    visitor: Visitor,
    Path(name): Path<String>,
    query: Result<Query<Pairs>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    check_no_other_page(&headers)?;
    let Query(pairs) = query.map_err(|error| Fault::bad(error.body_text()))?;
    let principal = visitor.caller.identity.principal();
    let own = principal.as_str().split_once(':').map(|(_, name)| name);
    if own != Some(name.as_str()) {
        return Err(Fault::forbidden(format!(
            "{principal} gets no token for {name}: everybody gets one of its own"
        )));
    }
    let wish = wish(&pairs, &visitor.state.config.keyspace)?;
    let minted = visitor.caller.mint(wish).await.map_err(refused)?;
    let answer = json!({ "Token": minted.token, "Info": info::text(&visitor).await? });
    ok(answer.to_string())
}

/// That it is not a page of another site that asks, with what the browser adds by itself: a certificate or a password. It
/// could not read the token, but each of them counts until it expires.
fn check_no_other_page(headers: &HeaderMap) -> Result<(), Fault> {
    let from = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    match from {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(Fault::forbidden("a page of another site gets no token")),
    }
}

fn refused(error: MintError) -> Fault {
    let message = error.to_string();
    match error {
        MintError::NotAllowed(_) => Fault::forbidden(message),
        MintError::Wish(_) => Fault::bad(message),
        MintError::Full(_) => Fault::conflict(message),
        MintError::Storage(error) => error.into(),
        _ => Fault::for_now(message),
    }
}

fn wish(pairs: &Pairs, keyspace: &Keyspace) -> Result<TokenWish, Fault> {
    let get = |wanted: &str| {
        let mut pairs = pairs.iter();
        let (_, value) = pairs.find(|(name, _)| name == wanted)?;
        (!value.is_empty()).then_some(value.as_str())
    };
    let ttl = match get("ttl") {
        None => LIFE,
        Some(ttl) => {
            let seconds = ttl.parse::<u64>();
            let bad = |_| Fault::bad(format!("ttl is a number of seconds, not {ttl:?}"));
            Duration::from_secs(seconds.map_err(bad)?)
        }
    };
    // Roles here are of rules, which a token cannot choose among: less than was asked for would be worse than none.
    if let Some(roles) = get("roles") {
        return Err(Fault::invalid(format!(
            "roles={roles:?}: a token cannot be narrowed to roles; use scope, action and specific"
        )));
    }
    let narrowed = ["scope", "action", "specific"].map(get);
    let grants = match narrowed {
        [None, None, None] => Vec::new(),
        [scope, action, specific] => grants(keyspace, scope, action, specific)?,
    };
    Ok(TokenWish {
        ttl,
        name: Some(NAME.to_owned()),
        grants,
        short: false,
    })
}

/// What a token may do: one rule for each type.
fn grants(
    keyspace: &Keyspace,
    scope: Option<&str>,
    action: Option<&str>,
    specific: Option<&str>,
) -> Result<Vec<Rule>, Fault> {
    let is_reading = action.is_some_and(|actions| {
        let mut actions = actions.split(',').map(str::trim);
        actions.all(|action| READING.contains(&action))
    });
    let allow: Permissions = match is_reading {
        true => [Permission::Read].into_iter().collect(),
        // Who changes an object reads it, and is told of what it does.
        false => [Permission::Read, Permission::Write, Permission::Watch]
            .into_iter()
            .collect(),
    };
    let key = specific.filter(|key| *key != "*");
    let prefixes = match (scope.filter(|scope| *scope != "*"), key) {
        (None, None) => vec![String::new()],
        (None, Some(_)) => {
            return Err(Fault::invalid(
                "specific: it is for a scope, which is missing",
            ));
        }
        (Some(scope), key) => {
            let types = scope.split(',').map(str::trim);
            types
                .map(|kind| {
                    check_type(kind)
                        .map_err(|_| Fault::invalid(format!("scope: {kind:?} is no type")))?;
                    Ok(format!("{kind}/{}", key.unwrap_or_default()))
                })
                .collect::<Result<Vec<_>, Fault>>()?
        }
    };
    let invalid = |error: &dyn ToString| Fault::invalid(error.to_string());
    let principal: Subject = "*".parse().map_err(|error| invalid(&error))?;
    let keyspace = KeyspacePattern::parse(keyspace.as_str()).map_err(|error| invalid(&error))?;
    prefixes
        .iter()
        .map(|prefix| {
            let rule = Rule::new(principal.clone(), keyspace.clone(), prefix, allow);
            rule.map_err(|error| invalid(&error))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn wished(query: &[(&str, &str)]) -> Result<(u64, Vec<Value>), Fault> {
        let pairs: Pairs = query
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let wish = wish(&pairs, &Keyspace::new("events").unwrap())?;
        let rules = wish.grants.iter().map(|rule| json!(rule)).collect();
        Ok((wish.ttl.as_secs(), rules))
    }

    #[test]
    fn a_page_of_another_site_gets_none() {
        let may = |site: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("sec-fetch-site", HeaderValue::from_static(site));
            check_no_other_page(&headers).is_ok()
        };
        assert!(
            may("same-origin") && may("none") && check_no_other_page(&HeaderMap::new()).is_ok()
        );
        assert!(!may("cross-site") && !may("same-site") && !may(""));
    }

    #[test]
    fn a_token_is_as_wide_as_its_minter_unless_it_is_narrowed() {
        assert_eq!(wished(&[]).unwrap(), (3600, vec![]));
        assert_eq!(wished(&[("ttl", "600")]).unwrap(), (600, vec![]));
        let rule = |prefix: &str, allow: &[&str]| match prefix {
            "" => json!({ "principal": "*", "keyspace": "events", "allow": allow }),
            prefix => {
                json!({ "principal": "*", "keyspace": "events", "prefix": prefix, "allow": allow })
            }
        };
        let all = ["read", "write", "watch"];
        let (_, rules) = wished(&[
            ("scope", "users"),
            ("action", "password"),
            ("specific", "fred"),
        ])
        .unwrap();
        assert_eq!(rules, [rule("users/fred", &all)]);
        let (_, rules) = wished(&[("scope", "profiles,machines"), ("action", "get,list")]).unwrap();
        assert_eq!(
            rules,
            [rule("profiles/", &["read"]), rule("machines/", &["read"])]
        );
        let (_, rules) = wished(&[("scope", "*"), ("action", "*"), ("specific", "*")]).unwrap();
        assert_eq!(rules, [rule("", &all)]);
        let (_, rules) = wished(&[("action", "get,create")]).unwrap();
        assert_eq!(rules, [rule("", &all)]);
    }

    #[test]
    fn what_cannot_be_narrowed_is_refused() {
        for query in [
            [("ttl", "x"), ("a", "b")],
            [("ttl", "-1"), ("a", "b")],
            [("roles", "superuser"), ("a", "b")],
            [("specific", "fred"), ("action", "get")],
            [("scope", "a/b"), ("specific", "fred")],
        ] {
            assert!(wished(&query).is_err(), "{query:?}");
        }
    }
}
