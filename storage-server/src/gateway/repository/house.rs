//! What all requests to the gateway share, and who is let in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::header::{AUTHORIZATION, HeaderMap, ORIGIN};
use storage_protocol::{Batch, CommitOptions, Key, Keyspace, StorageError};
use zeroize::Zeroizing;

use super::answer::Refusal;
use super::keys;
use super::logins::Logins;
use super::metrics::Metrics;
use crate::auth::Identity;
use crate::config::Signup;
use crate::gateway::{Caller, Credential, Guest, NotLetIn, NotLetInKind};
use crate::limits::turns::{NoTurn, Turn, Turns};
use crate::shared::ServerHandle;

/// The most uploads at once, of all peers, and half of them of one.
const UPLOADS_MAX: usize = 64;
/// The same of queries in JSON, whose answer is put together in memory.
const QUERIES_MAX: usize = 16;
/// The same of zips with a large directory, which is in memory until the end of the download.
const LARGE_ZIPS_MAX: usize = 16;
/// For so long one waits for others to end.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// The places that all peers share.
#[derive(Debug)]
pub(super) struct Places {
    /// Uploads in progress: each holds up to 4 MiB.
    uploads: Turns,
    /// Queries whose answer is put together or taken: each holds up to 16 MiB, and twice that for a moment.
    queries: Turns,
    /// Each holds up to 24 MiB.
    large_zips: Turns,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            uploads: Turns::new(UPLOADS_MAX),
            queries: Turns::new(QUERIES_MAX),
            large_zips: Turns::new(LARGE_ZIPS_MAX),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct House {
    pub(super) server: ServerHandle,
    pub(super) keyspace: Keyspace,
    /// Requests for data need no token, where the listener takes anonymous peers.
    pub(super) open: bool,
    pub(super) signup: Signup,
    pub(super) object_bytes_max: u64,
    pub(super) metrics: Metrics,
    pub(super) logins: Arc<Logins>,
    places: Arc<Places>,
    /// The keyspace was seen to be there.
    is_made: AtomicBool,
}

/// The token of an `Authorization`: its second word, whatever the first one is.
fn token_of(headers: &HeaderMap) -> Option<Option<&str>> {
    let value = headers.get(AUTHORIZATION)?;
    let text = value.to_str().unwrap_or_default();
    Some(text.split(' ').nth(1).filter(|token| !token.is_empty()))
}

fn credential(token: &str) -> Credential {
    Credential::Token(Zeroizing::new(token.to_owned()))
}

fn missing() -> Refusal {
    Refusal::json(403, r#"{"message":"Missing authetication header"}"#)
}

fn invalid() -> Refusal {
    Refusal::text(401, "Invalid token\n")
}

fn overloaded(what: &str, why: NoTurn) -> Refusal {
    Refusal::for_now(503, &format!("overloaded: {what}: {why}"), None)
}

/// The answer to who is not let in for the token that was shown.
fn refused(error: &NotLetIn) -> Refusal {
    let seconds = error.retry_after.map(|wait| wait.as_secs());
    match error.kind {
        NotLetInKind::TooMany => Refusal::for_now(429, &error.reason, seconds),
        NotLetInKind::Busy | NotLetInKind::Unavailable => {
            Refusal::for_now(503, &error.reason, seconds)
        }
        NotLetInKind::Missing => missing(),
        _ => invalid(),
    }
}

impl House {
    pub(super) fn new(
        server: &ServerHandle,
        metrics: &Metrics,
        logins: &Arc<Logins>,
        places: &Arc<Places>,
    ) -> Self {
        let config = &server.config().repository;
        Self {
            server: server.clone(),
            keyspace: config.keyspace.clone(),
            open: config.open,
            signup: config.signup,
            object_bytes_max: config.object_bytes_max,
            metrics: metrics.clone(),
            logins: logins.clone(),
            places: places.clone(),
            is_made: AtomicBool::new(false),
        }
    }

    /// Who asks for data.
    ///
    /// # Errors
    /// Nobody who is let in: without a token 403, with a bad one 401.
    pub(super) async fn caller(
        &self,
        guest: &Guest,
        headers: &HeaderMap,
    ) -> Result<Caller, Refusal> {
        let identity = match token_of(headers) {
            None => self.unshown(guest).await?,
            Some(None) => return Err(invalid()),
            Some(Some(token)) => match guest.let_in(Some(&credential(token))).await {
                Ok(identity) => identity,
                // Nobody asks for tokens there; old clients send what they have. A web page that shows a token was let past the
                // check of its origin for that, so it has to be a good one.
                Err(_) if self.open && !headers.contains_key(ORIGIN) => self.unshown(guest).await?,
                Err(error) => return Err(refused(&error)),
            },
        };
        Ok(guest.caller(identity))
    }

    /// Who shows nothing: by its certificate, or anybody where that was asked for.
    async fn unshown(&self, guest: &Guest) -> Result<Identity, Refusal> {
        let identity = guest.let_in(None).await.map_err(|error| refused(&error))?;
        match identity.principal().is_anonymous() && !self.open {
            true => Err(missing()),
            false => Ok(identity),
        }
    }

    /// That a good token is shown.
    ///
    /// # Errors
    /// It is not.
    pub(super) async fn check_token(
        &self,
        guest: &Guest,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        match token_of(headers) {
            None => Err(missing()),
            Some(None) => Err(invalid()),
            Some(Some(token)) => {
                let identified = guest.let_in(Some(&credential(token))).await;
                identified.map(drop).map_err(|error| refused(&error))
            }
        }
    }

    /// Who opens a WebSocket: by the token of a header or of the query; `None` if it is to say so in a frame.
    ///
    /// # Errors
    /// The answer to one with a bad token.
    pub(super) async fn subscriber(
        &self,
        guest: &Guest,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Option<Identity>, Response<Body>> {
        let in_query = query.and_then(token_in_query);
        let shown = match token_of(headers) {
            Some(token) => Some(token.unwrap_or_default().to_owned()),
            None => in_query.filter(|token| !token.is_empty()),
        };
        let identified = match &shown {
            Some(token) => guest.let_in(Some(&credential(token))).await,
            None => guest.let_in(None).await,
        };
        match identified {
            Ok(identity) if identity.principal().is_anonymous() && !self.open => Ok(None),
            Ok(identity) => Ok(Some(identity)),
            Err(_) if shown.is_none() => Ok(None),
            Err(error) => Err(refused(&error).into_response()),
        }
    }

    /// Who shows this token in a frame.
    ///
    /// # Errors
    /// Why it is not let in.
    pub(super) async fn by_token(guest: &Guest, token: &str) -> Result<Identity, String> {
        let identified = guest.let_in(Some(&credential(token))).await;
        identified.map_err(|error| error.reason)
    }

    /// A place among the uploads, to be held until the end of one. Nothing of its body is read before.
    ///
    /// # Errors
    /// There is none for too long.
    pub(super) async fn upload_place(&self, caller: &Caller) -> Result<Turn, Refusal> {
        let peer = caller.peer_name();
        let turn = self.places.uploads.take(&peer, TURN_PATIENCE);
        turn.await.map_err(|why| overloaded("uploads", why))
    }

    /// A place among the queries in JSON, to be held until the answer is taken.
    ///
    /// # Errors
    /// There is none for too long.
    pub(super) async fn query_place(&self, caller: &Caller) -> Result<Turn, Refusal> {
        let peer = caller.peer_name();
        let turn = self.places.queries.take(&peer, TURN_PATIENCE);
        turn.await.map_err(|why| overloaded("queries in JSON", why))
    }

    /// A place among the zips with a large directory, to be held until one is taken.
    ///
    /// # Errors
    /// There is none for too long.
    pub(super) async fn large_zip_place(&self, caller: &Caller) -> Result<Turn, Refusal> {
        let peer = caller.peer_name();
        let turn = self.places.large_zips.take(&peer, TURN_PATIENCE);
        turn.await.map_err(|why| overloaded("large zips", why))
    }

    /// Makes the keyspace where it is not there: whoever configured the gateway wants it, and users may have no right to.
    ///
    /// # Errors
    /// As a commit.
    pub(super) async fn ensure_made(&self) -> Result<(), StorageError> {
        if self.is_made.load(Ordering::Relaxed) {
            return Ok(());
        }
        let marker = Key::from_static(keys::DATABASE);
        let batch = Batch::new()
            .check_absent(marker.clone())
            .put(marker, Key::new());
        let own = self.server.own_storage(&self.keyspace);
        let options = CommitOptions::labelled("repository made");
        match own.commit(batch, options).await {
            Ok(_) | Err(StorageError::CheckFailed { .. }) => {
                self.is_made.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// It may be gone.
    pub(super) fn forget_made(&self) {
        self.is_made.store(false, Ordering::Relaxed);
    }
}

fn token_in_query(query: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut tokens = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("token"));
    let (_, token) = tokens.next()?;
    let token = percent_encoding::percent_decode_str(token);
    Some(token.decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_second_word_whatever_the_first_is() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            token_of(&headers).map(|token| token.map(str::to_owned))
        };
        for scheme in ["OAuth", "JWT", "Bearer", "x"] {
            assert_eq!(of(&format!("{scheme} abc")), Some(Some("abc".to_owned())));
        }
        assert_eq!(of("abc"), Some(None));
        assert_eq!(of("OAuth "), Some(None));
        assert_eq!(token_of(&HeaderMap::new()), None);
        assert_eq!(token_in_query("a=b&Token=x%2Ey").as_deref(), Some("x.y"));
        assert_eq!(token_in_query("tokens=x"), None);
    }
}
