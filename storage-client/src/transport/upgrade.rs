//! The WebSocket upgrade, and why a server refuses it.

use storage_protocol::native::SUBPROTOCOL;
use storage_protocol::{Limits, UnixMillis};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, DATE, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::clock::ServerClock;
use super::endpoint::Endpoint;
use super::failure::explain_io;
use super::login::Login;
use super::socket::{Counted, Io, Socket};
use crate::http::retry_after;
use crate::server_text::plain;

/// Asks for the WebSocket, and notes what the server says of its time.
pub(super) async fn upgrade(
    endpoint: &Endpoint,
    io: Box<dyn Io>,
    login: Option<&Login>,
    clock: &ServerClock,
) -> Result<Socket, String> {
    let mut request = (&endpoint.uri)
        .into_client_request()
        .map_err(|error| format!("the URL cannot be asked for: {error}"))?;
    let protocol = HeaderValue::from_static(SUBPROTOCOL);
    request
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    if let Some(login) = login {
        let header = login.header().await?;
        request.headers_mut().insert(AUTHORIZATION, header);
    }
    let config = Some(socket_config());
    let io = Counted::new(io);
    let asked = UnixMillis::now();
    let upgrade = tokio_tungstenite::client_async_with_config(request, io, config);
    match upgrade.await {
        Ok((socket, response)) => {
            let date = response
                .headers()
                .get(DATE)
                .and_then(|date| date.to_str().ok());
            clock.note(date, asked, UnixMillis::now());
            Ok(socket)
        }
        // Who answered in HTTP did not expect TLS.
        Err(error) if !endpoint.tls && !matches!(error, WsError::Http(_)) => Err(format!(
            "{}; if the port expects TLS, the URL begins with wss://",
            explain_upgrade(error)
        )),
        Err(error) => Err(explain_upgrade(error)),
    }
}

/// Sizes that are set, never default: the default read buffer zero-fills 128 KiB on every read, and the default
/// maxima would let the peer decide how much memory we take.
fn socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .write_buffer_size(128 * 1024)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(Limits::FRAME_BYTES))
        .max_frame_size(Some(Limits::FRAME_BYTES))
}

fn explain_upgrade(error: WsError) -> String {
    match error {
        WsError::Http(response) => explain_refusal(*response),
        WsError::Io(error) => explain_io(&error, "the WebSocket upgrade"),
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(
            SubProtocolError::NoSubProtocol | SubProtocolError::InvalidSubProtocol,
        )) => format!("the server does not speak the subprotocol {SUBPROTOCOL}"),
        WsError::Protocol(ProtocolError::HandshakeIncomplete) => {
            "the server closed the connection during the WebSocket upgrade; it may not accept our certificate".into()
        }
        error => format!("the WebSocket upgrade failed: {error}"),
    }
}

/// The status, and what came of the body with the headers: enough for a sentence, bounded for a page.
fn explain_refusal(response: Response) -> String {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let body = response.into_body().unwrap_or_default();
    let text = plain(&String::from_utf8_lossy(&body));
    // A server of ours says it in words, what is between need not.
    let again = match retry_after {
        Some(after) if !text.contains("try again") => {
            format!("; try again in {} s", after.as_secs())
        }
        _ => String::new(),
    };
    match text.trim() {
        "" => format!("the server refused with HTTP status {status}{again}"),
        text => format!("the server refused with HTTP status {status}: {text}{again}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(retry_after: &str, body: &str) -> String {
        let mut response = Response::new(Some(body.as_bytes().to_vec()));
        *response.status_mut() = hyper::StatusCode::TOO_MANY_REQUESTS;
        let headers = response.headers_mut();
        headers.insert(hyper::header::RETRY_AFTER, retry_after.parse().unwrap());
        explain_refusal(response)
    }

    #[test]
    fn a_refusal_says_when_to_try_again_where_the_server_does() {
        for (retry_after, body, end) in [
            ("7", "", "Too Many Requests; try again in 7 s"),
            ("7", "slow down\n", "slow down; try again in 7 s"),
            (
                "7",
                "too many, try again in 7 s\n",
                "too many, try again in 7 s",
            ),
            (
                "Fri, 31 Dec 1999 23:59:59 GMT",
                "no",
                "Too Many Requests: no",
            ),
        ] {
            let text = refusal(retry_after, body);
            assert!(text.ends_with(end), "{text}");
        }
    }
}
