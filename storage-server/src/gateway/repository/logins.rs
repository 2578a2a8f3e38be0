//! The tokens of recent logins, so that a script that logs in for each request is not a token more each time: a user may
//! have a bounded number of them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

/// For so long a login gives the token of the one before.
const REUSED_FOR: Duration = Duration::from_secs(3600);
/// The most users that are remembered.
const USERS_MAX: usize = 1_000;

struct Login {
    token: Zeroizing<String>,
    at: Instant,
}

/// See the module. Who is given a token has shown the password each time.
#[derive(Default)]
pub(super) struct Logins(Mutex<HashMap<String, Login>>);

impl std::fmt::Debug for Logins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logins").finish_non_exhaustive()
    }
}

impl Logins {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Login>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of this user's last login, if that was not long ago. It may have been revoked since.
    pub(super) fn recent(&self, user: &str) -> Option<Zeroizing<String>> {
        let all = self.all();
        let login = all.get(user)?;
        (login.at.elapsed() < REUSED_FOR).then(|| login.token.clone())
    }

    pub(super) fn remember(&self, user: &str, token: &str) {
        let mut all = self.all();
        if all.len() >= USERS_MAX {
            all.retain(|_, login| login.at.elapsed() < REUSED_FOR);
        }
        // Where there are still too many, whoever logs in next gets a token of its own.
        if all.len() < USERS_MAX || all.contains_key(user) {
            let login = Login {
                token: Zeroizing::new(token.to_owned()),
                at: Instant::now(),
            };
            all.insert(user.to_owned(), login);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_of_each_user_is_remembered_within_a_bound() {
        let logins = Logins::default();
        assert!(logins.recent("a").is_none());
        for token in ["one", "two"] {
            logins.remember("a", token);
        }
        assert_eq!(logins.recent("a").unwrap().as_str(), "two");
        for n in 0..2 * USERS_MAX {
            logins.remember(&n.to_string(), "t");
        }
        assert_eq!(logins.all().len(), USERS_MAX);
        logins.remember("a", "three");
        assert_eq!(logins.recent("a").unwrap().as_str(), "three");
    }
}
