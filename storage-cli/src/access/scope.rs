//! What a rule or a grant of a token is about, as arguments: KEYSPACE[:PREFIX], and permissions.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Permission {
    Read,
    Write,
    Watch,
    /// The keyspace as a whole
    Admin,
}

impl Permission {
    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Watch => "watch",
            Self::Admin => "admin",
        }
    }
}

/// A list of them: at least one, each once, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permissions(Vec<Permission>);

impl Permissions {
    pub(crate) fn words(&self) -> Vec<&'static str> {
        self.0.iter().map(|permission| permission.word()).collect()
    }

    /// Those that these words name, without these; words that are none stay.
    pub(crate) fn taken_from<'a>(&self, words: &'a [String]) -> Vec<&'a str> {
        let stays = |word: &&String| !self.0.iter().any(|taken| taken.word() == word.as_str());
        words.iter().filter(stays).map(String::as_str).collect()
    }

    /// With those that these words name as well.
    pub(crate) fn and(&self, words: &[String]) -> Self {
        let is_named = |permission: &Permission| words.iter().any(|word| word == permission.word());
        let all = Permission::value_variants().iter().copied();
        Self(
            all.filter(|one| self.0.contains(one) || is_named(one))
                .collect(),
        )
    }
}

impl FromStr for Permissions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut permissions = Vec::new();
        for word in text.split(',') {
            let all = Permission::value_variants().iter().copied();
            let permission = all.into_iter().find(|known| known.word() == word);
            permissions.push(permission.ok_or_else(|| {
                format!("{word:?} is no permission; a list has some of read,write,watch,admin")
            })?);
        }
        permissions.sort();
        permissions.dedup();
        Ok(Self(permissions))
    }
}

/// Keys of keyspaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    /// A name or a pattern of names; not empty.
    pub(crate) keyspace: String,
    pub(crate) prefix: String,
}

impl FromStr for Scope {
    type Err = String;

    /// A prefix may have colons; no keyspace has.
    fn from_str(text: &str) -> Result<Self, String> {
        let (keyspace, prefix) = text.split_once(':').unwrap_or((text, ""));
        match keyspace {
            "" => Err("no keyspace is named; expected KEYSPACE or KEYSPACE:PREFIX".to_owned()),
            keyspace => Ok(Self {
                keyspace: keyspace.to_owned(),
                prefix: prefix.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.as_str() {
            "" => f.write_str(&self.keyspace),
            prefix => write!(f, "{}:{prefix}", self.keyspace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyspace_ends_at_the_first_colon() {
        for (text, keyspace, prefix) in [
            ("models", "models", ""),
            ("models:", "models", ""),
            ("models:a/", "models", "a/"),
            ("m*:a:b:", "m*", "a:b:"),
        ] {
            let scope: Scope = text.parse().unwrap();
            assert_eq!(
                (scope.keyspace.as_str(), scope.prefix.as_str()),
                (keyspace, prefix)
            );
        }
        assert!(":a".parse::<Scope>().unwrap_err().contains("no keyspace"));
        assert!("".parse::<Scope>().is_err());
    }

    #[test]
    fn permissions_are_listed_once_and_in_their_order() {
        let permissions: Permissions = "watch,read,watch".parse().unwrap();
        assert_eq!(permissions.words(), ["read", "watch"]);
        let more = permissions.and(&["admin".to_owned(), "future".to_owned()]);
        assert_eq!(more.words(), ["read", "watch", "admin"]);
        let words = ["read", "write", "future"].map(str::to_owned);
        assert_eq!(permissions.taken_from(&words), ["write", "future"]);
        for bad in ["", "reed", "read,", "Read", "read write", "read\u{1b}"] {
            let error = bad.parse::<Permissions>().unwrap_err();
            assert!(
                error.contains("is no permission") && !error.contains('\u{1b}'),
                "{error}"
            );
        }
    }
}
