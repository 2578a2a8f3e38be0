//! The packages of a connection: what is handed over, and what becomes of it.
//!
//! What is ready is handed over by a commit that checks that the connection still is the robot's, then the frame, then a ping. The
//! answer to that ping shows that the frame has arrived, and ends the job. What has not arrived when the connection ends goes
//! back, and the robot's next connection is sent it.

use std::collections::VecDeque;
use std::time::Duration;

use storage_protocol::deliveries::{DeliveryError, JobId, Receiver, Step, Stored};
use storage_protocol::{Batch, Key, Revision, StorageError};

use super::frame::Dialect;
use super::keys;
use super::live::Presence;
use super::socket::{Conversation, End, Next, closed};
use super::trigger::Order;
use crate::clock::WallClock;
use crate::gateway::{Message, WebSocket, close_code};

/// Packages that were sent and whose arrival is not known, though there is time for it; no more are sent meanwhile.
const UNPROVEN_MAX: usize = 16;
/// The most of them that are remembered, those among them whose time is over and that may have arrived all the same.
const KEPT_MAX: usize = 256;
/// Packages that a robot may decline by name.
const SENT_MAX: usize = 64;
/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(500);
/// So many failures in a row; then the connection is closed, and the robot comes again.
const FAILURES_MAX: u32 = 20;

/// The robot whose connection this is, or was.
pub(super) struct Served {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) address: String,
    pub(super) online: (Key, Revision),
    pub(super) presence: Presence,
    /// `None`: a newer connection has the robot.
    pub(super) receiver: Option<Receiver>,
    /// In the order in which they were sent, with the numbers of the probes behind them.
    pub(super) unproven: VecDeque<(u64, Stored)>,
    pub(super) proven: u64,
    /// Names of packages, and their jobs.
    pub(super) sent: VecDeque<(String, JobId)>,
    pub(super) failures: u32,
}

impl Served {
    /// What comes for the robot. Cancel-safe.
    pub(super) async fn next(&mut self, socket: &WebSocket, clock: &WallClock) -> Next {
        let Self {
            presence,
            receiver,
            unproven,
            proven,
            ..
        } = self;
        let (is_current, is_waiting) = (receiver.is_some(), !unproven.is_empty());
        let now = clock.now();
        let ends = unproven
            .iter()
            .filter_map(|(_, stored)| stored.job.state.wake());
        let ends: Vec<_> = ends.filter(|end| *end > now).collect();
        let has_room = ends.len() < UNPROVEN_MAX;
        let overdue = async {
            match ends.iter().min() {
                Some(first) if !has_room => clock.reaches(*first).await,
                _ => std::future::pending().await,
            }
        };
        let ready = async {
            match receiver {
                Some(receiver) if has_room => receiver.ready().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = presence.removed.cancelled() => Next::Removed,
            () = presence.superseded.cancelled(), if is_current => Next::Superseded,
            number = socket.answered(*proven), if is_waiting => Next::Arrived(number),
            ready = ready => Next::Ready(ready),
            () = overdue => Next::Overdue,
        }
    }
}

impl Conversation {
    /// Sends the robot what is ready for it.
    pub(super) async fn hand_over(
        &mut self,
        ready: Result<JobId, DeliveryError>,
    ) -> Result<(), End> {
        let (house, dialect) = (self.house.clone(), self.dialect.unwrap_or(Dialect::Plain));
        let Some(robot) = &mut self.robot else {
            return Ok(());
        };
        let Some(receiver) = &mut robot.receiver else {
            return Ok(());
        };
        let (online, revision) = robot.online.clone();
        let taken = match ready {
            Ok(id) => {
                let is_current = Batch::new().check_revision(online.clone(), revision);
                receiver.hand_over(&id, is_current).await
            }
            Err(error) => Err(error),
        };
        let stored = match taken {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(()),
            Err(DeliveryError::Storage(StorageError::CheckFailed { key, .. })) if key == online => {
                // Known to another server, or to this one in a moment.
                self.superseded().await;
                return Ok(());
            }
            // It stays as it is, and the others go on.
            Err(error @ DeliveryError::Record { .. }) => {
                house.note(format!("robot {}: {error}", robot.name));
                tracing::warn!(%error, "a package of a robot cannot be read");
                return Ok(());
            }
            Err(error) => {
                robot.failures += 1;
                tracing::warn!(%error, "cannot hand over the packages of a robot");
                if robot.failures > FAILURES_MAX {
                    return Err(closed(close_code::TRY_AGAIN, &error.to_string()));
                }
                // It begins anew, with all that waits.
                let recipient = keys::recipient(&robot.address);
                robot.receiver = recipient.map(|to| house.jobs().receive(&to, &self.id));
                tokio::time::sleep(RETRY).await;
                return Ok(());
            }
        };
        robot.failures = 0;
        let Some(order) = Order::read(&stored.job.payload) else {
            let reason = "its payload is no package of a robot";
            if let Err(error) = house.deliveries.fail(&stored.id, reason).await {
                tracing::warn!(%error, job = %stored.id, "cannot fail a job");
            }
            return Ok(());
        };
        let package = order.package;
        house.note(format!(
            "job {}: package {} to robot {} (attempt {})",
            stored.id, package.package_name, robot.name, stored.job.attempts
        ));
        // From here on it is told who has it: what does not arrive is given back at the end.
        robot
            .sent
            .push_back((package.package_name.clone(), stored.id.clone()));
        if robot.sent.len() > SENT_MAX {
            robot.sent.pop_front();
        }
        if robot.unproven.len() >= KEPT_MAX {
            robot.unproven.pop_front();
        }
        robot.unproven.push_back((u64::MAX, stored));
        let notification = dialect.notification(&package);
        self.socket.send(Message::text(notification)).await?;
        let probe = self.socket.probe().await?;
        if let Some((number, _)) = robot.unproven.back_mut() {
            *number = probe;
        }
        house.metrics.notifications.inc();
        Ok(())
    }

    /// All that was sent before this probe has arrived.
    pub(super) async fn arrived(&mut self, number: u64) {
        let deliveries = self.house.deliveries.clone();
        let Some(robot) = &mut self.robot else {
            return;
        };
        robot.proven = number;
        while let Some((probe, _)) = robot.unproven.front()
            && *probe <= number
            && let Some((_, stored)) = robot.unproven.pop_front()
        {
            let done = deliveries
                .step_from(&stored, &Step::Acknowledge, Batch::new())
                .await;
            let done = match done {
                // Somebody has done something with it meanwhile.
                Err(DeliveryError::Storage(StorageError::CheckFailed { .. })) => {
                    deliveries.acknowledge(&stored.id).await
                }
                done => done,
            };
            match done {
                Ok(_) => {
                    self.house.metrics.confirmed.inc();
                }
                Err(DeliveryError::Refused { .. } | DeliveryError::NoJob(_)) => {}
                // It is sent again then.
                Err(error) => tracing::warn!(%error, job = %stored.id, "cannot note an arrival"),
            }
        }
    }

    /// The robot wants a package again: the last one, or the one of this name.
    pub(super) async fn decline(&mut self, name: Option<&str>) {
        let house = self.house.clone();
        let Some(robot) = &mut self.robot else {
            self.junk("a decline of nobody who has registered");
            return;
        };
        let mut sent = robot.sent.iter().rev();
        let job = match name {
            None => sent.next(),
            Some(name) => sent.find(|(package, _)| package == name),
        };
        let Some((package, id)) = job.cloned() else {
            let note = format!(
                "robot {}: declines {name:?}, which it was not sent",
                robot.name
            );
            house.note(note);
            return;
        };
        house.metrics.declined.inc();
        // It has arrived.
        robot.unproven.retain(|(_, stored)| stored.id != id);
        let reason = "declined by the robot";
        let note = match house.deliveries.decline(&id, reason).await {
            Ok(stored) => format!(
                "job {id}: package {package} declined by robot {}: {}",
                robot.name,
                stored.job.state.kind()
            ),
            Err(error) => format!(
                "job {id}: package {package} declined by robot {}: {error}",
                robot.name
            ),
        };
        house.note(note);
    }

    /// A newer connection has the robot.
    pub(super) async fn superseded(&mut self) {
        let Some(robot) = &mut self.robot else {
            return;
        };
        robot.receiver = None;
        let note = format!(
            "robot {}: a newer connection than socket {} has it",
            robot.name, self.id
        );
        self.house.note(note);
        self.give_back().await;
    }

    /// What has not arrived is ready for the robot's next connection.
    pub(super) async fn give_back(&mut self) {
        let Some(robot) = &mut self.robot else {
            return;
        };
        for (_, stored) in robot.unproven.drain(..) {
            let step = Step::Release {
                holder: self.id.clone(),
            };
            match self.house.deliveries.step(&stored.id, &step).await {
                Ok(_) | Err(DeliveryError::Refused { .. } | DeliveryError::NoJob(_)) => {}
                // Its time for an answer ends by itself.
                Err(error) => tracing::warn!(%error, job = %stored.id, "cannot give a job back"),
            }
        }
    }
}
