//! What a client shows a server besides a certificate: a token, or a user with a password.

use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// The longest token that is read from a file, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// See the module. Shown in the upgrade request, as `Authorization`.
#[derive(Clone)]
pub(crate) enum Login {
    Token(String),
    /// Read again for each connection.
    TokenFile(PathBuf),
    Password {
        user: String,
        password: String,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(_) => f.write_str("Token"),
            Self::TokenFile(path) => f.debug_tuple("TokenFile").field(path).finish(),
            Self::Password { user, .. } => f.debug_tuple("Password").field(user).finish(),
        }
    }
}

impl Login {
    /// The value of `Authorization`.
    pub(crate) async fn header(&self) -> Result<HeaderValue, String> {
        let text = match self {
            Self::Token(token) => bearer(token)?,
            Self::TokenFile(path) => {
                let file = path.clone();
                let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(file));
                let read = read.await.map_err(|error| error.to_string())?;
                let token = read.map_err(|error| format!("{}: {error}", path.display()))?;
                bearer(token.trim()).map_err(|what| format!("{}: {what}", path.display()))?
            }
            Self::Password { user, .. } if user.is_empty() || user.contains(':') => {
                return Err("the user's name is empty or has a colon".to_owned());
            }
            Self::Password { user, password } => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
        };
        let value = HeaderValue::try_from(text);
        let mut value = value.map_err(|_| "the token has characters that no token has")?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn bearer(token: &str) -> Result<String, String> {
    match token.len() {
        0 => Err("the token is empty".to_owned()),
        1..=TOKEN_BYTES_MAX => Ok(format!("Bearer {token}")),
        _ => Err(format!("the token is longer than {TOKEN_BYTES_MAX} bytes")),
    }
}
