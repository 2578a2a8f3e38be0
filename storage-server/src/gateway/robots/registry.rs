//! The robots that are known, each with its connection if it has one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use storage_protocol::deliveries::DeliveryError;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyState, Lifetime, Revision, ScanOptions, Storage,
    StorageError, StorageExt,
};
use storage_schedule::instant_text;

use super::frame::Metadata;
use super::house::House;
use super::ids::Kind;
use super::keys;
use super::room::Place;
use crate::gateway::{Identity, Principal};

/// Others may register the same robot meanwhile, so many times.
const TRIES_MAX: usize = 64;
/// The most addresses that one connection makes known, so that nobody fills the table with one connection.
const NEW_ROBOTS_MAX: usize = 16;
/// So often it is looked whether more jobs of a robot are there that is removed: others schedule meanwhile.
const PASSES_MAX: usize = 64;
/// The most robots of a list.
pub(super) const LIST_MAX: usize = 10_000;

/// A robot, as its key has it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Robot {
    pub(super) id: u64,
    pub(super) robot_name: String,
    pub(super) robot_address: String,
    #[serde(rename = "userID", default)]
    pub(super) user_id: Value,
    pub(super) created_at: String,
    pub(super) updated_at: String,
    /// Who has registered it, and may do so again.
    pub(super) principal: String,
}

/// The socket that registers a robot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket<'a> {
    pub(super) id: &'a str,
    /// So many robots it has made known.
    pub(super) new_robots: usize,
}

/// The connection of one.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Online {
    #[serde(rename = "socketID")]
    pub(super) socket_id: String,
    pub(super) since: String,
}

/// A robot with its connection.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) robot: Robot,
    pub(super) online: Option<Online>,
}

impl Known {
    /// As clients read it.
    pub(super) fn json(&self) -> Value {
        let robot = &self.robot;
        json!({
            "id": robot.id,
            "robotName": robot.robot_name,
            "robotAddress": robot.robot_address,
            "socketID": self.online.as_ref().map(|online| &online.socket_id),
            "connected": self.online.is_some(),
            "userID": robot.user_id,
            "createdAt": robot.created_at,
            "updatedAt": robot.updated_at,
        })
    }
}

impl Robot {
    /// Whom it belongs to is said by who was first; nobody's is anybody's.
    fn check_owner(&self, principal: &Principal) -> Result<(), NotRegistered> {
        match self.principal == principal.as_str() || self.principal == "anonymous" {
            true => Ok(()),
            false => {
                let why = "this address belongs to another principal";
                Err(NotRegistered::Refused(why.to_owned()))
            }
        }
    }
}

/// A robot that has registered.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub(super) robot: Robot,
    pub(super) is_new: bool,
    /// The commit that made its socket the robot's connection.
    pub(super) revision: Revision,
}

/// Why one is not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotRegistered {
    /// It is refused, for this reason.
    Refused(String),
    /// The store failed.
    Failed(StorageError),
}

impl From<StorageError> for NotRegistered {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::AccessDenied { message } => Self::Refused(message),
            error => Self::Failed(error),
        }
    }
}

/// Another robot has the connection now: this one is not connected any more.
pub(super) async fn left(storage: &dyn Storage, (online, revision): (Key, Revision)) {
    let batch = Batch::new()
        .check_revision(online.clone(), revision)
        .remove(online);
    let options = CommitOptions::labelled("robot disconnected");
    match storage.commit(batch, options).await {
        Ok(_) | Err(StorageError::CheckFailed { .. }) => {}
        Err(error) => tracing::warn!(%error, "cannot note that a robot is disconnected"),
    }
}

fn read<'a, T: Deserialize<'a>>(entry: &'a Entry) -> Option<T> {
    serde_json::from_slice(&entry.value).ok()
}

fn written(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

impl House {
    /// Makes this socket the connection of the robot that it says it is. `storage`: the keyspace, as the peer; its session is
    /// that of the socket.
    pub(super) async fn register(
        &self,
        storage: &dyn Storage,
        identity: &Identity,
        metadata: &Metadata,
        socket: &Socket<'_>,
    ) -> Result<Registered, NotRegistered> {
        let (key, online) = (
            keys::robot(&metadata.address),
            keys::online(&metadata.address),
        );
        let principal = identity.principal();
        // Of one that is new.
        let (mut number, mut place) = (None, None);
        for _ in 0..TRIES_MAX {
            let found = storage
                .get(std::slice::from_ref(&key))
                .await?
                .value
                .pop()
                .flatten();
            let known = found.as_ref().and_then(read::<Robot>);
            let now = instant_text(self.now());
            let batch = match &found {
                Some(entry) => Batch::new().check_revision(key.clone(), entry.revision),
                None => Batch::new().check_absent(key.clone()),
            };
            let is_new = known.is_none();
            let robot = match known {
                Some(known) => {
                    known.check_owner(principal)?;
                    Robot {
                        robot_name: metadata.name.clone(),
                        user_id: metadata.owner.clone(),
                        updated_at: now.clone(),
                        principal: principal.as_str().to_owned(),
                        ..known
                    }
                }
                None => {
                    let id = match number {
                        Some(number) => number,
                        None => {
                            if socket.new_robots >= NEW_ROBOTS_MAX {
                                let why = format!(
                                    "a connection makes at most {NEW_ROBOTS_MAX} addresses known"
                                );
                                return Err(NotRegistered::Refused(why));
                            }
                            place = Some(self.place().await?);
                            self.ids.next(&*self.own, Kind::Robot).await?
                        }
                    };
                    number = Some(id);
                    Robot {
                        id,
                        robot_name: metadata.name.clone(),
                        robot_address: metadata.address.clone(),
                        user_id: metadata.owner.clone(),
                        created_at: now.clone(),
                        updated_at: now.clone(),
                        principal: principal.as_str().to_owned(),
                    }
                }
            };
            let connection = Online {
                socket_id: socket.id.to_owned(),
                since: now,
            };
            let batch = batch.put(key.clone(), written(&robot)).put_with(
                online.clone(),
                written(&connection),
                Lifetime::Session,
            );
            let options = CommitOptions::labelled("robot connected");
            match storage.commit(batch, options).await {
                Ok(position) => {
                    if is_new && let Some(place) = place {
                        place.fill();
                    }
                    return Ok(Registered {
                        robot,
                        is_new,
                        revision: position.revision,
                    });
                }
                Err(StorageError::CheckFailed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let why = "others register this address again and again";
        Err(NotRegistered::Refused(why.to_owned()))
    }

    /// A place for one robot more.
    async fn place(&self) -> Result<Place, NotRegistered> {
        let place = self.room.take(self.count_robots(&*self.own)).await?;
        let max = self.config.robots_max;
        place.ok_or_else(|| NotRegistered::Refused(format!("robots.robots_max is {max}")))
    }

    pub(super) async fn count_robots(&self, storage: &dyn Storage) -> Result<u64, StorageError> {
        let options = ScanOptions {
            keys_only: true,
            ..ScanOptions::default()
        };
        let mut scan = storage.scan(keys::robots(), options).await?;
        let mut count = 0;
        while let Some(items) = scan.next_page().await? {
            let of_robots = items.iter().filter(|item| {
                keys::parse_robot(&item.key).is_some_and(|(_, is_online)| !is_online)
            });
            count += of_robots.count() as u64;
        }
        Ok(count)
    }

    /// One robot.
    pub(super) async fn robot_at(
        &self,
        storage: &dyn Storage,
        address: &str,
    ) -> Result<Option<Known>, StorageError> {
        let wanted = [keys::robot(address), keys::online(address)];
        let mut entries = storage.get(&wanted).await?.value.into_iter();
        let robot = entries.next().flatten().as_ref().and_then(read);
        let online = entries.next().flatten().as_ref().and_then(read);
        Ok(robot.map(|robot| Known { robot, online }))
    }

    /// The robots that pass, in the order of their numbers: at most [`LIST_MAX`].
    pub(super) async fn robots(
        &self,
        storage: &dyn Storage,
        passes: impl Fn(&Known) -> bool + Send + Sync,
    ) -> Result<Vec<Known>, StorageError> {
        let mut scan = storage.scan(keys::robots(), ScanOptions::default()).await?;
        let mut found: BTreeMap<u64, Known> = BTreeMap::new();
        let mut last: Option<Known> = None;
        let mut keep = |known: Option<Known>| {
            if let Some(known) = known.filter(&passes)
                && found.len() < LIST_MAX
            {
                found.insert(known.robot.id, known);
            }
        };
        while let Some(items) = scan.next_page().await? {
            for item in items {
                let (Some((address, is_online)), KeyState::Live(entry)) =
                    (keys::parse_robot(&item.key), item.state)
                else {
                    continue;
                };
                if is_online {
                    // It comes right behind its robot.
                    match &mut last {
                        Some(known) if known.robot.robot_address == address => {
                            known.online = read(&entry);
                        }
                        _ => {}
                    }
                } else {
                    let robot = read(&entry).map(|robot| Known {
                        robot,
                        online: None,
                    });
                    keep(std::mem::replace(&mut last, robot));
                }
            }
        }
        keep(last);
        Ok(found.into_values().collect())
    }

    /// Fails what is scheduled for the robot of an address, which is about to be forgotten, or is.
    async fn fail_jobs_of(&self, address: &str, is_forgotten: bool) -> Result<(), StorageError> {
        let Some(recipient) = keys::recipient(address) else {
            return Ok(());
        };
        for _ in 0..PASSES_MAX {
            let jobs = self.deliveries.open_for(&recipient).await?;
            // Ordering: behind the list. One that is known by then may have jobs of its own, which came later.
            if is_forgotten && self.robot_at(&*self.own, address).await?.is_some() {
                return Ok(());
            }
            let mut failed = 0;
            for id in jobs {
                match self.deliveries.fail(&id, "its robot was deleted").await {
                    Ok(_) => failed += 1,
                    Err(DeliveryError::Storage(error)) => return Err(error),
                    // It has ended, or cannot be read.
                    Err(_) => {}
                }
            }
            if failed == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Forgets the robot of an address, if it belongs to this principal, or to nobody, fails its jobs and closes its connection;
    /// what it was. `None`: there is none. Not cancel-safe: its connection may stay, and be sent nothing.
    pub(super) async fn remove_robot(
        &self,
        storage: &dyn Storage,
        principal: &Principal,
        address: &str,
    ) -> Result<Option<Robot>, NotRegistered> {
        let (key, online) = (keys::robot(address), keys::online(address));
        let options = CommitOptions::labelled("robot removed");
        for _ in 0..TRIES_MAX {
            let Some(entry) = storage.get_one(key.clone()).await? else {
                return Ok(None);
            };
            let Some(robot) = read::<Robot>(&entry) else {
                return Ok(None);
            };
            robot.check_owner(principal)?;
            // As the caller, so that nothing is done before it is clear that it may; from here on the robot is handed nothing.
            // What was judged is what is removed: it may be somebody else's in a moment.
            let batch = Batch::new()
                .check_revision(key.clone(), entry.revision)
                .put(key.clone(), entry.value)
                .remove(online.clone());
            let begun = match storage.commit(batch, options.clone()).await {
                Ok(begun) => begun,
                Err(StorageError::CheckFailed { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let removed = self
                .remove_with_jobs(storage, address, begun.revision)
                .await;
            match removed {
                // It has come again, or belongs to somebody else by now.
                Err(StorageError::CheckFailed { .. }) => continue,
                // It may come again, and knows so when its connection ends.
                Err(error) => {
                    self.live.remove(address, begun.revision);
                    return Err(error.into());
                }
                Ok(removed) => self.live.remove(address, removed),
            }
            // What was scheduled meanwhile: it is not for whoever registers this address next.
            if let Err(error) = self.fail_jobs_of(address, true).await {
                tracing::warn!(%error, address, "jobs of a robot that was deleted cannot be failed");
            }
            return Ok(Some(robot));
        }
        let why = "others change this robot again and again";
        Err(NotRegistered::Refused(why.to_owned()))
    }

    /// The revision at which it is gone.
    async fn remove_with_jobs(
        &self,
        storage: &dyn Storage,
        address: &str,
        begun: Revision,
    ) -> Result<Revision, StorageError> {
        self.fail_jobs_of(address, false).await?;
        let key = keys::robot(address);
        let batch = Batch::new()
            .check_revision(key.clone(), begun)
            .remove(key)
            .remove(keys::online(address));
        let options = CommitOptions::labelled("robot removed");
        let mut failed = None;
        let removing = async {
            let removed = storage.commit(batch, options).await;
            removed.map_err(|error| failed = Some(error)).ok()
        };
        match (self.room.freed_by(removing).await, failed) {
            (Some(removed), _) => Ok(removed.revision),
            (None, Some(error)) => Err(error),
            (None, None) => Err(StorageError::CheckFailed {
                key: keys::robot(address),
                actual: None,
            }),
        }
    }
}
