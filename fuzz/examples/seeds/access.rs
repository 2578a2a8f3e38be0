//! Seeds of the targets `tokens` and `rules`.

use crate::Seeds;

/// As `storage_server::fuzzing::tokens` mints them, always the same: three good ones, then an expired one, one of another
/// store and one of another key. A test there tells of any that is missing.
const TOKENS: [(&str, &str); 6] = [
    (
        "minted",
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiIsImtpZCI6IjAwMDAwMDAwMDAwMDAwMDEifQ.eyJpc3MiOiJzdG9yYWdlLXN5bmMiLCJhdWQiOiJmdXp6IiwianRpIjoiMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEiLCJzdWIiOiJjZXJ0OnByb2R1Y2VyIiwiaWF0IjoxMDAwMDAwMDAwLCJleHAiOjEwMDAwMDM2MDB9.Gm7TdSy0E24QYcKPEf21ojtSW55lupPNEd364bQxbTA",
    ),
    (
        "minted-by-the-older-key",
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiIsImtpZCI6IjAwMDAwMDAwMDAwMDAwMDAifQ.eyJpc3MiOiJzdG9yYWdlLXN5bmMiLCJhdWQiOiJmdXp6IiwianRpIjoiMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIiLCJzdWIiOiJ1c2VyOmFubiIsImlhdCI6MTAwMDAwMDAwMCwiZXhwIjoxMDAwMDAzNjAwfQ.wehl7h2ydz8XkWqN8zdn4wWuB1ZKvVClUtpAp356l-4",
    ),
    (
        "minted-in-the-short-form",
        "sst1.0000000000000001.07070707070707070707070707070707.1000003600.QYc--G0AboeX3kxZG3AeUbO9UhunjSqihhxVLzLoXvU",
    ),
    (
        "expired",
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiIsImtpZCI6IjAwMDAwMDAwMDAwMDAwMDEifQ.eyJpc3MiOiJzdG9yYWdlLXN5bmMiLCJhdWQiOiJmdXp6IiwianRpIjoiMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMiLCJzdWIiOiJ1c2VyOmFubiIsImlhdCI6MSwiZXhwIjozNjAxfQ.1Q0gB-acaydH9gfcPmX1ZYxBNLDVVlPHCXhRkpqXuBA",
    ),
    (
        "other-store",
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiIsImtpZCI6IjAwMDAwMDAwMDAwMDAwMDEifQ.eyJpc3MiOiJzdG9yYWdlLXN5bmMiLCJhdWQiOiJvdGhlciIsImp0aSI6IjA0MDQwNDA0MDQwNDA0MDQwNDA0MDQwNDA0MDQwNDA0Iiwic3ViIjoidXNlcjphbm4iLCJpYXQiOjEwMDAwMDAwMDAsImV4cCI6MTAwMDAwMzYwMH0.W15JB9Jd5HU4xwooZpTEslHL1HUali20LwmjGRIzdKg",
    ),
    (
        "other-key",
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiIsImtpZCI6IjAwMDAwMDAwMDAwMDAwMDIifQ.eyJpc3MiOiJzdG9yYWdlLXN5bmMiLCJhdWQiOiJmdXp6IiwianRpIjoiMDUwNTA1MDUwNTA1MDUwNTA1MDUwNTA1MDUwNTA1MDUiLCJzdWIiOiJ1c2VyOmFubiIsImlhdCI6MTAwMDAwMDAwMCwiZXhwIjoxMDAwMDAzNjAwfQ.EAXAdE5q3Zn-Mh_GjEQigMhAak7OoXMxar-KM-dvB_s",
    ),
];

pub(crate) fn write(seeds: &Seeds) {
    write_tokens(seeds);
    write_rules(seeds);
}

/// The first byte says what the others are: 0 a token, 1 a header and a payload to be signed, 2 changes of a token, 3 a
/// text of a request, 4 stored keys.
fn write_tokens(seeds: &Seeds) {
    let tokens = |name: &str, text: &str| seeds.write("tokens", name, text.as_bytes());
    for (name, token) in TOKENS {
        tokens(name, &format!("0{token}"));
    }
    let minted = TOKENS[0].1;
    tokens("garbage", "0a.b.c");
    tokens("one-part", "0eyJhbGciOiJIUzI1NiJ9");
    // {"alg":"none","typ":"JWT","kid":"0000000000000001"}, the minted payload, and no signature.
    let payload = minted.split('.').nth(1).unwrap_or_default();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIiwia2lkIjoiMDAwMDAwMDAwMDAwMDAwMSJ9";
    tokens("alg-none", &format!("0{none}.{payload}."));
    tokens(
        "signed",
        concat!(
            r#"1{"typ":"JWT","alg":"HS256","kid":"0000000000000001"}"#,
            "\n",
            r#"{"iss":"storage-sync","aud":"fuzz","jti":"00112233445566778899aabbccddeeff","#,
            r#""sub":"user:ann","iat":1000000000,"exp":1000003600}"#
        ),
    );
    tokens(
        "signed-otherwise",
        concat!(
            r#"1{"alg":"HS384","kid":"0000000000000001","x5c":[]}"#,
            "\n",
            r#"{"iss":"other","aud":["fuzz"],"exp":1e99}"#
        ),
    );
    seeds.write("tokens", "changed-signature", b"2\0\0\xf0\x01");
    seeds.write("tokens", "changed-payload", b"2\x01\0\x60\x01\0\x61\x02");
    tokens("request-bearer", &format!("3Bearer {minted}"));
    tokens("request-basic", "3basic YW5uOnNlY3JldA==");
    tokens("request-query", &format!("3a=b&Token={minted}\n&c=d"));
    tokens(
        "request-subprotocols",
        &format!("3storage-sync.v1, bearer.{minted}"),
    );
    tokens(
        "keys",
        concat!(
            r#"4{"version":1,"keys":["#,
            r#"{"kid":"0000000000000000","made":0,"secret":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="},"#,
            r#"{"kid":"0000000000000001","made":1,"secret":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="}]}"#
        ),
    );
}

/// A line with a principal, a keyspace and a key; records of the keyspace `system`; behind `+++` a configuration. Names that
/// begin with `bad` have what is refused.
fn write_rules(seeds: &Seeds) {
    let rules = |name: &str, text: &str| seeds.write("rules", name, text.as_bytes());
    rules(
        "stored",
        r#"cert:robot-7 model-a robots/7/pose
access/boss {"principal":"cert:boss","keyspace":"system","allow":["admin"]}
access/robots {"principal":"role:robots","keyspace":"model*","prefix":"robots/","allow":["read","watch"]}
access/all {"principal":"*","keyspace":"*","allow":["read"]}
roles/robots {"members":["cert:robot-*","user:ann"]}
users/ann {"disabled":false,"password_set":1700000000000}
quotas/robots {"principal":"role:robots","commits_per_second":100,"bytes_per_second":"1 MiB","sessions":10,"watches":5}
quotas/tenants {"keyspace":"tenant-*","bytes":10000000000,"entries":1000000}"#,
    );
    rules(
        "token",
        r#"user:ann a k
tokens/00112233445566778899aabbccddeeff {"principal":"user:ann","name":"n","grants":[{"principal":"*","keyspace":"a","allow":["read"]}],"issued":1,"expires":2,"password_set":3,"parent":"p","certificates":["AAEC"]}"#,
    );
    rules(
        "configured",
        r#"user:ann model k
+++
certs = "certs"
[[rule]]
principal = "cert:boss"
keyspace = "system*"
allow = ["admin"]
[[rule]]
principal = "role:ops"
keyspace = "model"
prefix = "a/"
allow = ["read", "write", "watch"]
[[role]]
name = "ops"
members = ["user:*"]
[[quota]]
keyspace = "model"
bytes = "10 GiB"
[[quota]]
principal = "role:ops"
sessions = 3"#,
    );
    rules(
        "both",
        r#"anonymous system k
access/a {"principal":"role:ops","keyspace":"system.secrets","allow":["admin","read"]}
access/b {"principal":"anonymous","keyspace":"system","allow":["admin"]}
access/c {"principal":"cert:a*b*c","keyspace":"*b","prefix":"","allow":["write"]}
roles/ops {"members":[]}
+++
[[role]]
name = "ops"
members = ["*"]
[[listener]]
address = "127.0.0.1:7443"
tls = "off""#,
    );
    rules(
        "bad-records",
        r#"cert:a model k
access/a {"principal":"role:Ops","keyspace":"","allow":[]}
access/b ["*","*","",["admin"]]
roles/Ops {"members":["role:ops"]}
quotas/a {"principal":"a","bytes":1,"keyspace":"b"}
users/a:b {"disabled":1}
unknown/x {}
tokens/x {}"#,
    );
    rules(
        "bad-configuration",
        "cert:a model k\n+++\n[[rule]]\nprincipal = 3\nallow = [\"all\"]",
    );
}
