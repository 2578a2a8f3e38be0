//! What the sockets of both kinds have in common: who the peer is, for how long, and what waits for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::State;
use super::frame;
use super::login::Who;
use super::outbox::Outbox;
use super::registry::ReceiverId;
use crate::gateway::{
    Close, Guest, Message, SendError, ServerHandle, UpgradeRequest, Utf8Bytes, WebSocket,
    close_code,
};

/// The longest message that is read, in bytes; a longer one closes with 1009.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// The longest that an end is slept for before the clock is looked at again: it may have been set.
const LOOK: Duration = Duration::from_secs(10);

/// How a socket ends.
pub(super) enum End {
    /// The peer is gone.
    Gone,
    Close(Close),
}

impl From<SendError> for End {
    fn from(_: SendError) -> Self {
        Self::Gone
    }
}

impl End {
    pub(super) fn result(ended: Result<(), Self>) -> Result<(), Close> {
        match ended {
            Ok(()) | Err(Self::Gone) => Ok(()),
            Err(Self::Close(close)) => Err(close),
        }
    }
}

/// See the module.
pub(super) struct Session {
    pub(super) socket: WebSocket,
    pub(super) state: Arc<State>,
    pub(super) server: ServerHandle,
    pub(super) outbox: Arc<Outbox>,
    pub(super) id: ReceiverId,
    guest: Option<Guest>,
    pub(super) who: Option<Who>,
}

impl Session {
    pub(super) fn new(
        socket: WebSocket,
        request: UpgradeRequest,
        state: Arc<State>,
        server: ServerHandle,
    ) -> Self {
        Self {
            socket,
            id: state.next_id(),
            state,
            server,
            outbox: Arc::default(),
            guest: request.guest,
            who: None,
        }
    }

    /// One of a user whose token has no end.
    #[cfg(test)]
    pub(super) fn new_for_test(
        socket: WebSocket,
        state: Arc<State>,
        server: ServerHandle,
        login: &str,
    ) -> Self {
        let claims = super::directory::Claims {
            login: login.to_owned(),
            ..Default::default()
        };
        let who = Who {
            identity: socket.identity(),
            claims,
            until: None,
            token: 0,
        };
        Self {
            socket,
            id: state.next_id(),
            state,
            server,
            outbox: Arc::default(),
            guest: None,
            who: Some(who),
        }
    }

    /// Sends a frame, unless the token ends before there is room for it. One that is longer than messages may be is not left out
    /// in silence: its client is told to look again.
    pub(super) async fn send(&self, text: impl Into<Utf8Bytes>) -> Result<(), End> {
        match self.send_in_time(text.into()).await? {
            Ok(()) => Ok(()),
            Err(SendError::TooLong { .. }) => {
                self.state.metrics.resyncs.inc();
                match self.send_in_time(frame::resync().into()).await? {
                    Ok(()) | Err(SendError::TooLong { .. }) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn send_in_time(&self, text: Utf8Bytes) -> Result<Result<(), SendError>, End> {
        tokio::select! {
            biased;
            end = self.expiry() => Err(end),
            sent = self.socket.send(Message::text(text)) => Ok(sent),
        }
    }

    /// Tells what is wrong, and ends.
    pub(super) async fn refuse(&self, code: u16, why: &str) -> End {
        match self.send(frame::error(why)).await {
            Ok(()) => End::Close(Close::because(code, why)),
            Err(gone) => gone,
        }
    }

    /// Finds out who the peer is. `empty`: what it is told if it says nothing.
    pub(super) async fn log_in(&mut self, jwt: &str, empty: &str) -> Result<(), End> {
        if jwt.is_empty() {
            return Err(self.refuse(close_code::POLICY, empty).await);
        }
        let Some(guest) = &self.guest else {
            return Err(End::Close(Close::because(close_code::POLICY, "no login")));
        };
        let who = match Box::pin(self.state.who(guest, jwt)).await {
            Ok(who) => who,
            Err(why) => return Err(self.refuse(close_code::POLICY, &why.to_string()).await),
        };
        if let Err(error) = self.socket.log_in(who.identity.clone()) {
            return Err(self.refuse(close_code::TRY_AGAIN, &error.to_string()).await);
        }
        self.who = Some(who);
        Ok(())
    }

    /// Forgets who the peer is. Its connection still counts as one of that user: who has said once who it is must not fill the
    /// places of those who have yet to say so.
    pub(super) fn log_out(&mut self) {
        self.who = None;
        self.outbox.clear();
    }

    /// Until the token of the peer is good for nothing.
    pub(super) async fn expiry(&self) -> End {
        let Some(until) = self.who.as_ref().and_then(|who| who.until) else {
            return std::future::pending().await;
        };
        let end = UNIX_EPOCH.checked_add(Duration::from_secs(until));
        while let Some(left) = end.and_then(|end| end.duration_since(SystemTime::now()).ok()) {
            tokio::time::sleep(left.min(LOOK)).await;
            if left.is_zero() {
                break;
            }
        }
        End::Close(Close::because(close_code::POLICY, "token expired"))
    }
}
