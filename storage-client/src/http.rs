//! Requests to a server over HTTP, for what is not storage: users, tokens, access rules.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER};
use hyper_util::rt::TokioIo;
use storage_protocol::{Outcome, Result, StorageError};

use crate::options::ConnectOptions;
use crate::transport::refusal;

/// What [`exchange`] takes and gives.
pub use hyper::{Method, StatusCode};

/// The longest answer that is taken, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// An answer to [`exchange`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// How the request went.
    pub status: StatusCode,
    /// What was answered.
    pub body: Bytes,
    /// When the same may be tried again, where the server says so (`Retry-After`, in seconds).
    pub retry_after: Option<Duration>,
}

/// What `Retry-After` says, if it does so in seconds; servers of ours do.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// [`exchange`], of which only status and body matter.
///
/// # Errors
/// As of [`exchange`].
pub async fn request(
    options: &ConnectOptions,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<(StatusCode, Bytes)> {
    let answer = exchange(options, method, path, body).await?;
    Ok((answer.status, answer.body))
}

/// Sends one request to the server that the options name (the first that can be reached), with their credentials, and
/// gives its answer. `path` begins with `/`; the keyspace of the URL does not matter. The
/// whole of it has [`ConnectOptions::request_timeout`].
///
/// # Errors
/// [`StorageError::ConnectFailed`]: no server was reached, or it did not let us in; nothing was executed.
/// [`StorageError::Closed`] and [`StorageError::DeadlineExceeded`], with outcome *unknown*: the answer did not arrive.
pub async fn exchange(
    options: &ConnectOptions,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Answer> {
    let exchange = async {
        let (io, host) = options.dialer().await?.dial_http().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host);
        if let Some(login) = &options.login {
            let header = login.header().await;
            let header = header.map_err(|message| StorageError::ConnectFailed { message })?;
            request = request.header(AUTHORIZATION, header);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())));
        let request = request.map_err(|error| StorageError::invalid(error.to_string()))?;
        let refused = |message| StorageError::ConnectFailed {
            message: format!("{}: {message}", options.urls.join(", ")),
        };
        let lost = |error: &(dyn std::error::Error + 'static)| match refusal(error) {
            Some(message) => refused(message),
            None => StorageError::Closed {
                reason: format!("the server's answer did not arrive: {error}"),
                outcome: Outcome::Unknown,
            },
        };
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(io)).await;
        let (mut sender, connection) = shaken.map_err(|error| lost(&error))?;
        // Ends with the sender.
        let connection = tokio::spawn(connection);
        let (parts, body) = match sender.send_request(request).await {
            Ok(answer) => answer.into_parts(),
            Err(error) => {
                drop(sender);
                // Where the connection broke before the request was taken up, it alone knows why.
                let why = connection.await.ok().and_then(Result::err);
                let why = why.and_then(|why| refusal(&why));
                return Err(why.map_or_else(|| lost(&error), refused));
            }
        };
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| lost(&*error))?.to_bytes();
        drop(sender);
        connection.abort();
        Ok(Answer {
            status: parts.status,
            body,
            retry_after: retry_after(&parts.headers),
        })
    };
    let outcome = Outcome::Unknown;
    tokio::time::timeout(options.request_timeout, exchange)
        .await
        .map_err(|_| StorageError::DeadlineExceeded { outcome })?
}
