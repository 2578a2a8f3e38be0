//! Rooms: one for each object, messages in the order of commits, presence that ends by itself.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use storage_protocol::rooms::{
    Deleted, DeletedBy, Draft, HistoryWish, Member, Message, Room, RoomEvent, RoomFeed, RoomKey,
    Rooms,
};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Lifetime, Revision, Storage, StorageError, StorageExt,
    WatchStart,
};

use super::support::{Handle, bytes};
use super::{Context, cases};

cases!["rooms":
    those_who_open_a_room_at_once_make_one,
    messages_come_in_the_order_of_their_commits,
    a_history_has_every_message_on_one_page,
    a_post_is_one_commit_with_other_changes,
    a_feed_tells_what_happens,
    a_user_is_present_once_and_until_the_last_socket,
    presence_ends_with_its_session [EndSession],
    a_message_is_deleted_by_who_may,
    nothing_is_posted_to_a_room_that_is_removed,
    a_removed_room_leaves_nothing,
    prefixes_keep_rooms_apart,
    what_cannot_be_read_is_passed_over,
    an_index_row_leads_to_the_room_of_its_object_or_nowhere,
];

fn node(object: &str) -> RoomKey {
    RoomKey::new("NODE", object).unwrap()
}

fn draft(text: &str) -> Draft {
    Draft::new("ana", text).unwrap()
}

async fn room(rooms: &Rooms<Handle>, object: &str) -> Room {
    rooms
        .open_or_create(&node(object), "label")
        .await
        .unwrap()
        .0
}

async fn post(rooms: &Rooms<Handle>, room: &Room, text: &str) -> Message {
    rooms.post(room, &draft(text)).await.unwrap()
}

fn texts(messages: &[Message]) -> Vec<&str> {
    messages
        .iter()
        .map(|message| message.text.as_str())
        .collect()
}

async fn those_who_open_a_room_at_once_make_one(context: Context) {
    let mut handles = Vec::new();
    for _ in 0..8 {
        handles.push(Rooms::new(context.open().await));
    }
    let key = node("n-1");
    let opened = join_all(handles.iter().map(|rooms| rooms.open_or_create(&key, "a"))).await;
    let opened: Vec<(Room, bool)> = opened.into_iter().map(Result::unwrap).collect();
    let ids: BTreeSet<_> = opened.iter().map(|(room, _)| room.id).collect();
    assert_eq!(ids.len(), 1, "one room");
    assert_eq!(opened.iter().filter(|(_, is_new)| *is_new).count(), 1);
    let rooms = &handles[0];
    let found = rooms.open(&node("n-1")).await.unwrap().unwrap();
    assert_eq!(found, opened[0].0);
    assert_eq!((found.label.as_str(), found.key.object()), ("a", "n-1"));
    assert_eq!(rooms.open(&node("n-2")).await.unwrap(), None);
    // Types are kept apart, and lists are in order.
    let user = RoomKey::new("USER", "n-1").unwrap();
    let other = rooms.open_or_create(&user, "").await.unwrap().0;
    assert_ne!(other.id, found.id);
    let all = rooms.list(None, 10).await.unwrap();
    assert_eq!(all, [(node("n-1"), found.id), (user.clone(), other.id)]);
    assert_eq!(
        rooms.list(Some(&node("n-1")), 10).await.unwrap(),
        [(user, other.id)]
    );
    assert_eq!(rooms.list(None, 1).await.unwrap().len(), 1);
}

async fn messages_come_in_the_order_of_their_commits(context: Context) {
    let rooms = Rooms::new(context.open().await);
    let room = room(&rooms, "n-1").await;
    let mut posters = Vec::new();
    for _ in 0..4 {
        posters.push(Rooms::new(context.open().await));
    }
    let posting = posters.iter().enumerate().map(|(poster, rooms)| {
        let room = &room;
        async move {
            let mut posted = Vec::new();
            for n in 0..10 {
                posted.push(post(rooms, room, &format!("{poster}/{n}")).await);
            }
            posted
        }
    });
    let mut posted = join_all(posting).await.concat();
    posted.sort_by_key(|message| message.id);
    let page = rooms
        .history(room.id, HistoryWish::default())
        .await
        .unwrap();
    assert_eq!(page.messages, posted);
    assert!(!page.more);
    let ids: BTreeSet<String> = posted
        .iter()
        .map(|message| message.id.to_string())
        .collect();
    assert_eq!(ids.len(), 40);
    let one = &posted[17];
    assert_eq!(
        rooms.message(room.id, one.id).await.unwrap().as_ref(),
        Some(one)
    );
    let mut other = one.id;
    other.nonce[0] ^= 1;
    assert_eq!(rooms.message(room.id, other).await.unwrap(), None);
    assert_eq!(rooms.count(room.id, 100).await.unwrap().value, 40);
    assert_eq!(rooms.count(room.id, 7).await.unwrap().value, 7);
}

async fn a_history_has_every_message_on_one_page(context: Context) {
    let rooms = Rooms::new(context.open().await);
    let room = room(&rooms, "n-1").await;
    let mut posted = Vec::new();
    for n in 0..23 {
        posted.push(post(&rooms, &room, &n.to_string()).await);
    }
    for limit in [1, 2, 7, 23, 24] {
        // By offsets, and by revisions.
        let (mut by_offset, mut by_revision) = (Vec::new(), Vec::new());
        let mut before = None;
        for round in 0u64.. {
            let wish = HistoryWish {
                offset: round * limit as u64,
                limit,
                before: None,
            };
            let page = rooms.history(room.id, wish).await.unwrap();
            by_offset.splice(0..0, page.messages);
            let wish = HistoryWish {
                offset: 0,
                limit,
                before,
            };
            let other = rooms.history(room.id, wish).await.unwrap();
            assert_eq!(other.more, page.more);
            before = other.messages.first().map(|message| message.id.revision);
            by_revision.splice(0..0, other.messages);
            if !page.more {
                break;
            }
        }
        assert_eq!(by_offset, posted, "limit {limit}");
        assert_eq!(by_revision, posted, "limit {limit}");
        // Forward, from each place.
        for start in [0, 5, 22] {
            let (mut after, mut found) = (posted[start].id.revision, Vec::new());
            loop {
                let page = rooms.messages_after(room.id, after, limit).await.unwrap();
                found.extend(page.messages);
                match found.last() {
                    Some(last) if page.more => after = last.id.revision,
                    _ => break,
                }
            }
            assert_eq!(found, posted[start + 1..], "limit {limit} from {start}");
        }
    }
    let beyond = HistoryWish {
        offset: 24,
        ..HistoryWish::default()
    };
    let page = rooms.history(room.id, beyond).await.unwrap();
    assert!(page.messages.is_empty() && !page.more);
    let everything = rooms
        .messages_after(room.id, Revision::ZERO, 100)
        .await
        .unwrap();
    assert_eq!(everything.messages, posted);
}

async fn a_post_is_one_commit_with_other_changes(context: Context) {
    let storage = context.open().await;
    let rooms = Rooms::new(storage.clone());
    let room = room(&rooms, "n-1").await;
    let said = draft("with a change");
    let batch = Batch::new().put("count", "1");
    let batch = rooms.post_with(batch, &room, &said).unwrap();
    let position = storage
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    let page = rooms
        .history(room.id, HistoryWish::default())
        .await
        .unwrap();
    assert_eq!(page.messages, [said.posted(position.revision)]);
    let entry = storage.get_one(bytes("count")).await.unwrap().unwrap();
    assert_eq!(entry.revision, position.revision);
    // Or nothing of it.
    let batch = Batch::new().check_absent("count");
    let batch = rooms.post_with(batch, &room, &draft("never")).unwrap();
    let failed = storage.commit(batch, CommitOptions::default()).await;
    assert!(matches!(failed, Err(StorageError::CheckFailed { .. })));
    assert_eq!(rooms.count(room.id, 10).await.unwrap().value, 1);
}

async fn next(feed: &mut RoomFeed) -> RoomEvent {
    loop {
        match feed.next().await.unwrap().expect("the feed goes on") {
            RoomEvent::Progress(_) | RoomEvent::Continuity(_) => {}
            event => return event,
        }
    }
}

async fn a_feed_tells_what_happens(context: Context) {
    let rooms = Rooms::new(context.open().await);
    let room = room(&rooms, "n-1").await;
    let start = rooms.members(room.id).await.unwrap().position;
    let first = post(&rooms, &room, "before").await;
    let mut feed = rooms
        .follow(room.id, WatchStart::After(start))
        .await
        .unwrap();
    assert_eq!(next(&mut feed).await, RoomEvent::Message(first.clone()));
    rooms
        .join(&room, "bob", "1", Lifetime::Forever)
        .await
        .unwrap();
    rooms.leave(room.id, "bob", "1").await.unwrap();
    let deleted = rooms
        .delete(room.id, first.id, DeletedBy::Author("ana"))
        .await
        .unwrap();
    assert!(matches!(deleted, Deleted::Done(_, Some(message)) if message == first));
    // Another room is no business of this one.
    let other = rooms.open_or_create(&node("n-2"), "").await.unwrap().0;
    post(&rooms, &other, "elsewhere").await;
    assert!(rooms.remove(room.id).await.unwrap());
    let (user, socket) = ("bob".to_owned(), "1".to_owned());
    let expected = [
        RoomEvent::Joined {
            user: user.clone(),
            socket: socket.clone(),
        },
        RoomEvent::Left { user, socket },
        RoomEvent::Deleted {
            revision: first.id.revision,
            message: Some(first),
        },
        RoomEvent::Removed,
    ];
    for event in expected {
        assert_eq!(next(&mut feed).await, event);
    }
}

fn member(user: &str, sockets: &[&str]) -> Member {
    Member {
        user: user.to_owned(),
        sockets: sockets.iter().map(ToString::to_string).collect(),
    }
}

async fn a_user_is_present_once_and_until_the_last_socket(context: Context) {
    let rooms = Rooms::new(context.open().await);
    let room = room(&rooms, "n-1").await;
    for (user, socket) in [
        ("bob", "2"),
        ("ana", "1"),
        ("bob", "1"),
        ("bob", "1"),
        ("bo", "b1"),
    ] {
        rooms
            .join(&room, user, socket, Lifetime::Session)
            .await
            .unwrap();
    }
    let members = async || rooms.members(room.id).await.unwrap().value;
    let (ana, bo) = (member("ana", &["1"]), member("bo", &["b1"]));
    assert_eq!(
        members().await,
        [ana.clone(), bo.clone(), member("bob", &["1", "2"])]
    );
    rooms.leave(room.id, "bob", "2").await.unwrap();
    assert_eq!(
        members().await,
        [ana.clone(), bo.clone(), member("bob", &["1"])]
    );
    rooms.leave(room.id, "bob", "1").await.unwrap();
    rooms.leave(room.id, "bob", "1").await.unwrap();
    assert_eq!(members().await, [ana, bo]);
    for (user, socket) in [("", "1"), ("a\0b", "1"), ("a", ""), ("a", "\0")] {
        let refused = rooms.join(&room, user, socket, Lifetime::Session).await;
        assert!(matches!(refused, Err(StorageError::InvalidArgument { .. })));
    }
}

async fn presence_ends_with_its_session(context: Context) {
    let rooms = Rooms::new(context.open().await);
    let room = room(&rooms, "n-1").await;
    let start = rooms.members(room.id).await.unwrap().position;
    let session = context.session().await;
    let theirs = Rooms::new(session.storage.clone());
    theirs
        .join(&room, "bob", "1", Lifetime::Session)
        .await
        .unwrap();
    drop(theirs);
    (session.end.unwrap())().await;
    let mut feed = rooms
        .follow(room.id, WatchStart::After(start))
        .await
        .unwrap();
    let (user, socket) = ("bob".to_owned(), "1".to_owned());
    let joined = RoomEvent::Joined {
        user: user.clone(),
        socket: socket.clone(),
    };
    assert_eq!(next(&mut feed).await, joined);
    assert_eq!(next(&mut feed).await, RoomEvent::Left { user, socket });
}

async fn a_message_is_deleted_by_who_may(context: Context) {
    let rooms = Rooms::new(context.open().await);
    let room = room(&rooms, "n-1").await;
    let (first, second) = (
        post(&rooms, &room, "1").await,
        post(&rooms, &room, "2").await,
    );
    let delete = async |message: &Message, by| rooms.delete(room.id, message.id, by).await.unwrap();
    let refused = delete(&first, DeletedBy::Author("bob")).await;
    assert_eq!(refused, Deleted::OfAnother("ana".to_owned()));
    assert!(matches!(
        delete(&first, DeletedBy::Author("ana")).await,
        Deleted::Done(..)
    ));
    assert_eq!(
        delete(&first, DeletedBy::Author("ana")).await,
        Deleted::Missing
    );
    let page = rooms
        .history(room.id, HistoryWish::default())
        .await
        .unwrap();
    assert_eq!(texts(&page.messages), ["2"]);
    assert!(matches!(
        delete(&second, DeletedBy::Anyone).await,
        Deleted::Done(..)
    ));
    assert_eq!(rooms.count(room.id, 10).await.unwrap().value, 0);
}

async fn nothing_is_posted_to_a_room_that_is_removed(context: Context) {
    let rooms = Rooms::new(context.open().await);
    let old = room(&rooms, "n-1").await;
    assert!(rooms.remove(old.id).await.unwrap());
    let failed = rooms.post(&old, &draft("late")).await;
    assert!(matches!(failed, Err(StorageError::CheckFailed { .. })));
    let failed = rooms.join(&old, "ana", "1", Lifetime::Session).await;
    assert!(matches!(failed, Err(StorageError::CheckFailed { .. })));
    assert_eq!(rooms.get(old.id).await.unwrap(), None);
    let new = room(&rooms, "n-1").await;
    assert_ne!(new.id, old.id);
    post(&rooms, &new, "hello").await;
}

async fn a_removed_room_leaves_nothing(context: Context) {
    let storage = context.open().await;
    let rooms = Rooms::new(storage.clone());
    let gone = room(&rooms, "n-1").await;
    let kept = room(&rooms, "n-2").await;
    // More than go in one commit.
    let mut batch = Batch::new();
    let prefix = rooms.range(gone.id).start;
    for n in 0..1_200u64 {
        let value = storage_protocol::rooms::MessageRecord(draft("x")).encode();
        batch = batch.put([&prefix[..], b"m/", &n.to_be_bytes()].concat(), value);
    }
    storage
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    rooms
        .join(&gone, "ana", "1", Lifetime::Session)
        .await
        .unwrap();
    post(&rooms, &kept, "stays").await;
    assert!(rooms.remove(gone.id).await.unwrap());
    assert!(!rooms.remove(gone.id).await.unwrap());
    let scan = storage
        .scan(KeyRange::all(), Default::default())
        .await
        .unwrap();
    let left = scan.collect().await.unwrap();
    // The other one's record, index row and message.
    assert_eq!(left.len(), 3);
    assert_eq!(
        rooms.list(None, 10).await.unwrap(),
        [(node("n-2"), kept.id)]
    );
}

async fn prefixes_keep_rooms_apart(context: Context) {
    let storage = context.open().await;
    let one = Rooms::under(storage.clone(), "one/").unwrap();
    let two = Rooms::under(storage.clone(), "two/").unwrap();
    let of_one = room(&one, "n-1").await;
    post(&one, &of_one, "in one").await;
    assert_eq!(two.open(&node("n-1")).await.unwrap(), None);
    let of_two = room(&two, "n-1").await;
    assert_ne!(of_one.id, of_two.id);
    assert_eq!(two.get(of_one.id).await.unwrap(), None);
    assert_eq!(two.count(of_two.id, 10).await.unwrap().value, 0);
    assert!(Rooms::under(storage, vec![b'x'; 300]).is_err());
}

async fn what_cannot_be_read_is_passed_over(context: Context) {
    let storage = context.open().await;
    let rooms = Rooms::new(storage.clone());
    let room = room(&rooms, "n-1").await;
    let start = rooms.members(room.id).await.unwrap().position;
    let prefix = rooms.range(room.id).start;
    let at = |revision: u64| [&prefix[..], b"m/", &revision.to_be_bytes()].concat();
    let good = storage_protocol::rooms::MessageRecord(draft("late")).encode();
    let mut newer = good.to_vec();
    newer[0] = 2;
    let first = post(&rooms, &room, "first").await;
    // No record, a newer one, one that would hide all that comes later, and no message at all.
    let bad = Batch::new()
        .put(at(1), "garbage")
        .put(at(2), newer)
        .put(at(u64::MAX), good)
        .put([&prefix[..], b"m/short"].concat(), "x")
        .put("rooms/-/NODE/bad", "no id");
    storage.commit(bad, CommitOptions::default()).await.unwrap();
    let last = post(&rooms, &room, "last").await;
    for limit in 1..8 {
        let wish = HistoryWish {
            limit,
            ..HistoryWish::default()
        };
        let page = rooms.history(room.id, wish).await.unwrap();
        let expected: &[&str] = match limit {
            1 => &["last"],
            _ => &["first", "last"],
        };
        assert_eq!(texts(&page.messages), expected, "{limit}");
        let page = rooms
            .messages_after(room.id, Revision::ZERO, limit)
            .await
            .unwrap();
        let expected: &[&str] = match limit {
            1 => &["first"],
            _ => &["first", "last"],
        };
        assert_eq!(texts(&page.messages), expected, "{limit}");
    }
    // By offsets each is on one page, too.
    let (mut offset, mut found) = (0, Vec::new());
    loop {
        let wish = HistoryWish {
            offset,
            limit: 1,
            before: None,
        };
        let page = rooms.history(room.id, wish).await.unwrap();
        found.extend(page.messages);
        offset += page.rows;
        if !page.more {
            break;
        }
    }
    assert_eq!(texts(&found), ["last", "first"]);
    let mut feed = rooms
        .follow(room.id, WatchStart::After(start))
        .await
        .unwrap();
    assert_eq!(next(&mut feed).await, RoomEvent::Message(first));
    assert_eq!(next(&mut feed).await, RoomEvent::Message(last));
    assert_eq!(
        rooms.list(None, 10).await.unwrap(),
        [(node("n-1"), room.id)]
    );
    // An administrator gets rid of it by its revision; an author is told.
    let id = storage_protocol::rooms::MessageId {
        revision: Revision(1),
        nonce: [0; 8],
    };
    let refused = rooms.delete(room.id, id, DeletedBy::Author("ana")).await;
    assert!(matches!(refused, Err(StorageError::Unsupported { .. })));
    let deleted = rooms.delete(room.id, id, DeletedBy::Anyone).await.unwrap();
    assert!(matches!(deleted, Deleted::Done(_, None)), "{deleted:?}");
    assert_eq!(
        next(&mut feed).await,
        RoomEvent::Deleted {
            revision: Revision(1),
            message: None
        }
    );
}

async fn an_index_row_leads_to_the_room_of_its_object_or_nowhere(context: Context) {
    let storage = context.open().await;
    let rooms = Rooms::new(storage.clone());
    let private = room(&rooms, "private").await;
    let batch = Batch::new().put("rooms/-/GLOBAL/", private.id.to_string());
    storage
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    let global = RoomKey::new("GLOBAL", "").unwrap();
    assert_eq!(rooms.open(&global).await.unwrap(), None);
    let (opened, is_new) = rooms.open_or_create(&global, "").await.unwrap();
    assert!(is_new);
    assert_ne!(opened.id, private.id);
    assert_eq!(rooms.open(&node("private")).await.unwrap(), Some(private));
}
