//! Hello and Welcome: the first words on a socket, and what a server may announce with them.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use storage_protocol::native::{
    self, ClientMessage, Hello, Packet, SUBPROTOCOL, ServerMessage, Welcome, close_code,
};
use storage_protocol::{Limit, Limits, SessionId};
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::failure::{DialError, explain_io};
use super::socket::Socket;
use crate::end::{End, EndKind, close_reason, close_text};
use crate::server_text::plain;
use crate::session::SavedSession;

/// Says Hello and waits for Welcome.
pub(super) async fn shake_hands(socket: &mut Socket, hello: Hello) -> Result<Welcome, DialError> {
    let asked = hello.session;
    let hello = ClientMessage::Hello(hello).encode(None).to_frame();
    let sent = socket.send(Message::Binary(hello)).await;
    // A server that refuses us has sent its reason before our Hello fails: read it all the same.
    loop {
        match (socket.next().await, &sent) {
            (Some(Ok(Message::Ping(_) | Message::Pong(_))), _) => {}
            (Some(Ok(Message::Binary(frame))), _) => match read_welcome(frame, asked)? {
                Ok(welcome) => return Ok(welcome),
                Err(what) => return Err(leave(socket, close_code::PROTOCOL, what).await),
            },
            (Some(Ok(Message::Close(frame))), _) => {
                let code = frame.as_ref().map(|frame| frame.code.into());
                let (kind, meaning) = EndKind::of_close(code);
                let message = format!("{meaning} before Welcome: {}", close_text(frame));
                return Err(DialError { message, kind });
            }
            (Some(Ok(Message::Text(_) | Message::Frame(_))), _) => {
                let what = "the server sent a text frame instead of Welcome".to_owned();
                return Err(leave(socket, close_code::UNSUPPORTED_DATA, what).await);
            }
            (Some(Err(WsError::Io(error))), _) => return Err(explain_io(&error, "Welcome").into()),
            (Some(Err(error)), _) => {
                let end = End::of_read(&error);
                return Err(match end.close {
                    Some(code) => leave(socket, code, end.why).await,
                    None => format!("no Welcome came: {error}").into(),
                });
            }
            (None, Err(error)) => return Err(format!("Hello could not be sent: {error}").into()),
            (None, Ok(())) => {
                return Err("the server closed the connection before Welcome"
                    .to_owned()
                    .into());
            }
        }
    }
}

/// Leaves a server that broke the protocol, and tells it so.
async fn leave(socket: &mut Socket, code: u16, what: String) -> DialError {
    let (code, reason) = (code.into(), close_reason(&what).into());
    // The caller's deadline bounds it; a server that is gone needs no word.
    let _ = socket.close(Some(CloseFrame { code, reason })).await;
    DialError {
        message: what,
        kind: EndKind::Misbehaved,
    }
}

/// The server's Welcome; or, inside, how it broke the protocol. Outside: why there is none now.
fn read_welcome(
    frame: Bytes,
    asked: Option<SessionId>,
) -> Result<Result<Welcome, String>, DialError> {
    let message = Packet::from_frame(frame).and_then(ServerMessage::decode);
    Ok(match message {
        Err(error) => Err(format!("Welcome is unreadable: {error}")),
        Ok(ServerMessage::Welcome(welcome)) => check_welcome(welcome, asked),
        Ok(ServerMessage::GoAway {
            reason,
            retry_after,
        }) => {
            let reason = plain(&reason);
            return Err(DialError {
                message: format!(
                    "the server is going away: {reason} (come back in {retry_after:?})"
                ),
                kind: EndKind::Drained { retry_after },
            });
        }
        Ok(_) => Err("the server sent something else instead of Welcome".to_owned()),
    })
}

/// What a server may announce: nothing that cannot be kept, or that lies outside of the protocol's own bounds. `asked`: the
/// session to resume.
fn check_welcome(welcome: Welcome, asked: Option<SessionId>) -> Result<Welcome, String> {
    if welcome.version != native::VERSION {
        return Err(format!(
            "the server speaks version {} of {SUBPROTOCOL}, we speak {}",
            welcome.version,
            native::VERSION
        ));
    }
    if welcome.silence.is_zero() {
        return Err("Welcome announces a silence of 0 ms, which nothing can keep".to_owned());
    }
    let executed = welcome.executed;
    if executed > SavedSession::NUMBER_MAX {
        let max = SavedSession::NUMBER_MAX;
        return Err(format!(
            "Welcome says that commit {executed} was executed; no number is over {max}"
        ));
    }
    if executed > 0 && asked != Some(welcome.session) {
        return Err(format!(
            "Welcome says that commit {executed} of a new session was executed, and none was sent"
        ));
    }
    let limits = &welcome.limits;
    let message_max = Limits::MESSAGE_BYTES_CEILING;
    let (key, frame) = (1..=Limits::KEY_BYTES_CEILING, Limits::FRAME_BYTES);
    for (limit, announced, allowed) in [
        (Limit::Key, limits.key_bytes_max, key),
        (Limit::Value, limits.value_bytes_max, 0..=message_max),
        (Limit::Message, limits.message_bytes_max, 1..=message_max),
        (Limit::Frame, limits.frame_bytes_max, frame..=frame),
        (
            Limit::RequestsInFlight,
            limits.requests_in_flight_max,
            1..=usize::MAX,
        ),
        (
            Limit::BytesInFlight,
            limits.bytes_in_flight_max,
            1..=usize::MAX,
        ),
    ] {
        if !allowed.contains(&announced) {
            let (least, most) = (allowed.start(), allowed.end());
            return Err(format!(
                "Welcome announces a {limit} of {announced}; the protocol allows {least} to {most}"
            ));
        }
    }
    Ok(welcome)
}
