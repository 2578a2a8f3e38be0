//! The smallest gateway that has one of each: HTTP both ways, a WebSocket of text with a login in its first message, a
//! watch, metrics. It keeps notes of any length, in parts: a key of the keyspace `echo` is `NAME/PART`.
//!
//! * `POST /echo/{name}` keeps the body as a note, `GET /echo/{name}` sends it back; it is never in memory at once.
//! * WebSocket `/echo`: the first message is `login NAME`, answered with the principal. From then on each message comes
//!   back, and each note that anybody has kept is told as `kept NAME`.

use futures_util::{Stream, TryStreamExt, stream};
use storage_protocol::{
    Key, KeyRange, KeyState, Keyspace, Scan, ScanItem, ScanOptions, Storage, StorageError,
    StorageExt, Watch, WatchEvent, WatchOptions,
};
use storage_server::gateway::axum::body::{Body, Bytes};
use storage_server::gateway::axum::extract::Path;
use storage_server::gateway::axum::{Router, http::StatusCode, routing::get};
use storage_server::gateway::prometheus_client::{metrics::counter::Counter, registry::Registry};
use storage_server::gateway::*;

/// The last part of a note: it is whole when that is there.
const LAST: u32 = u32::MAX;

type Refusal = (StatusCode, String);

#[derive(Debug, Default)]
pub(crate) struct Echo {
    echoed: Counter,
}

impl Gateway for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn routes(&self, _: &ServerHandle) -> Router {
        Router::new().route("/echo/{name}", get(read).post(keep))
    }

    fn protocols(&self, _: &ServerHandle) -> Vec<WebSocketProtocol> {
        let echoed = self.echoed.clone();
        let options = SocketOptions {
            login: true,
            ..SocketOptions::default()
        };
        let serve = move |socket, _| converse(socket, echoed.clone());
        vec![WebSocketProtocol::new("echo", "/echo", options, serve)]
    }

    fn register_metrics(&self, registry: &mut Registry) {
        registry.register("echo_messages", "Messages sent", self.echoed.clone());
    }
}

fn keyspace() -> Keyspace {
    Keyspace::new("echo").expect("the name follows the rule")
}

fn part(name: &str, number: u32) -> Key {
    Key::from(format!("{name}/{number:010}"))
}

fn refused(error: StorageError) -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
}

async fn keep(
    Path(name): Path<String>,
    caller: Caller,
    body: Body,
) -> Result<&'static str, Refusal> {
    let storage = caller.storage(&keyspace());
    let broken = |error| (StatusCode::BAD_REQUEST, format!("broken off: {error}\n"));
    let mut body = body.into_data_stream();
    let mut number = 0;
    while let Some(data) = body.try_next().await.map_err(broken)? {
        let put = storage.put(part(&name, number), data);
        put.await.map_err(refused)?;
        number += 1;
    }
    let whole = storage.put(part(&name, LAST), Bytes::new());
    whole.await.map_err(refused)?;
    Ok("kept\n")
}

async fn read(Path(name): Path<String>, caller: Caller) -> Result<Body, Refusal> {
    let storage = caller.storage(&keyspace());
    let whole = storage.get_one(part(&name, LAST)).await.map_err(refused)?;
    whole.ok_or_else(|| (StatusCode::NOT_FOUND, format!("no note {name:?}\n")))?;
    let range = KeyRange::prefix(format!("{name}/"));
    let scan = storage.scan(range, ScanOptions::default()).await;
    Ok(Body::from_stream(values(scan.map_err(refused)?)))
}

fn values(scan: Scan) -> impl Stream<Item = Result<Bytes, StorageError>> {
    let pages = stream::try_unfold(scan, async |mut scan| {
        let page = scan.next_page().await?;
        Ok::<_, StorageError>(page.map(|page| (page, scan)))
    });
    let value = |item: ScanItem| match item.state {
        KeyState::Live(entry) => Ok(entry.value),
        KeyState::Removed(_) => Ok(Bytes::new()),
    };
    pages
        .map_ok(move |page| stream::iter(page.into_iter().map(value)))
        .try_flatten()
}

async fn converse(socket: WebSocket, echoed: Counter) -> Result<(), Close> {
    let policy = |reason: &dyn ToString| Close::because(close_code::POLICY, reason.to_string());
    let failed = |error: StorageError| Close::because(close_code::INTERNAL, error.to_string());
    let Some(Message::Text(first)) = socket.receive().await else {
        return Err(policy(&"the first message is: login NAME"));
    };
    let name = first.strip_prefix("login ").unwrap_or_default();
    let principal = Principal::user(name).map_err(|error| policy(&error))?;
    let identity = Identity::vouched(principal);
    let logged_in = socket.log_in(identity.clone());
    logged_in.map_err(|error| policy(&error))?;
    let storage = socket.storage(&keyspace());
    let watch = storage.watch(KeyRange::all(), WatchOptions::default());
    let mut watch = watch.await.map_err(failed)?;
    let mut said = Message::text(identity.to_string());
    while socket.send(said).await.is_ok() {
        said = tokio::select! {
            message = socket.receive() => match message {
                Some(message) => message,
                None => break,
            },
            name = kept(&mut watch) => Message::text(format!("kept {}", name.map_err(failed)?)),
        };
        echoed.inc();
    }
    Ok(())
}

/// The name of the next note that is whole.
async fn kept(watch: &mut Watch) -> Result<String, StorageError> {
    let last = format!("/{LAST:010}");
    loop {
        if let Some(WatchEvent::Commit(commit)) = watch.next().await? {
            let keys = commit.changes.iter();
            let mut keys = keys.map(|change| String::from_utf8_lossy(&change.key));
            if let Some(name) = keys.find_map(|key| key.strip_suffix(&last).map(str::to_owned)) {
                return Ok(name);
            }
        }
    }
}
