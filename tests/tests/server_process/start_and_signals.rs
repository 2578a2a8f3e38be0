//! Signals at any time, and what is judged before the start.

use std::os::unix::fs::OpenOptionsExt;

use super::*;

/// A server whose start waits for the other end of a pipe, which is what it takes for its format's file.
fn stuck_in_its_start(folder: &Folder) -> (Serving, fs::File) {
    fs::create_dir(folder.data()).unwrap();
    let pipe = folder.data().join("STORE");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let serving = Serving::start(&["--config", &folder.config(PLAIN)], 0);
    let deadline = Instant::now() + PATIENCE;
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    // Only when it is being read can it be opened so.
    let pipe = loop {
        match fs::File::options()
            .write(true)
            .custom_flags(flags)
            .open(&pipe)
        {
            Ok(pipe) => break pipe,
            Err(_) => assert!(
                Instant::now() < deadline,
                "the start comes to its data folder"
            ),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (serving, pipe)
}

#[test]
fn a_signal_during_the_start_ends_it_in_order() {
    let folder = Folder::new();
    let (mut serving, mut pipe) = stuck_in_its_start(&folder);
    serving.signal(Signal::TERM);
    serving.wait_for_log("as soon as the start is through");
    pipe.write_all(b"storage-sync store, format 1\n").unwrap();
    drop(pipe);
    assert_eq!(serving.end(PATIENCE), Some(0));
    assert!(serving.log().join("\n").contains("stopped while starting"));
    assert_eq!(serving.stdout.iter().count(), 0, "it never listened");
    let mark = fs::read_to_string(folder.data().join("SYNCED")).unwrap();
    assert!(mark.contains("clean"), "{mark}");
}

#[test]
fn a_second_signal_during_the_start_ends_it_at_once() {
    let folder = Folder::new();
    let (mut serving, _pipe) = stuck_in_its_start(&folder);
    serving.signal(Signal::TERM);
    serving.wait_for_log("as soon as the start is through");
    serving.signal(Signal::INT);
    assert_eq!(serving.end(PATIENCE), Some(1));
}

#[test]
fn a_hang_up_is_noted_and_ends_nothing() {
    let folder = Folder::new();
    let mut serving = Serving::start(&["--config", &folder.config(PLAIN)], 1);
    serving.signal(Signal::HUP);
    serving.wait_for_log("SIGHUP");
    assert_eq!(get(serving.address(0), "/storage/model").0, 426);
    serving.signal(Signal::TERM);
    serving.wait_for_log("shutting down");
    assert_eq!(serving.end(PATIENCE), Some(0));
}

#[test]
fn a_variable_that_there_is_not_is_refused_and_an_empty_one_is_none() {
    let folder = Folder::new();
    let config = folder.config(PLAIN);
    let print = |name: &str, value: &str| {
        let mut command = server(&["config", "print", "--config", &config]);
        run(command.env(name, value), b"")
    };
    print("STORAGE_SERVER_LISTN", "127.0.0.1:1")
        .expect(2)
        .says(&["STORAGE_SERVER_LISTN", "STORAGE_SERVER_LISTEN"]);
    let data = format!("data = {:?}", folder.data());
    for name in [
        "STORAGE_SERVER_DATA",
        "STORAGE_SERVER_LISTEN",
        "STORAGE_SERVER_CERTS",
        "STORAGE_SERVER_CONFIG",
        "STORAGE_SERVER_ACCEPT_DATA_LOSS",
        "STORAGE_SERVER_LOG",
    ] {
        assert!(print(name, "").expect(0).text().contains(&data), "{name}");
    }
    for flag in ["--data", "--listen", "--log-format"] {
        ran(&["config", "check", "--config", &config, flag, ""])
            .expect(2)
            .says(&[flag]);
    }
    for address in ["127.1:7443", ":7443", "localhost:7443"] {
        ran(&["config", "check", "--config", &config, "--listen", address])
            .expect(2)
            .says(&["--listen", address, "IP address"]);
    }
}

#[test]
fn a_check_reads_the_certificates() {
    let folder = Folder::new();
    let config = folder.config(&format!("certs = '/no/where'\n{MUTUAL}"));
    ran(&["config", "check", "--config", &config])
        .expect(2)
        .says(&["/no/where/server"]);
}

#[test]
fn print_tells_the_defaults_of_the_engine_too() {
    let folder = Folder::new();
    let printed = ran(&["config", "print", "--config", &folder.config(PLAIN)]).expect(0);
    let (_, engine) = printed.text().split_once("[engine]").unwrap();
    for key in [
        "log_bytes = 10737418240",
        "read_threads = 8",
        "mwdb_keyspaces = [\"mwdb\"]",
        "log_age",
    ] {
        assert!(engine.contains(key), "{key}: {engine}");
    }
    for key in ["memory_bytes_max = ", "commit_queue_bytes_max = "] {
        assert!(printed.text().contains(key), "{key}: {}", printed.text());
    }
}

/// Files of the log that are opened while metrics are asked for: by the housekeeper now and then, never by who asks.
#[tokio::test]
async fn metrics_do_not_read_the_log() {
    use rustix::fs::inotify::{CreateFlags, ReadFlags, WatchFlags};
    const ASKED: usize = 300;
    let folder = Folder::new();
    let serving = Serving::start(&["--config", &folder.config(&format!("{PLAIN}{ADMIN}"))], 2);
    let storage = serving.plain(0).await;
    storage.put("k".into(), "v".into()).await.unwrap();
    let watch = rustix::fs::inotify::init(CreateFlags::NONBLOCK).unwrap();
    let database = folder.data().join("db");
    rustix::fs::inotify::add_watch(&watch, &database, WatchFlags::OPEN).unwrap();
    for _ in 0..ASKED {
        assert_eq!(get(serving.address(1), "/metrics").0, 200);
    }
    let mut buffer = [std::mem::MaybeUninit::uninit(); 64 * 1024];
    let mut events = rustix::fs::inotify::Reader::new(&watch, &mut buffer);
    let mut opened = 0;
    while let Ok(event) = events.next() {
        assert!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW));
        opened += usize::from(
            event
                .file_name()
                .is_some_and(|name| name.to_bytes().ends_with(b".log")),
        );
    }
    assert!(opened < ASKED / 2, "opened {opened} times");
}
