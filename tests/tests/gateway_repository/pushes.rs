//! Who is told of an upload. That nothing comes is seen by what comes next: an upload that is told for sure.

use serde_json::{Value, json};
use storage_testkit::raw::in_time;
use tokio_tungstenite::tungstenite::Message;

use crate::house::{BOB, House, Socket};

/// The JSON of two uploads, as a manager and a tool send them.
const MANAGER: &str = r#"{
    "project": "demo_hpc", "project_length": 8,
    "MBT": {"completed": "false", "my_user_label": "it is optional"},
    "PT": {"completed": "false", "other_user_label": "mondays"},
    "MOM": {"name": "MOM", "completed": "false"}
}"#;
const TOOL: &str = r#"{"project":"phantom_tools_on_HPC","source":"PT","type":"Usercase","name":"HPC","content":"src_file"}"#;
const PLACE: &str = "project=demo_hpc&source=user&Path=mypath&DestFileName=main.c";

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn item_08_a_subscription_is_acknowledged() {
    let house = House::secured();
    let token = house.login(BOB).await;
    for target in [format!("/?token={token}"), format!("/?Token={token}")] {
        let mut socket = house.socket(&target).await;
        socket.say(r#"{"user":"u","project":"p"}"#).await;
        assert_eq!(
            parsed(&socket.hear().await),
            json!({"user":"u","suscribed_to_project":"p"})
        );
        socket
            .say(r#"{"USER":"u","Source":"s","project":"q"}"#)
            .await;
        let both = json!({"user":"u","suscribed_to_project":"q","suscribed_to_source":"s"});
        assert_eq!(parsed(&socket.hear().await), both);
        for (frame, told) in [
            ("{}", json!({"user":""})),
            (r#"{"user":"u","project":3}"#, json!({"user":"u"})),
        ] {
            socket.say(frame).await;
            assert_eq!(parsed(&socket.hear().await), told);
        }
    }
    // The token in the frame, and none at all.
    let mut socket = house.socket("/").await;
    socket.say(r#"{"user":"u","project":"p"}"#).await;
    assert!(
        socket.document().await["error"]
            .as_str()
            .unwrap()
            .contains("token")
    );
    socket
        .say(r#"{"user":"u","project":"p","token":"garbage"}"#)
        .await;
    assert!(socket.document().await["error"].is_string());
    socket
        .say(&format!(
            r#"{{"user":"u","project":"p","token":"{token}"}}"#
        ))
        .await;
    assert_eq!(
        parsed(&socket.hear().await),
        json!({"user":"u","suscribed_to_project":"p"})
    );
    // From then on it is known.
    socket.say(r#"{"user":"u","source":"s"}"#).await;
    assert_eq!(
        parsed(&socket.hear().await),
        json!({"user":"u","suscribed_to_source":"s"})
    );
    house.note(&token, "p", "x", "n").await;
    assert_eq!(socket.name().await, "n");
}

#[tokio::test]
async fn a_bad_token_opens_no_socket_and_none_has_some_time_to_come() {
    let house = House::new(&format!(
        "[timeouts]\nhandshake = \"300ms\"\n{}",
        crate::house::LISTENER
    ));
    let request = "GET /?token=garbage HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    assert_eq!(house.raw(request.as_bytes()).await.status, 401);
    let token = house.login(BOB).await;
    let frame = r#"{"user":"u","project":"p"}"#;
    let mut known = house.subscribed(&token, &[frame]).await;
    let mut silent = house.socket("/").await;
    assert_eq!(silent.closed().await, 1008);
    // Who has shown one with the request is there for as long as it likes.
    house.note(&token, "p", "s", "n").await;
    assert_eq!(known.name().await, "n");
}

/// Uploads two markers that each of the sockets is told of, and returns what each was told up to the second one: also what
/// would come twice behind the first.
async fn told_in_all<const N: usize>(
    house: &House,
    token: &str,
    marker: (&str, &str),
    sockets: [&mut Socket; N],
) -> [Vec<String>; N] {
    for name in ["marker", "marker-2"] {
        house.note(token, marker.0, marker.1, name).await;
    }
    let mut all = [const { Vec::new() }; N];
    for (socket, told) in sockets.into_iter().zip(&mut all) {
        *told = socket.names_up_to("marker-2").await;
    }
    all
}

#[tokio::test]
async fn item_09_a_socket_is_told_once_of_an_upload_that_two_of_its_subscriptions_match() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let frames = [
        r#"{"user":"u","project":"p"}"#,
        r#"{"user":"u","source":"s"}"#,
    ];
    let mut socket = house.subscribed(&token, &frames).await;
    // Both of one frame as well.
    let both = r#"{"user":"u","project":"p","source":"s"}"#;
    let mut other = house.subscribed(&token, &[both]).await;
    house.note(&token, "p", "s", "both").await;
    house.note(&token, "p", "x", "project").await;
    house.note(&token, "x", "s", "source").await;
    house.note(&token, "x", "x", "neither").await;
    house.note(&token, "p", "s", "last").await;
    let all = told_in_all(&house, &token, ("p", "s"), [&mut socket, &mut other]).await;
    for told in all {
        assert_eq!(
            told,
            ["both", "project", "source", "last", "marker", "marker-2"]
        );
    }
    assert_eq!(house.metric("storage_repository_pushes_total").await, 12.0);
    assert_eq!(house.metric("storage_repository_subscriptions").await, 4.0);
}

#[tokio::test]
async fn item_10_every_subscriber_of_project_and_source_is_told() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let mut one = house
        .subscribed(&token, &[r#"{"user":"u","project":"p"}"#])
        .await;
    let mut two = house
        .subscribed(&token, &[r#"{"user":"u","project":"p"}"#])
        .await;
    let mut three = house
        .subscribed(&token, &[r#"{"user":"u","source":"s"}"#])
        .await;
    house.note(&token, "p", "s", "n").await;
    let sockets = [&mut one, &mut two, &mut three];
    for told in told_in_all(&house, &token, ("p", "s"), sockets).await {
        assert_eq!(told, ["n", "marker", "marker-2"]);
    }
    assert_eq!(house.metric("storage_repository_pushes_total").await, 9.0);
}

#[tokio::test]
async fn item_11_names_are_compared_with_their_case() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let frames = [
        r#"{"user":"u","project":"Demo"}"#,
        r#"{"user":"u","source":"User"}"#,
    ];
    let mut socket = house.subscribed(&token, &frames).await;
    house.note(&token, "demo", "user", "other").await;
    house.note(&token, "Demo2", "User2", "longer").await;
    house.note(&token, "User", "Demo", "crossed").await;
    house.note(&token, "Demo", "user", "last").await;
    assert_eq!(socket.name().await, "last");
}

#[tokio::test]
async fn item_12_what_is_told_is_the_document() {
    let house = House::secured();
    let token = house.login(BOB).await;
    // By the parameters of the request, whatever the JSON says.
    let mut socket = house
        .subscribed(&token, &[r#"{"user":"u","project":"demo_hpc"}"#])
        .await;
    let mut other = house
        .subscribed(
            &token,
            &[r#"{"user":"u","project":"phantom_tools_on_HPC","source":"user"}"#],
        )
        .await;
    house.uploaded(&token, PLACE, b"x", TOOL).await;
    house.uploaded(&token, PLACE, b"x", MANAGER).await;
    let tool = json!({
        "project": "phantom_tools_on_HPC", "project_length": 20, "source": "PT", "source_length": 2,
        "path": "mypath", "path_length": 6, "filename": "main.c", "filename_length": 6,
        "type": "Usercase", "type_length": 8, "name": "HPC", "name_length": 3, "content": "src_file", "content_length": 8,
    });
    let manager = json!({
        "project": "demo_hpc", "project_length": 8, "source": "user", "source_length": 4,
        "path": "mypath", "path_length": 6, "filename": "main.c", "filename_length": 6,
        "mbt": {"completed": "false", "my_user_label": "it is optional"},
        "pt": {"completed": "false", "other_user_label": "mondays"},
        "mom": {"name": "MOM", "completed": "false"},
    });
    for socket in [&mut socket, &mut other] {
        assert_eq!(socket.document().await, tool);
        assert_eq!(socket.document().await, manager);
    }
    // To the byte what is stored.
    let json = r#"{"project":"other","Tag":"x1","MBT":{"completed":"false"},"n":4}"#;
    house.uploaded(&token, PLACE, b"x", json).await;
    let expected = r#"{"project":"other","project_length":5,"source":"user","source_length":4,"path":"mypath","path_length":6,"filename":"main.c","filename_length":6,"tag":"x1","tag_length":2,"mbt":{"completed":"false"},"n":4}"#;
    assert_eq!(socket.hear().await, expected);
    let stored = house.get("/query_metadata?project=other", &token).await;
    assert_eq!(stored.text(), format!("[{expected}]"));
}

#[tokio::test]
async fn item_13_sockets_do_not_share_their_subscriptions() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let project = |name: &str| format!(r#"{{"user":"u","project":"{name}"}}"#);
    let mut one = house
        .subscribed(&token, &[&project("a"), &project("b")])
        .await;
    let mut two = house
        .subscribed(&token, &[&project("c"), &project("d")])
        .await;
    for name in ["a", "c", "b", "d", "a", "c"] {
        house.note(&token, name, "s", name).await;
    }
    let [one] = told_in_all(&house, &token, ("b", "s"), [&mut one]).await;
    assert_eq!(one, ["a", "b", "a", "marker", "marker-2"]);
    let [two] = told_in_all(&house, &token, ("d", "s"), [&mut two]).await;
    assert_eq!(two, ["c", "d", "c", "marker", "marker-2"]);
}

#[tokio::test]
async fn item_15_a_repeated_subscription_is_acknowledged_again_and_told_once() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let frame = r#"{"user":"u","project":"p"}"#;
    let mut socket = house.subscribed(&token, &[frame, frame, frame]).await;
    house.note(&token, "p", "s", "one").await;
    house.note(&token, "p", "s", "two").await;
    let [told] = told_in_all(&house, &token, ("p", "s"), [&mut socket]).await;
    assert_eq!(told, ["one", "two", "marker", "marker-2"]);
    assert_eq!(house.metric("storage_repository_subscriptions").await, 1.0);
    assert_eq!(house.metric("storage_repository_pushes_total").await, 4.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_17_two_hundred_subscribers_are_told_beside_one_that_reads_nothing() {
    const SOCKETS: usize = 200;
    let house = House::secured();
    let token = house.login(BOB).await;
    let frame = r#"{"user":"u","project":"p"}"#;
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        sockets.push(house.subscribed(&token, &[frame]).await);
    }
    let stalled = house.subscribed(&token, &[frame]).await;
    // More than the buffers on its way hold.
    let json = format!("{{\"long\":\"{}\"}}", "x".repeat(500_000));
    let query = |n: usize| format!("project=p&source=s&Path=&DestFileName=n{n}");
    for n in 0..30 {
        house.uploaded(&token, &query(n), b"x", &json).await;
        for socket in &mut sockets[..20] {
            assert_eq!(socket.name().await, format!("n{n}"));
        }
    }
    let rest = sockets.split_off(20).into_iter().map(|mut socket| {
        tokio::spawn(async move {
            for n in 0..30 {
                assert_eq!(socket.name().await, format!("n{n}"));
            }
        })
    });
    for socket in rest.collect::<Vec<_>>() {
        socket.await.unwrap();
    }
    drop(stalled);
}

#[tokio::test]
async fn item_24_an_upload_without_its_file_is_told_to_nobody() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let mut socket = house
        .subscribed(&token, &[r#"{"user":"u","project":"demo_hpc"}"#])
        .await;
    let form = crate::house::Form::default().file("UploadJSON", TOOL.as_bytes());
    let answer = house
        .post_form(&format!("/upload?{PLACE}"), &token, &form)
        .await;
    assert_eq!(
        answer.told(),
        (400, "400:Bad Request, missing UploadFile.\n".to_owned())
    );
    assert_eq!(house.upload(&token, PLACE, b"x", "[]").await.status, 400);
    assert_eq!(house.get("/query_metadata", &token).await.text(), "[]");
    // A deletion is none either.
    house.note(&token, "demo_hpc", "s", "one").await;
    let delete = "/delete_metadata?project=demo_hpc&source=s&Path=&DestFileName=one";
    assert_eq!(house.post(delete, &token).await.status, 200);
    house.note(&token, "demo_hpc", "s", "two").await;
    assert_eq!(socket.name().await, "one");
    assert_eq!(socket.name().await, "two");
}

#[tokio::test]
async fn subscriptions_and_binary_sockets_live_on_one_port() {
    let both = "[repository]\nopen = true\n[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\n\
        gateways = [\"storage\", \"repository\"]\nauth = [\"anonymous\", \"token\", \"password\"]\n";
    let house = House::new(both);
    let mut text = house.socket("/").await;
    text.say(r#"{"user":"u","project":"p"}"#).await;
    assert!(text.hear().await.contains("suscribed_to_project"));
    // An mwDB client: it asks for a prefix, and is given one.
    let mut binary = house.socket("/").await;
    binary.send(Message::binary(vec![6, b'A'])).await;
    house.note("", "p", "s", "n").await;
    assert_eq!(text.name().await, "n");
    let answer = bytes(&mut binary).await;
    assert!(answer.ends_with(b"#\x07A"), "{answer:?}");
}

/// What mwDB clients are without the repository they are beside it, also where its own clients have to show a token.
#[tokio::test]
async fn anonymous_binary_sockets_are_served_beside_subscriptions_that_need_a_token() {
    let both = "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\n\
        gateways = [\"storage\", \"repository\"]\nauth = [\"anonymous\", \"token\", \"password\"]\n\
        [timeouts]\nhandshake = \"2s\"\n";
    let house = House::new(both);
    // One that says nothing for longer than a login may take.
    let mut listener = house.socket("/").await;
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    listener.send(Message::binary(vec![6, b'A'])).await;
    assert!(bytes(&mut listener).await.ends_with(b"#\x07A"));
    let mut writer = house.socket("/").await;
    writer.send(Message::binary(b"k#v#\x02G".to_vec())).await;
    assert_eq!(bytes(&mut writer).await, b"\x01#\x03G");
    let pushed = in_time("a push", bytes(&mut listener)).await;
    assert!(pushed.ends_with(b"#\x05"), "{pushed:?}");
    let mut text = house.socket("/").await;
    text.say(r#"{"user":"u","project":"p"}"#).await;
    assert!(text.hear().await.contains("error"));
    let token = house.login(BOB).await;
    text.say(&format!(
        r#"{{"user":"u","project":"p","token":"{token}"}}"#
    ))
    .await;
    assert!(text.hear().await.contains("suscribed_to_project"));
}

/// The next message of bytes.
async fn bytes(socket: &mut Socket) -> Vec<u8> {
    loop {
        match futures_util::StreamExt::next(&mut socket.0)
            .await
            .unwrap()
            .unwrap()
        {
            Message::Binary(bytes) => return bytes.to_vec(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}
