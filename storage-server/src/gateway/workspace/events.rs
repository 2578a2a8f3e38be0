//! A socket for events: who it is, and then what is told to it.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::State;
use super::frame::{self, NotJson, Said};
use super::hub::{ACTIVITIES, Hub, IDM, TASKS};
use super::outbox::Taken;
use super::rate::Rate;
use super::registry::{Receiver, ReceiverId};
use super::session::{End, Session};
use super::tree::NODES;
use crate::auth::rules::Permission;
use crate::gateway::{Close, Message, ServerHandle, UpgradeRequest, WebSocket, close_code};

/// So long after something was left out its client is told to look again: what is left out until then is seen by that look.
const RESYNC: Duration = Duration::from_secs(1);

/// Takes its socket out of the registry at the end.
struct Registered {
    hub: Arc<Hub>,
    id: ReceiverId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.hub.registry().remove(self.id);
    }
}

/// Serves a socket until its end.
pub(super) async fn serve(
    socket: WebSocket,
    request: UpgradeRequest,
    state: Arc<State>,
    server: ServerHandle,
) -> Result<(), Close> {
    let session = Session::new(socket, request, state, server);
    let conversation = Conversation {
        session,
        registered: None,
        resync: None,
    };
    End::result(conversation.run().await)
}

struct Conversation {
    session: Session,
    registered: Option<Registered>,
    /// When its client is told to look again.
    resync: Option<Instant>,
}

enum Step {
    Said(Option<Message>),
    Taken(Taken),
    Resync,
    End(End),
}

impl Conversation {
    async fn run(mut self) -> Result<(), End> {
        loop {
            match self.step().await {
                Step::Said(None) => return Ok(()),
                Step::Said(Some(Message::Text(text))) => self.hear(&text).await?,
                Step::Said(Some(Message::Binary(_))) => {}
                Step::Taken(Taken::Frame(frame)) => self.session.send(frame.text).await?,
                Step::Taken(Taken::Behind) => {
                    self.session.state.metrics.resyncs.inc();
                    let due = Instant::now() + RESYNC;
                    self.resync.get_or_insert(due);
                }
                Step::Resync => {
                    self.resync = None;
                    self.session.send(frame::resync()).await?;
                }
                Step::End(end) => return Err(end),
            }
        }
    }

    async fn step(&self) -> Step {
        let resync = async {
            match self.resync {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => pending().await,
            }
        };
        let step = async {
            tokio::select! {
                said = self.session.socket.receive() => Step::Said(said),
                taken = self.session.outbox.take() => Step::Taken(taken),
                () = resync => Step::Resync,
            }
        };
        // Nothing is taken for one whose token has ended, whatever waits.
        tokio::select! {
            biased;
            end = self.session.expiry() => Step::End(end),
            step = step => step,
        }
    }

    async fn hear(&mut self, text: &str) -> Result<(), End> {
        match frame::parse(text) {
            Ok(Said::Subscribe { jwt, ack }) => self.subscribe(&jwt, ack).await,
            Ok(Said::Unsubscribe) => {
                self.registered = None;
                self.resync = None;
                self.session.log_out();
                Ok(())
            }
            Ok(Said::Chat(_) | Said::Nothing) => Ok(()),
            Err(error @ NotJson) => {
                let why = error.to_string();
                Err(self.session.refuse(close_code::POLICY, &why).await)
            }
        }
    }

    async fn subscribe(&mut self, jwt: &str, ack: bool) -> Result<(), End> {
        let session = &mut self.session;
        let before = session.who.clone();
        session.log_in(jwt, "empty jwt").await?;
        let Some(who) = &session.who else {
            return Ok(());
        };
        if before.is_some_and(|before| !before.is_same_user(who)) {
            // What waits was for somebody else.
            self.registered = None;
            self.resync = None;
            session.outbox.clear();
        }
        if let Some(key) = denied_by_token(session) {
            let why = format!("may not read {key:?} with this token, whose grants do not allow it");
            return Err(session.refuse(close_code::POLICY, &why).await);
        }
        let config = &session.state.config;
        let rate = Rate::new(config.events_per_second, config.events_burst);
        let receiver = Receiver::new(session.outbox.clone(), who.claims.clone(), rate);
        let hub = session.state.hub(&session.server);
        let subscribed = async {
            hub.start(&session.server).await?;
            hub.subscribe(session.id, receiver).await
        };
        if let Err(error) = subscribed.await {
            let code = close_code::TRY_AGAIN;
            return Err(session.refuse(code, &error.to_string()).await);
        }
        let (login, id) = (who.claims.login.clone(), session.id);
        // One that is there stands for this one, too: dropped now, it would take this one out.
        self.registered
            .get_or_insert_with(|| Registered { hub, id });
        match ack {
            true => session.send(frame::subscribed(&login)).await,
            false => Ok(()),
        }
    }
}

/// What of the events a peer's token was not minted for. What a peer is told is said by its workspaces; what its token was minted
/// for holds besides, and one that was minted for something else is good for no events.
fn denied_by_token(session: &Session) -> Option<&'static str> {
    let (identity, keyspace) = (session.socket.identity(), &session.state.config.keyspace);
    let access = &session.server.shared().access;
    [NODES, TASKS, IDM, ACTIVITIES].into_iter().find(|key| {
        access.token_denies(&identity, keyspace, |grants| {
            grants.allows(Permission::Read, key.as_bytes())
        })
    })
}
