//! From Hello to Welcome: the session that a connection begins or resumes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use storage_protocol::native::{Class, Hello, ServerMessage, VERSION, Welcome, close_code};

use super::order;
use super::order::Order;
use super::{Attached, Native, Result};
use crate::engine::{Resumed, Session};
use crate::metrics::ClosedLabel;
use crate::ws::Close;

/// So many bytes of a client's name are kept.
const AGENT_BYTES_MAX: usize = 256;

/// A session that is being resumed.
pub(super) struct Resuming {
    hello: Hello,
    pub(super) attempt: Pin<Box<dyn Future<Output = Result<Resumed>> + Send>>,
}

impl Native {
    /// Takes Hello. Nothing else is accepted before Welcome is sent.
    pub(super) fn begin(&mut self, hello: Hello) -> std::result::Result<(), Close> {
        if hello.version != VERSION {
            return Err(Close::protocol(format!(
                "Hello asks for version {}; this server speaks version {VERSION}",
                hello.version
            )));
        }
        order::check_hello(&hello)?;
        let agent = &hello.agent[..hello.agent.floor_char_boundary(AGENT_BYTES_MAX)];
        let Some(id) = hello.session else {
            tracing::debug!(agent = ?agent, "session opened");
            let session = self.open_session();
            self.welcome(session);
            return Ok(());
        };
        tracing::debug!(agent = ?agent, incarnation = hello.incarnation, "session to be resumed");
        let shared = self.shared.clone();
        let (identity, keyspace) = (self.identity.clone(), self.keyspace.clone());
        let incarnation = hello.incarnation;
        let attempt = Box::pin(async move {
            let resumed = shared.resume_session(&identity, &keyspace, id, incarnation);
            resumed.await
        });
        self.handshake.resuming = Some(Resuming { hello, attempt });
        Ok(())
    }

    pub(super) fn open_session(&self) -> Arc<dyn Session> {
        self.shared.open_session(&self.identity, &self.keyspace)
    }

    pub(super) fn poll_resuming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> std::result::Result<bool, Close> {
        let Some(resuming) = &mut self.handshake.resuming else {
            return Ok(false);
        };
        let Poll::Ready(resumed) = resuming.attempt.as_mut().poll(cx) else {
            return Ok(false);
        };
        let Some(Resuming { hello, .. }) = self.handshake.resuming.take() else {
            return Ok(false);
        };
        match resumed {
            Ok(Resumed::Session(session)) => {
                self.commits.order = Order::resumed(&hello, session.executed());
                self.welcome(session);
            }
            // A new session, without commits yet.
            Ok(Resumed::Gone) => {
                let session = self.open_session();
                self.welcome(session);
            }
            Ok(Resumed::Fenced) => {
                let incarnation = hello.incarnation;
                return Err(fenced(format!(
                    "incarnation {incarnation} of the session is not higher than one before"
                )));
            }
            Err(_) if self.draining => return Err(Close::going_away()),
            Err(error) => {
                return Err(Close::new(
                    close_code::INTERNAL,
                    ClosedLabel::Failed,
                    format!("cannot resume the session: {error}"),
                ));
            }
        }
        Ok(true)
    }

    pub(super) fn welcome(&mut self, session: Arc<dyn Session>) {
        let timeouts = &self.shared.config.timeouts;
        let storage = session.clone().storage();
        let (executed, lapsed) = (session.executed(), session.keys_expired());
        let welcome = ServerMessage::Welcome(Welcome {
            version: VERSION,
            position: storage.position(),
            session: session.id(),
            executed,
            lapsed,
            principal: self.identity.to_string(),
            heartbeat: timeouts.heartbeat,
            silence: timeouts.silence,
            grace: timeouts.session_grace,
            kept: timeouts.session_kept,
            limits: self.limits().clone(),
        });
        self.outgoing
            .outbox
            .push(Class::Control, welcome.encode(None));
        self.attached = Some(Attached {
            fenced: Box::pin(session.fenced().cancelled_owned()),
            session,
            storage,
            executed,
            unacknowledged: lapsed,
        });
    }

    pub(super) fn check_fence(&mut self, cx: &mut Context<'_>) -> std::result::Result<(), Close> {
        let fence = self.attached.as_mut().map(|attached| &mut attached.fenced);
        if fence.is_some_and(|fence| fence.as_mut().poll(cx).is_ready()) {
            return Err(fenced(
                "a newer incarnation of the session took over".to_owned(),
            ));
        }
        Ok(())
    }

    /// Whether Hello has not arrived yet. After Hello the connection waits for the engine, which first executes what
    /// the session has queued; only the heartbeat and the limit on silence count then.
    pub(super) fn awaits_hello(&self) -> bool {
        self.attached.is_none() && self.handshake.resuming.is_none()
    }

    /// Why nothing is taken before there is a session.
    pub(super) fn too_early(&self) -> Close {
        Close::protocol(if self.handshake.resuming.is_some() {
            "a message between Hello and Welcome"
        } else {
            "the first message must be Hello"
        })
    }
}

pub(super) fn fenced(reason: String) -> Close {
    Close::new(close_code::FENCED, ClosedLabel::Fenced, reason)
}
