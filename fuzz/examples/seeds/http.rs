//! Seeds of the target `http`. Each is named after the statuses of its answers, which a test of the server checks.

use crate::{Golden, Seeds};

/// Who sends: see `storage_server::fuzzing::http`. The second digit: all in one piece.
const ANONYMOUS: &str = "00";
const ADMINISTRATOR: &str = "10";
const STRANGER: &str = "20";
const NAMELESS: &str = "30";
/// At a listener that takes passwords.
const STRANGER_WITH_PASSWORD: &str = "r0";

/// A token that is good on a listener which lets anonymous peers in. A test of the server tells when it is another one.
const TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiIsImtpZCI6IjAwMDAwMDAwMDAwMDAwMDEifQ.eyJpc3MiOiJzdG9yYWdlLXN5bmMiLCJhdWQiOiJmdXp6IiwianRpIjoiMDYwNjA2MDYwNjA2MDYwNjA2MDYwNjA2MDYwNjA2MDYiLCJzdWIiOiJjZXJ0OnpvZSIsImlhdCI6MTAwMDAwMDAwMCwiZXhwIjo5OTk5OTk5OTk5OX0.X0oOGy6n2luuIwvlSRT2UWcLuacpZXLHugLKkN-FxCY";

const ADMIN_RULE: &str = r#"{"principal":"*","keyspace":"system","allow":["admin"]}"#;

pub(crate) fn write(seeds: &Seeds, native: &[Golden], mwdb: &[Golden]) {
    write_routes(seeds);
    write_refused(seeds);
    write_sequences(seeds);
    write_sockets(seeds, native, mwdb);
}

/// A request without a body.
fn plain(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

/// One of the API of users, tokens, rules and quotas.
fn auth(method: &str, path: &str, json: &str) -> String {
    let length = json.len();
    let headers = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
    format!(
        "{}{json}",
        plain(method, &format!("/-/auth/{path}"), &headers)
    )
}

fn write_routes(seeds: &Seeds) {
    let http = |name: &str, who: &str, request: &str| {
        seeds.write("http", name, format!("{who}{request}").as_bytes());
    };
    for (name, target) in [
        ("200-alive", "/healthz"),
        ("200-ready", "/readyz"),
        ("200-metrics", "/metrics"),
        ("200-whoami", "/-/auth/whoami"),
    ] {
        http(name, ANONYMOUS, &plain("GET", target, ""));
    }
    let question = "principal=cert:a&keyspace=model&key=a%2F%ff+b&permission=read";
    let question = format!("/-/auth/explain?{question}");
    for (name, target) in [
        ("200-explain", question.as_str()),
        ("200-rules", "/-/auth/rules"),
        ("200-quotas", "/-/auth/quotas"),
        ("200-usage", "/-/auth/usage?keyspace=model"),
        ("200-users", "/-/auth/users"),
        ("200-tokens", "/-/auth/tokens"),
    ] {
        http(name, ADMINISTRATOR, &plain("GET", target, ""));
    }
    let role = r#"{"members":["cert:*"]}"#;
    let quota = r#"{"principal":"role:ops","sessions":10}"#;
    let token =
        r#"{"ttl":"15m","name":"n","grants":[{"keyspace":"a","prefix":"b","allow":["read"]}]}"#;
    for (name, method, path, json) in [
        ("204-put-rule", "PUT", "rules/one", ADMIN_RULE),
        ("204-put-role", "PUT", "roles/ops?force=true", role),
        ("204-put-quota", "PUT", "quotas/one", quota),
        ("404-remove-rule", "DELETE", "rules/one", ""),
        ("404-remove-role", "DELETE", "roles/one?force=true", ""),
        ("404-remove-quota", "DELETE", "quotas/one", ""),
        ("404-remove-user", "DELETE", "users/ann", ""),
        (
            "404-revoke",
            "DELETE",
            "tokens/00112233445566778899aabbccddeeff",
            "",
        ),
        ("200-revoke-all", "DELETE", "tokens", ""),
        ("204-rotate", "POST", "keys", ""),
        ("201-mint", "POST", "tokens", token),
        (
            "404-change-user",
            "PUT",
            "users/ann",
            r#"{"disabled":true}"#,
        ),
    ] {
        http(name, ADMINISTRATOR, &auth(method, path, json));
    }
    let user = r#"{"password":"a password","new":true}"#;
    http(
        "204-add-user",
        ADMINISTRATOR,
        &auth("PUT", "users/ann", user),
    );
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    http(
        "200-bearer",
        ANONYMOUS,
        &plain("GET", "/-/auth/whoami", &bearer),
    );
}

fn write_refused(seeds: &Seeds) {
    let http = |name: &str, who: &str, request: &str| {
        seeds.write("http", name, format!("{who}{request}").as_bytes());
    };
    let whoami = |headers: &str| plain("GET", "/-/auth/whoami", headers);
    http("401-nothing-shown", STRANGER, &whoami(""));
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    http("401-revoked", STRANGER, &whoami(&bearer));
    http(
        "401-no-token",
        STRANGER,
        &whoami("Authorization: Bearer a.b.c\r\n"),
    );
    let basic = "Authorization: Basic YW5uOnNlY3JldA==\r\n";
    http("401-passwords-not-taken", STRANGER, &whoami(basic));
    http("401-password", STRANGER_WITH_PASSWORD, &whoami(basic));
    http(
        "400-no-base64",
        STRANGER,
        &whoami("Authorization: Basic %\r\n"),
    );
    http("403-nameless", NAMELESS, &whoami(""));
    http(
        "403-no-administrator",
        ANONYMOUS,
        &plain("GET", "/-/auth/users", ""),
    );
    http("400-no-host", ANONYMOUS, "GET / HTTP/1.1\r\n\r\n");
    http(
        "421-other-host",
        ANONYMOUS,
        "GET /healthz HTTP/1.1\r\nHost: example.com\r\n\r\n",
    );
    let json = "Origin: https://example.com\r\nContent-Type: application/json\r\n";
    http(
        "403-other-origin",
        ADMINISTRATOR,
        &plain("POST", "/-/auth/keys", json),
    );
    http("404-nothing-here", ANONYMOUS, &plain("GET", "/nothing", ""));
    http(
        "405-other-method",
        ANONYMOUS,
        &plain("POST", "/healthz", ""),
    );
    http(
        "426-no-upgrade",
        ANONYMOUS,
        &plain("GET", "/storage/demo", ""),
    );
    http(
        "415-a-form",
        ADMINISTRATOR,
        &format!(
            "{}a=b",
            plain(
                "POST",
                "/-/auth/tokens",
                "Content-Type: text/plain\r\nContent-Length: 3\r\n"
            )
        ),
    );
    http(
        "400-wrong-json",
        ADMINISTRATOR,
        &auth("PUT", "rules/one", "{\"principal\":1}"),
    );
    http(
        "400-locked-out",
        ADMINISTRATOR,
        &auth(
            "PUT",
            "rules/one",
            r#"{"principal":"cert:a","keyspace":"model","allow":["read"]}"#,
        ),
    );
    let much = "Content-Type: application/json\r\nContent-Length: 70000\r\n";
    http(
        "400-half-a-body",
        ADMINISTRATOR,
        &plain("POST", "/-/auth/tokens", much),
    );
    http("400-no-http", ANONYMOUS, "\x16\x03\x01\x02");
    http(
        "none-half-a-head",
        ANONYMOUS,
        "GET /healthz HTTP/1.1\r\nHost: loc",
    );
}

fn write_sequences(seeds: &Seeds) {
    let http = |name: &str, who: &str, request: &str| {
        seeds.write("http", name, format!("{who}{request}").as_bytes());
    };
    let alive = plain("GET", "/healthz", "");
    let whoami = plain("GET", "/-/auth/whoami", "");
    http(
        "200+200+404-pipelined",
        ANONYMOUS,
        &format!("{alive}{whoami}{}", plain("GET", "/nothing", "")),
    );
    http("200-in-pieces-of-5", "05", &alive);
    http("none-leaves", "40", &alive.repeat(3));
    http("200-old-http", ANONYMOUS, "GET /healthz HTTP/1.0\r\n\r\n");
    http("200-head", ANONYMOUS, &plain("HEAD", "/metrics", ""));
    let rule = auth("PUT", "rules/one", ADMIN_RULE);
    let rules = plain("GET", "/-/auth/rules", "");
    let gone = auth("DELETE", "rules/one?force=true", "");
    http(
        "204+200+204-rule-comes-and-goes",
        ADMINISTRATOR,
        &format!("{rule}{rules}{gone}"),
    );
    let chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    let chunked = plain("PUT", "/-/auth/roles/ops", chunked);
    let chunks = "a\r\n{\"members\"\r\nc;a=b\r\n:[\"cert:*\"]}\r\n0\r\nT: a\r\n\r\n";
    http(
        "204+200-chunked",
        ADMINISTRATOR,
        &format!("{chunked}{chunks}{whoami}"),
    );
    http(
        "400-chunked-and-ended",
        ADMINISTRATOR,
        &format!("{chunked}ff\r\n{{"),
    );
    let role = r#"{"members":[]}"#;
    let expecting = format!(
        "Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n",
        role.len()
    );
    let expecting = plain("PUT", "/-/auth/roles/ops", &expecting);
    http(
        "100+204-continue",
        ADMINISTRATOR,
        &format!("{expecting}{role}"),
    );
    http(
        "200-connection-close",
        ANONYMOUS,
        &format!(
            "{}{alive}",
            plain("GET", "/healthz", "Connection: close\r\n")
        ),
    );
}

/// A message of a client's WebSocket. A mask of zeros leaves it as it is.
fn message(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(length @ 0..=125) => frame.push(0x80 | length),
        _ => {
            let length = u16::try_from(payload.len()).expect("a short message");
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

fn write_sockets(seeds: &Seeds, native: &[Golden], mwdb: &[Golden]) {
    const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let upgrade =
        |target: &str, headers: &str| plain("GET", target, &format!("{UPGRADE}{headers}"));
    let socket = |name: &str, who: &str, head: &str, messages: &[Vec<u8>]| {
        let input = [who.as_bytes(), head.as_bytes(), &messages.concat()].concat();
        seeds.write("http", name, &input);
    };
    let of = |golden: &[Golden], name: &str| -> Vec<u8> {
        let found = golden.iter().find(|golden| golden.name == name);
        let found = found.unwrap_or_else(|| panic!("no vector {name}"));
        hex::decode(&found.hex).expect("hex")
    };
    let native_head = upgrade(
        "/storage/demo",
        "Sec-WebSocket-Protocol: storage-sync.v1\r\n",
    );
    let native = |names: &[&str]| -> Vec<Vec<u8>> {
        let frames = names.iter().map(|name| of(native, name));
        frames.map(|frame| message(BINARY, &frame)).collect()
    };
    let first = ["session/01-hello"];
    let requests = [
        "session/01-hello",
        "session/03-commit",
        "session/05-get",
        "scan/all",
        "scan-next/first",
        "probe/server",
    ];
    let watching = [
        "session/01-hello",
        "watch/latest-from-the-beginning",
        "session/03-commit",
        "credit/grant",
        "unwatch/request",
    ];
    socket("101-native", ANONYMOUS, &native_head, &native(&first));
    socket(
        "101-native-requests",
        ANONYMOUS,
        &native_head,
        &native(&requests),
    );
    socket(
        "101-native-watch",
        ADMINISTRATOR,
        &native_head,
        &native(&watching),
    );
    socket(
        "101-native-resume",
        ANONYMOUS,
        &native_head,
        &native(&["hello/resume"]),
    );
    socket(
        "101-native-parts",
        "07",
        &native_head,
        &native(&["hello/new", "part/first", "part/last"]),
    );
    socket("none-native-leaves", "40", &native_head, &native(&requests));
    let system = upgrade(
        "/storage/system",
        "Sec-WebSocket-Protocol: storage-sync.v1\r\n",
    );
    socket(
        "101-native-system",
        ADMINISTRATOR,
        &system,
        &native(&requests),
    );
    let bearer = format!("Sec-WebSocket-Protocol: storage-sync.v1, bearer.{TOKEN}\r\n");
    socket(
        "101-native-bearer",
        ANONYMOUS,
        &upgrade("/storage/demo", &bearer),
        &native(&first),
    );
    socket(
        "101-native-text",
        ANONYMOUS,
        &native_head,
        &[message(TEXT, "ä".as_bytes())],
    );
    let closing = [
        message(PING, b"p"),
        message(CLOSE, &[3, 232]),
        message(BINARY, b""),
    ];
    socket("101-closing", ANONYMOUS, &native_head, &closing);
    // Not masked, of an unknown kind, and longer than any.
    let wrong = vec![0xf3, 127, 0xff, 0, 0, 0, 0, 0, 0, 0];
    socket("101-wrong-frame", ANONYMOUS, &native_head, &[wrong]);
    let mwdb_head = upgrade("/", "Origin: http://localhost\r\n");
    let mwdb = |names: &[&str]| -> Vec<Vec<u8>> {
        let messages = names.iter().map(|name| of(mwdb, name));
        messages.map(|bytes| message(BINARY, &bytes)).collect()
    };
    let save = [
        "prefix-request",
        "get-connect",
        "put-1",
        "get-1",
        "remove-1",
    ];
    socket(
        "101-mwdb",
        ANONYMOUS,
        &mwdb_head,
        &mwdb(&["prefix-request"]),
    );
    socket("101-mwdb-requests", ANONYMOUS, &mwdb_head, &mwdb(&save));
    socket("401+400-native", STRANGER, &native_head, &native(&first));
    socket("403+400-native", NAMELESS, &native_head, &native(&first));
    socket(
        "400-no-subprotocol",
        ANONYMOUS,
        &upgrade("/storage/demo", ""),
        &[],
    );
    let old = native_head.replace("Version: 13", "Version: 8");
    socket("426-old-version", ANONYMOUS, &old, &[]);
    let body = upgrade(
        "/storage/demo",
        "Sec-WebSocket-Protocol: storage-sync.v1\r\nContent-Length: 1\r\n",
    );
    socket("400-upgrade-with-body", ANONYMOUS, &body, &[vec![b'x']]);
    let behind = plain("GET", "/healthz", "") + &native_head;
    socket(
        "200+101-upgrade-behind-a-request",
        ANONYMOUS,
        &behind,
        &native(&first),
    );
}
