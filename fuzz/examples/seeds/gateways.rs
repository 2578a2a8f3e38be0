//! Seeds of the targets of gateways. Names that begin with `bad` have what is refused; a test of the server tells.

use crate::Seeds;

pub(crate) fn write(seeds: &Seeds) {
    write_events(seeds);
    write_repository(seeds);
    write_robots(seeds);
    write_targets(seeds);
    write_workspace(seeds);
}

/// A command, and the type, the action and the key of an event, with NUL bytes between them.
fn write_events(seeds: &Seeds) {
    for (name, text) in [
        ("all", "register *.*.*\0profiles\0save\0global"),
        ("one-key", "register machines.*.a.b.c\0machines\0update\0a.b.c"),
        ("list", "register profiles, params.save,update.*\0params\0save\0x"),
        ("escapes", "register t.*.a\\1b\\2c\\3\0t\0x\0a.b,c*"),
        ("keys", "register t.*.b,a,c\0t\0x\0b"),
        ("since", "register profiles.*.* since=17\0profiles\0save\0k"),
        ("since-position", "register *.*.* since=0123456789abcdef:17"),
        ("deregister", "  deregister profiles.*.*\n"),
        ("slash", "register a/b.*.c\0a/b\0x\0c"),
        ("bad-verb", "hello"),
        ("bad-short", "register *"),
        ("bad-nothing", "register"),
        ("bad-since", "register *.*.* since=x"),
        ("bad-deregister", "deregister *.*.* since=1"),
    ] {
        seeds.write("events_command", name, text.as_bytes());
    }
}

fn write_repository(seeds: &Seeds) {
    for (name, text) in [
        ("project", r#"{"user":"ana@x.org","project":"p1"}"#),
        ("source", r#"{"user":"ana@x.org","source":"PT"}"#),
        ("both", r#"{"User":"a","PROJECT":"p","source":"s","since":7,"token":"t"}"#),
        ("nothing", r#"{"user":"a","project":1,"source":""}"#),
        ("bad-null", "null"),
        ("bad-text", "hello"),
        ("bad-list", r#"[{"project":"p"}]"#),
        ("bad-since", r#"{"project":"p","since":-1}"#),
    ] {
        seeds.write("repository_frame", name, text.as_bytes());
    }
    for (name, json) in [
        ("example", r#"{"project":"other","Tag":"x1","MBT":{"completed":"false"},"n":4}"#),
        ("lengths", r#"{"a":"\u00e9","a_length":9,"A_LENGTH":"x","path":"no","b_length_length":1}"#),
        ("empty", "{}"),
        ("bad-list", "[]"),
        ("bad-json", r#"{"a":}"#),
    ] {
        let place = "demo_hpc\0user\0mypath\0main.c\0";
        seeds.write("repository_metadata", name, format!("{place}{json}").as_bytes());
    }
    let field = |name: &str, more: &str, data: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n{data}\r\n")
    };
    let file = field("UploadFile", "; filename=\"a.c\"", "int\r\n--x\r\n");
    let json = field("UploadJSON", "; filename=\"a.json\"", "{}");
    for (name, body) in [
        ("both", format!("\x03{file}{json}--b--\r\n")),
        ("field", format!("\x01{}--b--", field("project", "", "p"))),
        ("preamble", format!("\x07hello\r\n{json}--b--\r\nbehind")),
        ("bad-open", format!("\x05{file}")),
        ("bad-boundary", "\x02--b?\r\n".to_owned()),
    ] {
        seeds.write("repository_multipart", name, body.as_bytes());
    }
}

fn write_robots(seeds: &Seeds) {
    let object = r#"{"robotName":"LAB-PC-3","robotAddress":"0A1B2C3D4E5F","userID":4}"#;
    let text = object.replace('"', "\\\"");
    for (name, frame) in [
        ("metadata-object", format!(r#"{{"event":"client robot metaData","value":{object}}}"#)),
        ("metadata-text", format!(r#"{{"event":"client robot metaData","value":"{text}"}}"#)),
        ("metadata-later", r#"{"_event":"Client Robot MetaData","value":{"robotName":"a","robotAddress":"b","uuid":"c","token":"t"}}"#.to_owned()),
        ("metadata-without", r#"{"event":"client robot metaData","value":{"robotAddress":"b"}}"#.to_owned()),
        ("message", r#"{"event":"client robot message","value":{"a":[1,null,"x"]}}"#.to_owned()),
        ("decline", r#"{"event":"decline pkg reception","value":"invoice-7"}"#.to_owned()),
        ("decline-last", r#"{"_event":"Decline pkg reception","value":""}"#.to_owned()),
        ("other", r#"{"event":"hello"}"#.to_owned()),
        ("bad-null", "null".to_owned()),
        ("bad-list", r#"["client robot message",null,1]"#.to_owned()),
        ("bad-event", r#"{"event":1,"value":{}}"#.to_owned()),
        ("bad-cut", r#"{"event":"client robot mess"#.to_owned()),
    ] {
        seeds.write("robots_frame", name, frame.as_bytes());
    }
}

/// A byte that says in pieces of what size the rest arrives.
fn write_targets(seeds: &Seeds) {
    for (name, text) in [
        ("raw-quotes", "\x04GET /d?project=\"x\" HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("raw-second", "\x02POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\n\"\"\"GET /{} HTTP/1.1\r\n\r\n"),
        ("plain", "\x03GET /d?a=b HTTP/1.1\r\nHost: \"a\"\r\n\r\n"),
        ("chunked", "\x03POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\"\r\n0\r\n\r\nGET /\" HTTP/1.1\r\n\r\n"),
        ("body", "\x01POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET /\" H\n"),
    ] {
        seeds.write("request_target", name, text.as_bytes());
    }
}

/// A message of a client, and behind a NUL byte the text of a post.
fn write_workspace(seeds: &Seeds) {
    for (name, text) in [
        ("subscribe", "{\"@type\":\"subscribe\",\"jwt\":\"a.b.c\",\"ack\":true}"),
        ("register", "register:a.b.c"),
        ("unsubscribe", "{\"@type\":\"unsubscribe\"}"),
        ("join", "{\"@type\":\"JOIN\",\"Room\":{\"Type\":\"NODE\",\"RoomTypeObject\":\"n-1\"}}\0<b>hi</b> & <script>x</script>"),
        ("post", "{\"Type\":2,\"Message\":{\"RoomUuid\":\"r\",\"Message\":\"hi\",\"Info\":{\"k\":\"v\"}}}\0<a href=\"https://e.org/?a&b\">e</a>"),
        ("history", "{\"@type\":4,\"Room\":{},\"Message\":{\"Message\":\"{\\\"Offset\\\":\\\"2\\\",\\\"Limit\\\":40}\"}}\0<a href='javascript:x'>"),
        ("delete", "{\"@type\":\"DELETE_MSG\",\"Message\":{\"Uuid\":\"m\",\"Timestamp\":\"7\",\"Author\":\"a\"}}\0<i><b></i></b>&#x27;&amp;&nope;"),
        ("nothing-null", "null"),
        ("nothing-unknown", "{\"@type\":\"JOIN\",\"Room\":{\"Colour\":1}}"),
        ("nothing-list", "[]\0<pre><code>x"),
        ("bad-text", "hello"),
        ("bad-empty", ""),
    ] {
        seeds.write("workspace_frame", name, text.as_bytes());
    }
}
