//! Which rooms are whose.

use storage_protocol::Storage;
use storage_protocol::rooms::RoomKey;

use super::super::directory::{self, Rights};
use super::super::frame::RoomKind;
use crate::config::NodeRooms;

/// What a peer may do in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) writes: bool,
    /// Of the node that the room belongs to, if it is known.
    pub(super) path: Option<String>,
}

/// What a peer may do in the room of an object, by its workspaces. Access rules hold besides.
///
/// # Errors
/// Why it may not be there.
pub(super) async fn access(
    own: &dyn Storage,
    node_rooms: NodeRooms,
    rights: &Rights,
    key: &RoomKey,
) -> Result<Access, String> {
    let all = Access {
        writes: true,
        path: None,
    };
    match RoomKind::named(key.kind()) {
        Some(RoomKind::Global | RoomKind::User) => Ok(all),
        Some(RoomKind::Workspace) => match rights.workspaces.get(key.object()) {
            Some(granted) => Ok(Access {
                writes: granted.writes,
                path: None,
            }),
            None => Err("the room is of a workspace that you do not have".to_owned()),
        },
        Some(RoomKind::Node) => {
            let path = directory::path_of_node(own, key.object()).await;
            let path = path.map_err(|error| error.to_string())?;
            match (node_rooms, path) {
                (NodeRooms::Open, path) => Ok(Access { path, ..all }),
                (NodeRooms::Checked, Some(path)) => match rights.of_path(&path) {
                    Some(writes) => Ok(Access {
                        writes,
                        path: Some(path),
                    }),
                    None => Err("the room is of a node that you may not read".to_owned()),
                },
                // Not told apart from one that may not be read.
                (NodeRooms::Checked, None) => {
                    Err("the room is of a node that you may not read".to_owned())
                }
            }
        }
        Some(RoomKind::Any) | None => {
            Err("a room has one of the types GLOBAL, WORKSPACE, USER, NODE".to_owned())
        }
    }
}
