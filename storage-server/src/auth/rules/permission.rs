//! What a rule can give: four permissions, and sets of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::RuleError;
use crate::auth::text::quoted;

/// What a principal may do. Written as a word in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Permission {
    /// Get and scan keys.
    Read,
    /// Commit to keys.
    Write,
    /// Follow the changes of keys.
    Watch,
    /// Administer the keyspace as a whole.
    Admin,
}

impl Permission {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Watch, Self::Admin];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Watch => "watch",
            Self::Admin => "admin",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::Watch => 4,
            Self::Admin => 8,
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Permission {
    type Err = RuleError;

    fn from_str(word: &str) -> Result<Self, RuleError> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == word);
        found.ok_or_else(|| RuleError::Permission {
            shown: quoted(word),
        })
    }
}

impl TryFrom<String> for Permission {
    type Error = RuleError;

    fn try_from(word: String) -> Result<Self, RuleError> {
        word.parse()
    }
}

impl From<Permission> for String {
    fn from(permission: Permission) -> Self {
        permission.as_str().to_owned()
    }
}

/// A set of permissions. Written as a list of their words; an empty list is refused.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "Vec<String>", into = "Vec<Permission>")]
pub struct Permissions(u8);

impl Permissions {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Permission::ALL.into_iter().collect()
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn contains(self, permission: Permission) -> bool {
        self.0 & permission.bit() != 0
    }

    /// Whether all of the others are among them.
    #[must_use]
    pub fn contains_all(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// These but for one.
    #[must_use]
    pub fn without(self, permission: Permission) -> Self {
        Self(self.0 & !permission.bit())
    }

    /// Each of them, in the order of [`Permission::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        let all = Permission::ALL.into_iter();
        all.filter(move |permission| self.contains(*permission))
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        let bits = permissions.into_iter().map(Permission::bit);
        Self(bits.fold(0, |all, bit| all | bit))
    }
}

/// As in a sentence: "read, write and watch".
impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.iter().map(Permission::as_str).collect();
        match words.split_last() {
            None => f.write_str("nothing"),
            Some((last, [])) => f.write_str(last),
            Some((last, others)) => write!(f, "{} and {last}", others.join(", ")),
        }
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl TryFrom<Vec<String>> for Permissions {
    type Error = RuleError;

    fn try_from(words: Vec<String>) -> Result<Self, RuleError> {
        if words.is_empty() {
            return Err(RuleError::NoPermission);
        }
        words.iter().map(|word| word.parse()).collect()
    }
}

impl From<Permissions> for Vec<Permission> {
    fn from(permissions: Permissions) -> Self {
        permissions.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Permission::{Admin, Read, Watch, Write};
    use super::*;

    fn parse(json: &str) -> Result<Permissions, serde_json::Error> {
        serde_json::from_str(json)
    }

    fn set(permissions: &[Permission]) -> Permissions {
        permissions.iter().copied().collect()
    }

    #[test]
    fn a_set_is_written_as_a_list_of_words_in_one_order() {
        let parsed = parse(r#"["watch", "read", "watch"]"#).unwrap();
        assert_eq!(parsed, set(&[Read, Watch]));
        assert_eq!(
            serde_json::to_string(&parsed).unwrap(),
            r#"["read","watch"]"#
        );
        for bits in 1..16 {
            let permissions = Permissions(bits);
            let written = serde_json::to_string(&permissions).unwrap();
            assert_eq!(parse(&written).unwrap(), permissions);
        }
    }

    #[test]
    fn an_unknown_word_and_an_empty_list_are_told_with_what_is_allowed() {
        for word in ["reed", "Read", "", "*", "read "] {
            let error = parse(&format!("[\"read\", \"{word}\"]"))
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(&format!("{word:?} is no permission")),
                "{error}"
            );
            assert!(
                error.contains(r#""read", "write", "watch" and "admin""#),
                "{error}"
            );
        }
        let error = parse("[]").unwrap_err().to_string();
        assert!(error.contains("at least one of"), "{error}");
        assert!(parse("\"read\"").is_err() && parse("[1]").is_err() && parse("null").is_err());
    }

    #[test]
    fn a_single_permission_is_a_word() {
        assert_eq!(serde_json::to_string(&Watch).unwrap(), "\"watch\"");
        assert_eq!(
            serde_json::from_str::<Permission>("\"admin\"").unwrap(),
            Admin
        );
        assert!(serde_json::from_str::<Permission>("\"all\"").is_err());
    }

    #[test]
    fn sets_contain_what_they_were_made_of() {
        let both = set(&[Read, Admin]);
        assert!(both.contains(Read) && !both.contains(Write));
        assert!(both.contains_all(set(&[Admin])) && !both.contains_all(set(&[Admin, Write])));
        assert!(both.contains_all(Permissions::NONE) && Permissions::all().contains_all(both));
        assert_eq!(both.without(Admin), set(&[Read]));
        assert_eq!(both.without(Write), both);
        assert!(Permissions::NONE.is_empty() && !both.is_empty());
    }

    #[test]
    fn a_set_reads_as_in_a_sentence() {
        assert_eq!(
            Permissions::all().to_string(),
            "read, write, watch and admin"
        );
        assert_eq!(set(&[Write, Watch]).to_string(), "write and watch");
        assert_eq!(set(&[Admin]).to_string(), "admin");
        assert_eq!(Permissions::NONE.to_string(), "nothing");
        assert_eq!(format!("{:?}", set(&[Read, Admin])), "{Read, Admin}");
    }
}
