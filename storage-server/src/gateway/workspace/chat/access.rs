//! Which rooms are whose.

use std::sync::Arc;

use storage_protocol::StorageError;
use storage_protocol::rooms::RoomKey;

use super::super::directory::{self, Rights};
use super::super::frame::RoomKind;
use super::super::records::{Look, Record, Records};
use crate::config::NodeRooms;

/// What a peer may do in a room.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) writes: bool,
    /// Of the node that the room belongs to, where that was asked: beside the peer's rights it goes by this.
    node: Option<Arc<Record>>,
}

impl Access {
    fn new(writes: bool) -> Self {
        Self { writes, node: None }
    }

    /// Whether the node may be elsewhere by now.
    pub(super) fn is_stale(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.is_stale())
    }
}

/// Why a peer may not be in a room.
#[derive(Debug)]
pub(super) enum NoAccess {
    /// It is not for it: as a text that may be shown.
    Forbidden(&'static str),
    /// That could not be read, so it is not known whether the room is for it.
    Unknown(StorageError),
}

const OF_WORKSPACE: NoAccess =
    NoAccess::Forbidden("the room is of a workspace that you do not have");
/// One that is not known is not told apart from one that may not be read.
const OF_NODE: NoAccess = NoAccess::Forbidden("the room is of a node that you may not read");
const OF_NO_TYPE: NoAccess =
    NoAccess::Forbidden("a room has one of the types GLOBAL, WORKSPACE, USER, NODE");

/// What a peer may do in the room of an object, by its workspaces alone: access rules say nothing of that.
///
/// # Errors
/// Why it may not be there.
pub(super) async fn access(
    records: &Records,
    node_rooms: NodeRooms,
    rights: &Rights,
    key: &RoomKey,
    look: Look,
) -> Result<Access, NoAccess> {
    match RoomKind::named(key.kind()) {
        Some(RoomKind::Global | RoomKind::User) => Ok(Access::new(true)),
        Some(RoomKind::Workspace) => {
            let granted = rights.workspaces.get(key.object()).ok_or(OF_WORKSPACE)?;
            Ok(Access::new(granted.writes))
        }
        Some(RoomKind::Node) if node_rooms == NodeRooms::Open => Ok(Access::new(true)),
        Some(RoomKind::Node) => {
            let place = directory::place_of_node(records, key.object(), look).await;
            let place = place.map_err(NoAccess::Unknown)?;
            let writes = place.path.and_then(|path| rights.of_path(&path));
            Ok(Access {
                writes: writes.ok_or(OF_NODE)?,
                node: place.record,
            })
        }
        Some(RoomKind::Any) | None => Err(OF_NO_TYPE),
    }
}
