//! A server inside a program of your own: what remote clients put is seen here at once, without a socket between.
//!
//! Run it with `cargo run -p storage-server --example embedded`. It makes throw-away certificates, starts a server on
//! a free port, lets a remote client put two readings over mutual TLS, watches them arrive, and ends by itself.

use std::error::Error;
use std::path::Path;

use storage_certs::{AuthorityDir, InitOptions, IssueOptions, Request, server_name};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{
    ChangeKind, KeyRange, Keyspace, StorageExt, WatchEvent, WatchOptions, WatchStart,
};
use storage_server::Server;
use storage_server::config::{ListenerConfig, ServerConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    for line in run(folder.path()).await? {
        println!("{line}");
    }
    Ok(())
}

/// All of it, in this folder; gives a line for each thing that was seen.
pub(crate) async fn run(folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    // 1. Credentials: a CA with a server, and one client. `storage-certs` does the same by hand.
    let certs = folder.join("certs");
    let names = vec![server_name("127.0.0.1")?];
    let made = AuthorityDir::init(&certs, &InitOptions::new(names))?;
    let sensor = Request::client("sensor".parse()?);
    made.authority_dir
        .issue(&sensor, &IssueOptions::default())?;

    // 2. The server. Port 0 takes a free one; `addresses` tells which.
    let listener = ListenerConfig::new("127.0.0.1:0".parse()?);
    let config = ServerConfig::embedded(folder.join("data"), Some(certs.clone()), vec![listener]);
    let server = Server::start(config).await?;
    let address = server.addresses()[0].address;

    // 3. A keyspace from inside: the same handle that the sockets use, with the same guarantees. Watch before anybody
    //    writes, so that nothing is missed.
    let inside = server.storage(&Keyspace::new("readings")?);
    let options = WatchOptions::every(WatchStart::Now);
    let mut watch = inside.watch(KeyRange::prefix("temp/"), options).await?;

    // 4. A remote client. In real life it is another process on another machine.
    let url = format!("wss://{address}/storage/readings");
    let options = ConnectOptions::new(url).credentials_dir(certs.join("sensor"));
    let outside = RemoteStorage::connect(options).await?;
    outside.put("temp/kitchen".into(), "21.5".into()).await?;
    let last = outside.put("temp/cellar".into(), "12.0".into()).await?;

    // 5. What it put arrives here: each commit once, in order, and who made it.
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let event = watch.next().await?.ok_or("the watch ended")?;
        // Marks of progress come too; they carry no change.
        let WatchEvent::Commit(commit) = event else {
            continue;
        };
        for change in &commit.changes {
            if let ChangeKind::Put { value, .. } = &change.kind {
                let (key, value) = (change.key.escape_ascii(), value.escape_ascii());
                seen.push(format!("{} put {key} = {value}", commit.principal));
            }
        }
    }

    // 6. And is read here, at the revision that the client was told.
    let entry = inside.get_one("temp/cellar".into()).await?;
    let entry = entry.ok_or("what was acknowledged is there")?;
    let value = entry.value.escape_ascii();
    let same = entry.revision == last.revision;
    seen.push(format!("read {value}, at the client's revision: {same}"));

    // 7. The other way round, too: what is put inside is there for the client.
    inside.put("limit".into(), "30".into()).await?;
    let limit = outside.get_one("limit".into()).await?;
    let limit = limit.ok_or("what was put inside is there")?;
    seen.push(format!("the client reads {}", limit.value.escape_ascii()));

    // 8. An orderly end: peers are told, requests in flight finish, the store is flushed.
    outside.close().await;
    let report = server.shutdown().await;
    seen.push(format!("in order: {}", report.is_clean()));
    Ok(seen)
}
