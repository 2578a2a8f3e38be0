//! Users, made and changed by the server on behalf of a gateway whose protocol lets peers do so.

use hyper::StatusCode;
use zeroize::Zeroizing;

use super::records::{Authority, Change, change_user};
use super::{Caller, Problem};
use crate::auth::Identity;
use crate::gateway::Guest;
use crate::shared::ServerHandle;

/// Why a user is not made or changed. The texts are complete by themselves, and safe to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// There is one of this name.
    #[error("there is a user of this name already")]
    Exists,
    /// There is none of this name.
    #[error("there is no user of this name")]
    Missing,
    /// Anything else, such as a name that no user may have.
    #[error("{0}")]
    Refused(String),
}

fn error_of(problem: Problem, is_new: bool) -> UserError {
    match (problem.status(), is_new) {
        (StatusCode::CONFLICT, true) => UserError::Exists,
        (StatusCode::NOT_FOUND, false) => UserError::Missing,
        _ => UserError::Refused(problem.into_message()),
    }
}

async fn set(
    caller: &Caller,
    name: &str,
    password: Zeroizing<String>,
    is_new: bool,
) -> Result<(), UserError> {
    let change = Change::password(password, is_new);
    let changed = Box::pin(change_user(caller, name, change, Authority::Server)).await;
    changed
        .map(drop)
        .map_err(|problem| error_of(problem, is_new))
}

impl Guest {
    /// Makes a user, as the server: the gateway has decided that this peer may have that. Told to the audit log, with the
    /// address of the peer.
    ///
    /// # Errors
    /// [`UserError`]; of [`UserError::Refused`] it is not known whether it was made, if the store failed meanwhile.
    pub async fn add_user(&self, name: &str, password: Zeroizing<String>) -> Result<(), UserError> {
        let caller = self.as_server();
        set(&caller, name, password, true).await
    }

    /// Gives a user another password, in the same way. Who is here by the one before is not let in any more.
    ///
    /// # Errors
    /// As [`Guest::add_user`].
    pub async fn set_password(
        &self,
        name: &str,
        password: Zeroizing<String>,
    ) -> Result<(), UserError> {
        let caller = self.as_server();
        set(&caller, name, password, false).await
    }

    fn as_server(&self) -> Caller {
        Caller {
            identity: Identity::anonymous().at(Some(self.address())),
            address: self.address(),
            server: self.server().clone(),
        }
    }
}

impl ServerHandle {
    /// Makes an example user where there is none of this name, for [`Gateway::demo`](crate::gateway::Gateway::demo); whether it
    /// did.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn demo_user(&self, name: &str, password: &str) -> Result<bool, String> {
        let caller = Caller {
            identity: Identity::anonymous(),
            address: ([127, 0, 0, 1], 0).into(),
            server: self.clone(),
        };
        let access = &self.shared().access;
        if access.user(name).is_some() {
            return Ok(false);
        }
        let secrets = access.secrets().ok_or("the server is starting")?;
        // Marked first: a user that is left of a start which ended here must not stay either.
        let marked = secrets.mark_demo_user(name, password).await;
        marked.map_err(|error| error.to_string())?;
        let password = Zeroizing::new(password.to_owned());
        let made = set(&caller, name, password, true).await;
        made.map_err(|error| error.to_string())?;
        Ok(true)
    }
}
