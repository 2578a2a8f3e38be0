//! What is allowed in a configuration, and how errors name what is not.

use std::path::Path;

use super::super::Document;
use super::*;

const KNOWN: [&str; 2] = ["storage", "admin"];

fn checked(text: &str) -> Result<ServerConfig> {
    let config = Document::parse(Path::new("c.toml"), text)?.read()?;
    config.validate(&KNOWN)?;
    Ok(config)
}

fn error(text: &str) -> String {
    checked(text)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default()
}

#[test]
fn bad_values_are_refused_by_name() {
    for (text, key, allowed) in [
        ("dtaa = 'x'", "dtaa", "data"),
        (
            "[limits]\nkey_byte_max = 1",
            "key_byte_max",
            "key_bytes_max",
        ),
        ("[[listener]]\naddres = 'x'", "addres", "address"),
        (
            "certs = 'c'\ndurability = 'fsync'",
            "durability = \"fsync\"",
            "\"sync\", \"os\"",
        ),
        (
            "certs = 'c'\n[limits]\nkey_bytes_max = 70000",
            "limits.key_bytes_max = 70000",
            "16 to 65536",
        ),
        (
            "certs = 'c'\n[limits]\nrequests_in_flight_max = 0",
            "requests_in_flight_max = 0",
            "1 to 1024",
        ),
        (
            "certs = 'c'\n[limits]\nvalue_bytes_max = '64 MiB'",
            "value_bytes_max = 67108864",
            "message_bytes_max",
        ),
        (
            "certs = 'c'\n[limits]\nbytes_in_flight_max = '1 MiB'",
            "bytes_in_flight_max",
            "at least one message",
        ),
        (
            "certs = 'c'\n[limits]\noutbox_bytes_total_max = '127 MiB'",
            "limits.outbox_bytes_total_max = 133169152",
            "allowed are 134217728 to",
        ),
        (
            "certs = 'c'\n[limits]\nscans_max = 'many'",
            "\"many\"",
            "64 MiB",
        ),
        ("certs = 'c'\n[timeouts]\nheartbeat = '15'", "\"15\"", "15s"),
        (
            "certs = 'c'\n[timeouts]\nheartbeat = '1ms'",
            "timeouts.heartbeat = 1ms",
            "100ms to 24h",
        ),
        (
            "certs = 'c'\n[timeouts]\nsilence = '20s'",
            "timeouts.silence = 20s",
            "twice",
        ),
        (
            "certs = 'c'\n[timeouts]\nsession_kept = '30s'",
            "timeouts.session_kept = 30s",
            "session_grace (1m)",
        ),
        (
            "certs = 'c'\n[engine]\nread_threads = 0",
            "engine.read_threads = 0",
            "at least 1",
        ),
        (
            "certs = 'c'\n[engine]\nmwdb_keyspaces = ['A']",
            "\"A\"",
            "[a-z0-9]",
        ),
        (
            "certs = 'c'\n[events]\nkeyspace = 'A'",
            "events.keyspace = \"A\"",
            "[a-z0-9]",
        ),
        (
            "certs = 'c'\n[events]\nkeyspace = 'system'",
            "events.keyspace = \"system\"",
            "not the server's own",
        ),
        (
            "certs = 'c'\n[events]\nparams_action = 'patch'",
            "events.params_action = \"patch\"",
            "\"save\", \"update\"",
        ),
        (
            "certs = 'c'\n[events]\nping = '31s'",
            "events.silence = 1m",
            "twice events.ping (31s)",
        ),
        (
            "certs = 'c'\n[events]\nping = '1ms'",
            "events.ping = 1ms",
            "100ms to 12h",
        ),
        (
            "certs = 'c'\n[deliveries]\nkeyspaces = ['a', 'system']",
            "deliveries.keyspaces = \"system\"",
            "not the server's own",
        ),
        (
            "certs = 'c'\n[robots]\nping = '11s'",
            "robots.ping = 11s",
            "100ms to 10s",
        ),
        (
            "certs = 'c'\n[robots]\nsilence = '9s'",
            "robots.silence = 9s",
            "allowed are 16s to",
        ),
        (
            "certs = 'c'\n[robots]\ntime_zone = 'Europe/Nowhere'",
            "robots.time_zone = \"Europe/Nowhere\"",
            "no time zone",
        ),
        (
            "certs = 'c'\n[robots]\nrobots_max = 0",
            "robots.robots_max = 0",
            "allowed are 1 to",
        ),
        (
            "certs = 'c'\n[repository]\nkeyspace = 'system'",
            "repository.keyspace = \"system\"",
            "not the server's own",
        ),
        (
            "certs = 'c'\n[repository]\nsignup = 'all'",
            "repository.signup = \"all\"",
            "\"loopback\", \"off\"",
        ),
        (
            "certs = 'c'\n[repository]\nobject_bytes_max = 0",
            "repository.object_bytes_max = 0",
            "allowed are 1 to",
        ),
        (
            "certs = 'c'\n[log]\nformat = 'xml'",
            "log.format = \"xml\"",
            "\"json\"",
        ),
        ("", "certs", "server/cert.pem"),
        (
            "[[listener]]\ntls = 'off'",
            "listener[0].address",
            "0.0.0.0:7443",
        ),
        (
            "[[listener]]\naddress = 'localhost'",
            "\"localhost\"",
            "127.0.0.1:7443",
        ),
        (
            "[[listener]]\naddress = '0.0.0.0:1'\ntls = 'off'",
            "listener[0].tls",
            "danger_plaintext",
        ),
        (
            "[[listener]]\naddress = '0.0.0.0:1'\ntls = 'off'\ndanger_plaintext = true",
            "listener[0].auth = (not set)",
            "who is let in",
        ),
        (
            "certs = 'c'\n[[listener]]\naddress = '127.0.0.1:1'\ntls = 'server'",
            "listener[0].auth = (not set)",
            "who is let in",
        ),
        (
            "certs = 'c'\n[[listener]]\naddress = '127.0.0.1:1'\nauth = ['token']",
            "listener[0].auth",
            "certificates are taken and nothing else",
        ),
        (
            "[[listener]]\naddress = '127.0.0.1:1'\ntls = 'off'\nauth = ['certificate']",
            "listener[0].auth",
            "no certificates",
        ),
        (
            "[[listener]]\naddress = '127.0.0.1:1'\ntls = 'off'\nauth = []",
            "listener[0].auth",
            "at least one",
        ),
        (
            "[[listener]]\naddress = '127.0.0.1:1'\ntls = 'off'\nauth = ['key']",
            "listener[0].auth",
            "\"password\"",
        ),
        (
            "[[listener]]\naddress = '127.0.0.1:1'\ntls = 'no'",
            "listener[0].tls = \"no\"",
            "\"mutual\"",
        ),
        (
            "[[listener]]\naddress = '127.0.0.1:1'\ngateways = ['web']",
            "\"web\"",
            "\"storage\", \"admin\"",
        ),
        (
            "[[listener]]\naddress = '127.0.0.1:1'\ngateways = []",
            "gateways",
            "at least one",
        ),
        (
            "certs='c'\n[[listener]]\naddress = '127.0.0.1:1'\ntls_min_version = '1.1'",
            "tls_min_version",
            "1.2",
        ),
        (
            "certs='c'\n[[listener]]\naddress = '127.0.0.1:1'\ntls_max_version = '1.2'",
            "tls_max_version",
            "not below tls_min_version",
        ),
        (
            "certs='c'\n[[listener]]\naddress = '127.0.0.1:1'\nallowed_origins = ['example.com']",
            "\"example.com\"",
            "https://example.com",
        ),
        (
            "certs='c'\n[[listener]]\naddress = '127.0.0.1:1'\nallowed_hosts = ['db:1']",
            "\"db:1\"",
            "without a port",
        ),
        ("certs = 'c'\n[log]\nkeep = 0", "log.keep = 0", "1 to 10000"),
        (
            "certs = 'c'\n[audit]\ndays = 0",
            "audit.days = 0",
            "1 to 10000",
        ),
        (
            "certs = 'c'\n[audit]\nday_bytes_max = '1 KiB'",
            "audit.day_bytes_max = 1024",
            "at least 1048576",
        ),
        (
            "certs = 'c'\n[audit]\nevents = ['denied', 'reed']",
            "audit.events[1] = \"reed\"",
            "\"session\", \"write\", \"read\"",
        ),
        (
            "certs = 'c'\n[audit]\nfolder = ''",
            "audit.folder = \"\"",
            "a folder",
        ),
    ] {
        let error = error(text);
        assert!(
            error.contains(key) && error.contains(allowed),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn half_of_each_total_holds_a_message() {
    let text = "certs = 'c'\n[limits]\nmessage_bytes_max = '1 GiB'";
    let limits = checked(text).unwrap().limits;
    assert_eq!(limits.outbox_bytes_total_max, 2 << 30);
    assert_eq!(limits.partial_messages_bytes_max, 2 << 30);
    assert_eq!(limits.bytes_in_flight_total_max, 2 << 30);
}

#[test]
fn what_is_printed_reads_as_the_same() {
    let text = "certs = 'c'\n[limits]\nmessage_bytes_max = '128 MiB'\n[engine]\nlog_age = '36h'";
    let config = checked(text).unwrap();
    assert_eq!(config.limits.bytes_in_flight_max, 128 << 20);
    let printed = config.to_toml().unwrap();
    let again = checked(&printed).unwrap();
    assert_eq!(again.to_toml().unwrap(), printed);
    assert_eq!(again.engine.log_age, Duration::from_secs(36 * 3600));
    assert_eq!(again.limits.announced(), config.limits.announced());
    // Also where a message is longer than the default of the committer's queue.
    let largest = checked("certs = 'c'\n[limits]\nmessage_bytes_max = '1 GiB'").unwrap();
    checked(&largest.to_toml().unwrap()).unwrap();
}

#[test]
fn plaintext_is_for_loopback_unless_asked_for() {
    let text = "[[listener]]\naddress = '0.0.0.0:1'\ntls = 'off'\ndanger_plaintext = true\n\
        auth = ['anonymous']\ngateways = ['admin']";
    assert_eq!(error(text), "");
    assert_eq!(error("[[listener]]\naddress = '[::1]:1'\ntls = 'off'"), "");
}
