//! The handle that callers hold, and the task that serves it.
//!
//! A [`Connection`] is one session over its sockets. Callers put requests into the queue of
//! [`requests`](crate::requests) and wait for their answers. One task does the rest: while there is a socket it is in
//! the [`driver`], between two sockets in the [`supervisor`].

mod backoff;
mod driver;
mod status;
mod supervisor;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use storage_protocol::native::Welcome;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::options::ConnectOptions;
use crate::requests::{Queue, Requests};
use crate::session::{SessionInfo, SessionState};
use crate::sync::deadline_after;
use crate::transport::{Dialer, Socket};
use status::Status;
use supervisor::Supervisor;

pub use status::ConnectionState;

/// See the module. Clones share the connection; it closes when the last of its [`Requests`] is dropped.
#[derive(Clone)]
pub(crate) struct Connection {
    requests: Requests,
    status: Arc<Status>,
    /// Owns the task; `close` waits for it.
    tasks: TaskTracker,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("principal", &self.welcome().principal)
            .field("state", &*self.state().borrow())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Starts the task of a connection whose first socket was welcomed. A panic of the task, or the end of its runtime,
    /// closes the connection for good. The dialer is for the sockets after this one.
    pub(crate) fn open(
        options: &ConnectOptions,
        dialer: Dialer,
        session: SessionState,
        socket: Socket,
        welcome: Welcome,
    ) -> Self {
        let queue = Arc::new(Queue::new(options.queue_len_max));
        let status = Arc::new(Status::new(welcome, session.info()));
        let requests = Requests::new(queue.clone(), options.request_timeout);
        let supervisor = Supervisor::new(options, queue, status.clone(), dialer, session);
        let tasks = TaskTracker::new();
        tasks.spawn(supervisor.run(socket));
        tasks.close();
        Self {
            requests,
            status,
            tasks,
        }
    }

    pub(crate) fn requests(&self) -> &Requests {
        &self.requests
    }

    pub(crate) fn welcome(&self) -> Arc<Welcome> {
        self.status.welcome()
    }

    pub(crate) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.status.state()
    }

    pub(crate) fn session(&self) -> watch::Receiver<SessionInfo> {
        self.status.session()
    }

    /// Accepts no more requests, waits for those in flight (up to `timeout`), closes, and waits for the task to end.
    pub(crate) async fn close(&self, timeout: Duration, leave: bool) {
        self.requests
            .close(deadline_after(Instant::now(), timeout), leave);
        self.tasks.wait().await;
    }
}
