//! What nobody may read: the keyspace `system.secrets`, as the server itself uses it.
//!
//! | key | value |
//! | --- | --- |
//! | `keys` | the secrets that tokens are signed with |
//! | `instance` | the random id of this store's tokens |
//! | `example/NAME` | the example password that a user of `--demo` was made with, which is in the documentation |
//! | `gateway/NAME` | when a gateway last set the password of a user, which it may change as long as nobody else did |
//! | `passwords/NAME` | when a user's password was set (as its record in `system` says), and its hash (Argon2id, PHC string) |

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, KeyState, Result, ScanItem, ScanOptions, Storage,
    StorageError, StorageExt,
};

use tokio::sync::{Mutex, MutexGuard};

use super::credentials::now;
use super::passwords;
use super::tokens::{Claims, SigningKeys, TokenError, Tokens, UnixSeconds};
use crate::engine::SessionStorage;

const KEYS: &str = "keys";
const INSTANCE: &str = "instance";

/// The longest time that a token is good for.
pub(crate) const TOKEN_LIFE_MAX: Duration = Duration::from_secs(400 * 24 * 3600);

/// See the module.
#[derive(Debug)]
pub(crate) struct Secrets {
    storage: Arc<dyn SessionStorage>,
    /// `None`: no token was ever minted.
    tokens: RwLock<Option<Tokens>>,
    /// One at a time makes or rotates the keys.
    changing: Mutex<()>,
    /// One at a time changes a user, whose record and hash are in two keyspaces.
    users: Mutex<()>,
}

/// Why a signing key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// There is none yet.
    First,
    /// It takes the place of the one before, which still verifies.
    Next,
    /// No other is good any more.
    Only,
}

const PASSWORDS: &str = "passwords/";
const DEMO: &str = "example/";
const GATEWAY: &str = "gateway/";

fn password_key(user: &str) -> Key {
    Key::from(format!("{PASSWORDS}{user}"))
}

fn failed(error: impl std::fmt::Display) -> StorageError {
    StorageError::Internal {
        message: format!("the signing keys of tokens: {error}"),
        outcome: storage_protocol::Outcome::NotExecuted,
    }
}

impl Secrets {
    /// Reads the signing keys, if there are any. `storage` is the server's own.
    pub(crate) async fn open(storage: Arc<dyn SessionStorage>) -> Result<Self> {
        let read = storage.get(&[KEYS.into(), INSTANCE.into()]).await?.value;
        let tokens = match &read[..] {
            [Some(keys), Some(instance)] => {
                let keys = SigningKeys::from_json(&keys.value).map_err(failed)?;
                let instance = String::from_utf8(instance.value.to_vec()).map_err(failed)?;
                Some(Tokens::new(keys, instance).map_err(failed)?)
            }
            _ => None,
        };
        Ok(Self {
            storage,
            tokens: RwLock::new(tokens),
            changing: Mutex::default(),
            users: Mutex::default(),
        })
    }

    fn tokens(&self) -> Option<Tokens> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.clone()
    }

    pub(super) fn verify(&self, token: &str, now: UnixSeconds) -> Result<Claims, TokenError> {
        let tokens = self.tokens().ok_or(TokenError::UnknownKey)?;
        tokens.verify(token, now)
    }

    /// The token with these claims, in the short form or as a JWT. The first one makes the keys.
    pub(crate) async fn sign(&self, claims: &Claims, short: bool) -> Result<String> {
        let tokens = match self.tokens() {
            Some(tokens) => tokens,
            None => self.change(Change::First).await?,
        };
        let signed = match short {
            true => tokens.sign_short(claims),
            false => tokens.sign(claims),
        };
        signed.map_err(failed)
    }

    /// Tokens are signed with a new key from now on; those that are out stay good.
    pub(crate) async fn rotate(&self) -> Result<()> {
        self.change(Change::Next).await.map(drop)
    }

    /// Tokens are signed with a new key, and those that are out are good for nothing from now on.
    pub(crate) async fn replace(&self) -> Result<()> {
        self.change(Change::Only).await.map(drop)
    }

    /// Makes a new key if it is still needed, now that nobody else makes one.
    async fn change(&self, change: Change) -> Result<Tokens> {
        let _one = self.changing.lock().await;
        let (keys, instance) = match (self.tokens(), change) {
            (Some(tokens), Change::First) => return Ok(tokens),
            (Some(tokens), Change::Only) => {
                let keys = SigningKeys::generate(UnixSeconds(now())).map_err(failed)?;
                (keys, tokens.instance().to_owned())
            }
            (Some(tokens), Change::Next) => {
                let keys = tokens.keys().rotate(UnixSeconds(now()), TOKEN_LIFE_MAX);
                (keys.map_err(failed)?, tokens.instance().to_owned())
            }
            (None, _) => {
                let keys = SigningKeys::generate(UnixSeconds(now())).map_err(failed)?;
                (keys, hex::encode(rand::random::<[u8; 16]>()))
            }
        };
        let batch = Batch::new()
            .put(KEYS, keys.to_json().to_vec())
            .put(INSTANCE, instance.clone());
        let options = CommitOptions {
            label: Some("signing keys".to_owned()),
            ..CommitOptions::default()
        };
        self.storage.commit(batch, options).await?;
        let tokens = Tokens::new(keys, instance).map_err(failed)?;
        let mut known = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        *known = Some(tokens.clone());
        Ok(tokens)
    }

    /// Held by whoever changes a user's record and its hash together.
    pub(crate) async fn change_users(&self) -> MutexGuard<'_, ()> {
        self.users.lock().await
    }

    /// When a user's password was set, as its record says, and its hash.
    pub(super) async fn password_of(&self, user: &str) -> Result<Option<(u64, String)>, String> {
        let entry = self.storage.get_one(password_key(user)).await;
        let entry = entry.map_err(|error| error.to_string())?;
        let text = entry.and_then(|entry| String::from_utf8(entry.value.to_vec()).ok());
        Ok(text.and_then(|text| {
            let (set, hash) = text.split_once(' ')?;
            Some((set.parse().ok()?, hash.to_owned()))
        }))
    }

    pub(crate) async fn set_password(&self, user: &str, set: u64, hash: &str) -> Result<()> {
        let text = format!("{set} {hash}");
        self.storage.put(password_key(user), text.into()).await?;
        Ok(())
    }

    /// Notes that a user is made with this example password. It is no secret.
    pub(crate) async fn mark_demo_user(&self, user: &str, password: &str) -> Result<()> {
        let key = Key::from(format!("{DEMO}{user}"));
        self.storage.put(key, password.to_owned().into()).await?;
        Ok(())
    }

    /// Notes that a gateway set the password that a user has since then.
    pub(crate) async fn mark_gateway_user(&self, user: &str, set: u64) -> Result<()> {
        let key = Key::from(format!("{GATEWAY}{user}"));
        self.storage.put(key, set.to_string().into()).await?;
        Ok(())
    }

    /// When a gateway last set the password of a user.
    pub(crate) async fn gateway_user(&self, user: &str) -> Result<Option<u64>> {
        let key = Key::from(format!("{GATEWAY}{user}"));
        let entry = self.storage.get_one(key).await?;
        Ok(entry.and_then(|entry| str::from_utf8(&entry.value).ok()?.parse().ok()))
    }

    /// The users that were made with an example password, and that password.
    pub(crate) async fn demo_users(&self) -> Result<Vec<(String, String)>> {
        let scan = self
            .storage
            .scan(KeyRange::prefix(DEMO), ScanOptions::default());
        let items = scan.await?.collect().await?;
        let user = |item: ScanItem| {
            let KeyState::Live(entry) = item.state else {
                return None;
            };
            let name = str::from_utf8(item.key.get(DEMO.len()..)?).ok()?;
            let password = str::from_utf8(&entry.value).ok()?;
            Some((name.to_owned(), password.to_owned()))
        };
        Ok(items.into_iter().filter_map(user).collect())
    }

    /// Whether a user's password is this one, or it has none, as one has whose making was broken off. Takes a hash on
    /// purpose, on the thread of the caller.
    ///
    /// # Errors
    /// The stored hash cannot be read.
    pub(crate) async fn has_no_other_password(
        &self,
        user: &str,
        password: &str,
    ) -> std::result::Result<bool, String> {
        let Some((_, hash)) = self.password_of(user).await? else {
            return Ok(true);
        };
        passwords::verify(password.as_bytes(), &hash).map_err(|error| error.to_string())
    }

    /// That a user has an example password is not noted any more.
    pub(crate) async fn forget_demo_user(&self, user: &str) -> Result<()> {
        self.storage
            .remove(Key::from(format!("{DEMO}{user}")))
            .await?;
        Ok(())
    }

    /// Removes the hashes of users that there are not, which a removal or an addition left that failed half-way. To be
    /// called while nobody adds users.
    pub(crate) async fn remove_orphans(&self, is_user: impl Fn(&str) -> bool) -> Result<()> {
        let passwords = KeyRange::prefix(PASSWORDS);
        let mut scan = self.storage.scan(passwords, ScanOptions::default()).await?;
        while let Some(page) = scan.next_page().await? {
            for item in page {
                let user = item.key.get(PASSWORDS.len()..).unwrap_or_default();
                if !std::str::from_utf8(user).is_ok_and(&is_user) {
                    tracing::info!("removing the password of a user that there is not");
                    self.storage.remove(item.key).await?;
                }
            }
        }
        Ok(())
    }

    pub(crate) async fn remove_password(&self, user: &str) -> Result<()> {
        self.storage.remove(password_key(user)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::Keyspace;

    use super::*;
    use crate::auth::rules::SECRETS;
    use crate::testing::{MemoryEngine, server};

    #[tokio::test]
    async fn hashes_without_a_user_are_removed_and_no_others() {
        let shared = server(&MemoryEngine::new(), |_| {});
        let storage = shared
            .own_session(&Keyspace::new(SECRETS).unwrap())
            .storage();
        let secrets = Secrets::open(storage.clone()).await.unwrap();
        for user in ["ann", "bob"] {
            secrets.set_password(user, 1, "hash").await.unwrap();
        }
        storage
            .put(vec![b'p', 0xff].into(), "x".into())
            .await
            .unwrap();
        storage.put(KEYS.into(), "x".into()).await.unwrap();
        secrets.remove_orphans(|user| user == "ann").await.unwrap();
        let hash = |user| secrets.password_of(user);
        assert!(hash("ann").await.unwrap().is_some());
        assert!(hash("bob").await.unwrap().is_none());
        assert!(storage.get_one(KEYS.into()).await.unwrap().is_some());
    }
}
