//! The receiving side: what is ready for a recipient, as soon as it is.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Deliveries, DeliveryError, Job, JobId, Recipient, StateKind, Step, Stored};
use crate::{
    Batch, ChangeKind, Key, KeyState, Outcome, Position, ScanOptions, StorageError, Watch,
    WatchEvent, WatchOptions, WatchStart,
};

/// Ids that are kept of those that were found; for more it looks again.
const FOUND_MAX: usize = 256;

type Result<T> = std::result::Result<T, DeliveryError>;

/// What is ready for a recipient: first what waits, in the order in which it was due, then what becomes so.
///
/// Any number may receive for one recipient; each job is taken by one of them.
#[derive(Debug)]
pub struct Receiver {
    deliveries: Deliveries,
    recipient: Recipient,
    holder: String,
    watch: Option<Watch>,
    /// Where looking for those that wait goes on; `None`: all were found.
    look_from: Option<Key>,
    found: VecDeque<JobId>,
}

/// A job that was handed over. Unless it is acknowledged within [`Policy::ack`](super::Policy::ack) it comes again.
#[derive(Debug)]
pub struct Delivery {
    deliveries: Deliveries,
    /// The job.
    pub stored: Stored,
}

impl Deliveries {
    /// Receives what is for a recipient, as this holder: a text that no other one has at the time.
    #[must_use]
    pub fn receive(&self, recipient: &Recipient, holder: &str) -> Receiver {
        Receiver {
            deliveries: self.clone(),
            recipient: recipient.clone(),
            holder: holder.to_owned(),
            watch: None,
            look_from: None,
            found: VecDeque::new(),
        }
    }
}

impl Receiver {
    /// Waits for a job that is ready, or was a moment ago: whoever takes it finds out by [`Receiver::claim`]. Cancel-safe.
    ///
    /// # Errors
    /// As a watch and a scan.
    pub async fn ready(&mut self) -> Result<JobId> {
        loop {
            if let Some(id) = self.found.pop_front() {
                return Ok(id);
            }
            if self.watch.is_none() {
                self.begin().await?;
            }
            if self.look_from.is_some() {
                self.look().await?;
                continue;
            }
            self.hear().await?;
        }
    }

    /// Attaches to what comes before it looks for what waits, so that nothing is missed in between.
    async fn begin(&mut self) -> Result<()> {
        let range = self.deliveries.place.all_to(&self.recipient);
        let options = WatchOptions::every(WatchStart::Now);
        let watch = self
            .deliveries
            .storage
            .watch(range.clone(), options)
            .await?;
        self.look_from = Some(range.start);
        self.watch = Some(watch);
        Ok(())
    }

    async fn look(&mut self) -> Result<()> {
        let mut range = self.deliveries.place.all_to(&self.recipient);
        if let Some(from) = &self.look_from {
            range.start = from.clone();
        }
        let scan = self.deliveries.storage.scan(range, ScanOptions::default());
        let mut scan = scan.await?;
        let mut found = VecDeque::new();
        let mut from = None;
        'pages: while let Some(items) = scan.next_page().await? {
            for item in items {
                let KeyState::Live(entry) = item.state else {
                    continue;
                };
                if entry.value == StateKind::Ready.letter() {
                    found.extend(self.deliveries.place.parse_to(&self.recipient, &item.key));
                }
                if found.len() >= FOUND_MAX {
                    from = Some([&item.key[..], &[0]].concat().into());
                    break 'pages;
                }
            }
        }
        self.found.append(&mut found);
        self.look_from = from;
        Ok(())
    }

    /// Takes one event of the watch.
    async fn hear(&mut self) -> Result<()> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        let event = match watch.next().await {
            Ok(Some(event)) => event,
            Ok(None) => {
                self.watch = None;
                return Err(StorageError::Closed {
                    reason: "the watch has ended".to_owned(),
                    outcome: Outcome::NotExecuted,
                }
                .into());
            }
            // It begins anew, and looks for all that waits.
            Err(
                StorageError::Compacted { .. }
                | StorageError::AccessChanged
                | StorageError::EpochChanged { .. },
            ) => {
                self.watch = None;
                return Ok(());
            }
            Err(error) => {
                self.watch = None;
                return Err(error.into());
            }
        };
        match event {
            WatchEvent::Commit(commit) => {
                for change in &commit.changes {
                    if let ChangeKind::Put { value, .. } = &change.kind {
                        self.note(&change.key, value);
                    }
                }
            }
            WatchEvent::State { key, state } => {
                if let KeyState::Live(entry) = state {
                    self.note(&key, &entry.value);
                }
            }
            WatchEvent::Progress { .. } | WatchEvent::Reset | WatchEvent::Continuity(_) => {}
        }
        Ok(())
    }

    fn note(&mut self, key: &[u8], value: &[u8]) {
        if value != StateKind::Ready.letter() {
            return;
        }
        if self.found.len() < FOUND_MAX {
            self.found
                .extend(self.deliveries.place.parse_to(&self.recipient, key));
        } else {
            // All that waits is looked for once these are taken.
            let range = self.deliveries.place.all_to(&self.recipient);
            self.look_from = Some(range.start);
        }
    }

    /// Takes a job for so long, in one commit with checks of the caller's own; `None`: somebody else has it, or it is not to
    /// be delivered any more.
    ///
    /// # Errors
    /// As [`Deliveries::step_with`].
    pub async fn claim(
        &mut self,
        id: &JobId,
        hold: Duration,
        batch: Batch,
    ) -> Result<Option<Stored>> {
        let holder = self.holder.clone();
        self.take(id, &Step::Claim { holder, hold }, batch).await
    }

    /// Takes a job and hands it over in one, in one commit with checks of the caller's own: for who is about to do so, and
    /// gives it back where that fails. `None` as [`Receiver::claim`].
    ///
    /// # Errors
    /// As [`Deliveries::step_with`].
    pub async fn hand_over(&mut self, id: &JobId, batch: Batch) -> Result<Option<Stored>> {
        let holder = self.holder.clone();
        self.take(id, &Step::HandOver { holder }, batch).await
    }

    async fn take(&mut self, id: &JobId, step: &Step, batch: Batch) -> Result<Option<Stored>> {
        let recipient = &self.recipient;
        let judge = |job: &Job| match job.recipient == *recipient {
            true => Ok(()),
            false => Err(DeliveryError::NoJob(id.clone())),
        };
        match self.deliveries.step_with(id, step, judge, batch).await {
            Ok(stored) => Ok(Some(stored)),
            Err(
                DeliveryError::Refused { .. }
                | DeliveryError::NoJob(_)
                | DeliveryError::Contended { .. },
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next job, handed over: it is the caller's to acknowledge. Not cancel-safe: a job of a call that was dropped comes
    /// again when its time for that is over.
    ///
    /// # Errors
    /// As [`Receiver::ready`] and [`Deliveries::step`].
    pub async fn next(&mut self) -> Result<Delivery> {
        loop {
            let id = self.ready().await?;
            if let Some(stored) = self.hand_over(&id, Batch::new()).await? {
                return Ok(Delivery {
                    deliveries: self.deliveries.clone(),
                    stored,
                });
            }
        }
    }

    /// Where the watch is, once it has begun.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.watch.as_ref().map(|watch| watch.status().position)
    }
}

impl Delivery {
    /// Its id, by which repeats are told.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.stored.id
    }

    /// What was handed over.
    #[must_use]
    pub fn payload(&self) -> &bytes::Bytes {
        &self.stored.job.payload
    }

    /// It is done.
    ///
    /// # Errors
    /// As [`Deliveries::step`].
    pub async fn acknowledge(&self) -> Result<()> {
        self.deliveries.acknowledge(self.id()).await.map(drop)
    }

    /// It is to come again, behind a pause.
    ///
    /// # Errors
    /// As [`Deliveries::step`].
    pub async fn decline(&self, reason: &str) -> Result<()> {
        self.deliveries.decline(self.id(), reason).await.map(drop)
    }
}
