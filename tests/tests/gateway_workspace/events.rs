//! Events, and who receives them.

use serde_json::{Value, json};
use storage_protocol::{Batch, CommitOptions};

use crate::client::{House, Socket};

/// Something at the end that this user alone is told: all that came before it.
async fn until_mark(house: &House, socket: &mut Socket) -> Vec<Value> {
    let user = socket.user.clone();
    let mark = json!({ "TaskUpdated": { "ID": format!("mark-{user}"), "TriggerOwner": user } });
    house.tell(mark).await;
    let mut frames = Vec::new();
    loop {
        let frame = socket.frame().await;
        if frame["TaskUpdated"]["ID"] == format!("mark-{user}") {
            return frames;
        }
        frames.push(frame);
    }
}

#[tokio::test]
async fn item_06_nodes_in_a_workspace_are_told_to_those_who_have_it_and_nobody_beside() {
    let house = House::new().await;
    let mut ana = house.events("ana").await;
    let mut eve = house.events("eve").await;
    let node = |etag: &str| {
        json!({ "Uuid": "n-9", "Type": "LEAF", "Size": 7, "Etag": etag, "MetaStore": { "name": "x" } }).to_string()
    };
    let previous = || CommitOptions::default().with_previous();
    // By a native client of the storage.
    house
        .commit(Batch::new().put("nodes/data/team/x", node("1")))
        .await;
    let created = ana.frame().await;
    assert_eq!(created["Target"]["Path"], "team/x", "{created}");
    assert_eq!(created.get("Type"), None);
    house
        .commit_with(Batch::new().put("nodes/data/team/x", node("2")), previous())
        .await;
    assert_eq!(ana.frame().await["Type"], "UPDATE_CONTENT");
    let moved = Batch::new()
        .remove("nodes/data/team/x")
        .put("nodes/data/team/b/x", node("2"));
    house.commit_with(moved, previous()).await;
    let moved = ana.frame().await;
    assert_eq!(moved["Type"], "UPDATE_PATH");
    assert_eq!(moved["Source"]["Path"], "team/x");
    assert_eq!(moved["Target"]["Path"], "team/b/x");
    house
        .commit_with(Batch::new().remove("nodes/data/team/b/x"), previous())
        .await;
    let deleted = ana.frame().await;
    assert_eq!(
        (&deleted["Type"], &deleted["Source"]["Uuid"]),
        (&json!("DELETE"), &json!("n-9"))
    );
    // `/data/team` is no root of `/data/teams`.
    house
        .tell(json!({ "Type": "DELETE", "Source": { "Uuid": "z", "Path": "/data/teams/x" } }))
        .await;
    assert_eq!(until_mark(&house, &mut ana).await, Vec::<Value>::new());
    assert_eq!(until_mark(&house, &mut eve).await, Vec::<Value>::new());
}

#[tokio::test]
async fn item_07_a_node_in_two_workspaces_is_told_twice() {
    let house = House::new().await;
    let mut two = house.events("two").await;
    house
        .tell(json!({ "Type": "DELETE", "Source": { "Uuid": "z", "Path": "/data/team/x" } }))
        .await;
    let frames = until_mark(&house, &mut two).await;
    let told = |frame: &Value| {
        let source = &frame["Source"];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (
            text(&source["MetaStore"]["EventWorkspaceId"]),
            text(&source["Path"]),
        )
    };
    let told: Vec<_> = frames.iter().map(told).collect();
    let of = |workspace: &str, path: &str| (format!("\"{workspace}\""), path.to_owned());
    assert_eq!(told, [of("ws-7", "team/x"), of("ws-8", "wide/team/x")]);
}

#[tokio::test]
async fn item_08_frames_are_as_protobuf_writes_them() {
    let house = House::new().await;
    let mut ana = house.events("ana").await;
    house.tell(json!({ "Type": "CREATE", "Target": {
        "Uuid": "n-5", "Path": "data/team/a.txt", "Type": 1, "Size": 1204, "MTime": 1_714_800_000, "Mode": 0,
        "MetaStore": { "name": "\"a.txt\"", "pydio:secret": "\"x\"", "odd": "no JSON" } } })).await;
    let expected = json!({ "Target": {
        "Uuid": "n-5", "Path": "team/a.txt", "Type": "LEAF", "Size": "1204", "MTime": "1714800000",
        "MetaStore": { "name": "\"a.txt\"", "odd": "\"no JSON\"", "EventWorkspaceId": "\"ws-7\"" } } });
    assert_eq!(ana.frame().await, expected);
}

#[tokio::test]
async fn item_09_a_move_over_the_border_is_a_creation_or_a_deletion() {
    let house = House::new().await;
    let mut ana = house.events("ana").await;
    let moved = |from: &str, to: &str| {
        let node = |path: &str| json!({ "Uuid": "m", "Path": path });
        json!({ "Type": "UPDATE_PATH", "Source": node(from), "Target": node(to) })
    };
    house.tell(moved("/elsewhere/a", "/data/team/a")).await;
    let frame = ana.frame().await;
    assert_eq!(
        (frame.get("Type"), &frame["Target"]["Path"]),
        (None, &json!("team/a"))
    );
    house.tell(moved("/data/team/a", "/elsewhere/a")).await;
    let frame = ana.frame().await;
    assert_eq!(
        (&frame["Type"], &frame["Source"]["Path"]),
        (&json!("DELETE"), &json!("team/a"))
    );
    assert_eq!(frame.get("Target"), None);
    house.tell(moved("/elsewhere/a", "/elsewhere/b")).await;
    assert_eq!(until_mark(&house, &mut ana).await, Vec::<Value>::new());
}

#[tokio::test]
async fn item_10_a_task_is_for_its_owner_and_the_systems_for_administrators() {
    let house = House::new().await;
    let mut ana = house.events("ana").await;
    let mut bob = house.events("bob").await;
    let mut admin = house.events("admin").await;
    house
        .tell(json!({
        "TaskUpdated": { "ID": "t1", "JobID": "j1", "Status": "Running", "TriggerOwner": "ana",
            "HasProgress": true, "Progress": 0.4, "CanPause": false },
        "Job": { "ID": "j1", "Label": "Copy", "Owner": "ana" } }))
        .await;
    house
        .tell(json!({ "TaskUpdated": { "ID": "t2", "TriggerOwner": "pydio.system.user" } }))
        .await;
    let of_ana = until_mark(&house, &mut ana).await;
    assert_eq!(
        of_ana,
        [json!({
        "TaskUpdated": { "ID": "t1", "JobID": "j1", "Status": "Running", "TriggerOwner": "ana",
            "HasProgress": true, "Progress": 0.4 },
        "Job": { "ID": "j1", "Label": "Copy", "Owner": "ana" } })]
    );
    assert_eq!(until_mark(&house, &mut bob).await, Vec::<Value>::new());
    let of_admin = until_mark(&house, &mut admin).await;
    assert_eq!(of_admin.len(), 1);
    assert_eq!(of_admin[0]["TaskUpdated"]["ID"], "t2");
}

#[tokio::test]
async fn item_11_an_identity_event_reaches_those_whom_it_concerns() {
    let house = House::new().await;
    let mut ana = house.events("ana").await;
    let mut ro = house.events("ro").await;
    let acl = |action: &str| json!({ "@type": "idm", "Type": "UPDATE", "Acl": { "RoleID": "team", "Action": { "Name": action } } });
    house
        .tell(json!({ "@type": "idm", "Type": "UPDATE", "Role": { "Uuid": "team" } }))
        .await;
    house.tell(acl("parameter:core:x")).await;
    house.tell(acl("action:y")).await;
    house.tell(acl("read")).await;
    house
        .tell(json!({ "@type": "idm", "User": { "Login": "ro" } }))
        .await;
    let of_ana = until_mark(&house, &mut ana).await;
    assert_eq!(
        of_ana,
        [
            json!({ "@type": "idm", "Type": "UPDATE", "Role": { "Uuid": "team" } }),
            json!({ "@type": "idm", "Type": "UPDATE", "Acl": { "RoleID": "team", "Action": { "Name": "read" } } }),
        ]
    );
    assert_eq!(
        until_mark(&house, &mut ro).await,
        [json!({ "@type": "idm", "User": { "Login": "ro" } })]
    );
}

#[tokio::test]
async fn rights_change_with_the_records_and_the_client_is_told_to_look() {
    let house = House::new().await;
    let mut eve = house.events("eve").await;
    let gone = |path: &str| json!({ "Type": "DELETE", "Source": { "Uuid": "z", "Path": path } });
    house
        .commit(Batch::new().put("roles/none", r#"{"workspaces":{"ws-7":"r"}}"#))
        .await;
    let told = eve.frame().await;
    assert_eq!(
        told,
        json!({ "@type": "idm", "Type": "UPDATE", "Role": { "Uuid": "none" } })
    );
    house.tell(gone("/data/team/x")).await;
    assert_eq!(eve.frame().await["Source"]["Path"], "team/x");
    house
        .commit(Batch::new().put("workspaces/ws-7", r#"{"slug":"team","roots":["/other"]}"#))
        .await;
    assert_eq!(eve.frame().await["Workspace"]["UUID"], "ws-7");
    house.tell(gone("/data/team/x")).await;
    house.tell(gone("/other/x")).await;
    assert_eq!(eve.frame().await["Source"]["Path"], "team/x");
    house.commit(Batch::new().remove("users/eve")).await;
    assert_eq!(eve.frame().await["Type"], "DELETE");
    house.tell(gone("/other/x")).await;
    assert_eq!(until_mark(&house, &mut eve).await, Vec::<Value>::new());
}

#[tokio::test]
async fn item_12_an_activity_is_for_its_owner_and_not_for_the_actor() {
    let house = House::new().await;
    let mut ana = house.events("ana").await;
    let mut bob = house.events("bob").await;
    let activity = |owner: &str, actor: &str, kind: &str, name: &str| {
        json!({ "@type": "activity", "OwnerType": kind, "OwnerId": owner, "BoxName": name,
            "Activity": { "type": "Update", "actor": { "id": actor }, "object": { "id": "n-1" } } })
    };
    let for_ana = activity("ana", "bob", "USER", "inbox");
    house.tell(for_ana.clone()).await;
    house.tell(activity("ana", "ana", "USER", "inbox")).await;
    house.tell(activity("ana", "bob", "NODE", "outbox")).await;
    assert_eq!(until_mark(&house, &mut ana).await, [for_ana]);
    assert_eq!(until_mark(&house, &mut bob).await, Vec::<Value>::new());
}

#[tokio::test]
async fn updates_that_follow_quickly_are_one_and_too_many_events_are_a_hint() {
    let house = House::configured("quiet = \"200ms\"", "").await;
    let mut ana = house.events("ana").await;
    let token = house.token("admin").await;
    let update =
        |kind: &str| json!({ "Type": kind, "Target": { "Uuid": "n", "Path": "/data/team/x" } });
    let burst = json!([
        update("UPDATE_META"),
        update("CREATE"),
        update("UPDATE_CONTENT")
    ]);
    house.tell_as(&token, &burst).await;
    let frame = ana.frame().await;
    assert_eq!(
        (frame.get("Type"), &frame["Target"]["Path"]),
        (None, &json!("team/x"))
    );
    assert_eq!(until_mark(&house, &mut ana).await, Vec::<Value>::new());
    // Deletions are not merged: 20 of them at once are told, and then a hint.
    let gone = |n: usize| json!({ "Type": "DELETE", "Source": { "Uuid": n.to_string(), "Path": format!("/data/team/{n}") } });
    let many: Vec<_> = (0..100).map(gone).collect();
    house.tell_as(&token, &json!(many)).await;
    let (mut told, mut last) = (0, Value::Null);
    while last["@type"] != "resync" {
        last = ana.frame().await;
        told += usize::from(last["Type"] == "DELETE");
    }
    assert!((15..100).contains(&told), "{told}");
}

#[tokio::test]
async fn what_a_key_is_not_about_is_not_told() {
    let house = House::new().await;
    let mut ana = house.events("ana").await;
    let task = |id: &str| json!({ "TaskUpdated": { "ID": id, "TriggerOwner": "ana" } });
    let activity = json!({ "OwnerType": "USER", "OwnerId": "ana", "BoxName": "inbox", "Activity": { "type": "Update" } });
    let node = json!({ "Type": "DELETE", "Source": { "Path": "/data/team/x" } });
    let forged = Batch::new()
        .signal("tasks/t1", task("t2").to_string())
        .signal("activities/bob", activity.to_string())
        .signal("nodes/elsewhere/x", node.to_string());
    house.commit(forged).await;
    assert_eq!(until_mark(&house, &mut ana).await, Vec::<Value>::new());
    let good = Batch::new()
        .signal("tasks/t1", task("t1").to_string())
        .signal("activities/ana/7", activity.to_string())
        .signal("nodes/data/team/x", node.to_string());
    house.commit(good).await;
    assert_eq!(until_mark(&house, &mut ana).await.len(), 3);
}
