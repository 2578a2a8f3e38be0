//! Remote access to a storage-sync keyspace: [`RemoteStorage`] implements the same
//! [`Storage`](storage_protocol::Storage) trait as the server's engine, over one mutually authenticated WebSocket.
//!
//! * [`ConnectOptions`] say where to connect, with which credentials and within which bounds.
//! * [`RemoteStorage::connect`] returns once the server has said Welcome; from there every call either answers or
//!   fails by its deadline, with its [`Outcome`](storage_protocol::Outcome) class.
//! * [`Replica`] keeps a coherent copy of a range in memory, and in a folder if asked to, over this or any other storage.
//!
//! * A lost connection is found within the announced silence and made anew, for as long as it takes: calls wait for it
//!   within their deadlines, commits that were sent have one effect, watches go on from where they were and say so.
//!   [`RemoteStorage::state`] tells what is.
//!
//! Not here: RocksDB, or anything else of the server; nor the command line, which is the crate `storage-cli`.
//!
//! ```no_run
//! # async fn example() -> storage_protocol::Result<()> {
//! use storage_client::{ConnectOptions, RemoteStorage};
//! use storage_protocol::StorageExt;
//!
//! let options = ConnectOptions::new("wss://localhost:7443/storage/models").credentials_dir("certs/dev/alice");
//! let storage = RemoteStorage::connect(options).await?;
//! storage.put("greeting".into(), "hello".into()).await?;
//! storage.close().await;
//! # Ok(())
//! # }
//! ```

mod connection;
mod end;
pub mod http;
mod options;
mod order;
mod remote;
pub mod replica;
mod requests;
mod server_text;
mod session;
mod sync;
mod transport;
mod watch;

pub use connection::ConnectionState;
pub use options::ConnectOptions;
pub use remote::RemoteStorage;
pub use replica::{Replica, ReplicaOptions};
pub use session::{SavedSession, SessionInfo};
pub use transport::TlsVersion;
