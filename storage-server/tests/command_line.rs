//! The binary from outside: precedence of settings, refusals with their exit codes, start and orderly end.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_storage-server"));
    command.args(args).env_remove("STORAGE_SERVER_CONFIG");
    command
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A configuration without TLS, in a folder of its own.
fn plain_config(dir: &Path, port: u16) -> String {
    let data = dir.join("data");
    let path = dir.join("server.toml");
    let text = format!(
        "data = {data:?}\n\
         [engine]\ndisk_reserve_bytes = 0\n\
         [[listener]]\naddress = '127.0.0.1:{port}'\ntls = 'off'\n\
         [[listener]]\naddress = '127.0.0.1:0'\ntls = 'off'\ngateways = ['admin']\n"
    );
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "certs = 'c'\ndata = 'file'\ndurability = 'os'\n").unwrap();
    let file = file.to_str().unwrap();
    let print = ["config", "print", "--config", file];
    let (_, from_file, _) = output(&mut command(&print));
    assert!(from_file.contains("data = \"file\"") && from_file.contains("durability = \"os\""));
    let environment = |args: &[&str]| {
        let mut command = command(args);
        command.env("STORAGE_SERVER_DATA", "environment");
        output(&mut command).1
    };
    assert!(environment(&print).contains("data = \"environment\""));
    let flag = [&print[..], &["--data", "flag"]].concat();
    assert!(environment(&flag).contains("data = \"flag\""));
}

#[test]
fn a_wrong_configuration_ends_with_2_and_names_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "certs = 'c'\n[limits]\nwatchs_max = 1\n").unwrap();
    let (code, _, error) = output(&mut command(&["serve", "--config", file.to_str().unwrap()]));
    assert_eq!(code, Some(2));
    assert!(
        error.contains("c.toml:3") && error.contains("watchs_max"),
        "{error}"
    );
    let (code, _, error) = output(&mut command(&["config", "check"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("certs"), "{error}");
    assert_eq!(
        output(&mut command(&["serve", "--no-such-flag"])).0,
        Some(2)
    );
}

#[test]
fn it_serves_until_it_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let config = plain_config(dir.path(), 0);
    let child = command(&["serve", "--config", &config])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut server = Killed(child);
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let storage = lines.next().unwrap().unwrap();
    let address = storage
        .strip_prefix("listening ws://")
        .unwrap()
        .strip_suffix(" storage")
        .unwrap();
    let admin = lines.next().unwrap().unwrap();
    assert!(
        admin.starts_with("listening http://127.0.0.1:") && admin.ends_with(" admin"),
        "{admin}"
    );

    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let other = tempfile::tempdir().unwrap();
    let taken = plain_config(other.path(), port);
    let (code, _, error) = output(&mut command(&["serve", "--config", &taken]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{error}"
    );

    kill_process(Pid::from_child(&server.0), Signal::TERM).unwrap();
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
}
