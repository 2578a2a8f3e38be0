//! Reads that may wait for the disk, or are long, on threads that give way to those of sessions and commits.
//!
//! With as many of them busy as there are processors, and more, each call of anybody would wait for slices of theirs:
//! measured on 2 processors, beside a flood of watches, which reads 1,000 entries for each, another's put of 0.4 ms took 5.6
//! ms, and takes 0.6 to 1.3 ms if they give way.

use std::sync::OnceLock;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// How much they give way, as of `nice`: where both have work for all processors, a thread of sessions gets three times the
/// time of one of these.
const NICE: i32 = 5;

/// Of a runtime whose blocking threads give way, and which does nothing else: a blocking thread of the server's own may
/// become one of its workers (`block_in_place`), and who gives way does so for ever.
static READERS: OnceLock<Handle> = OnceLock::new();

/// From now on reads give way: for a process that is a server and nothing else. In another program with a server in it, how
/// important its threads are is that program's to say. The runtime is to be shut down behind the server's: while a thread
/// still reads, the process must not end.
///
/// # Errors
/// The system's, if there is no such runtime; reads then give way to nobody.
pub(crate) fn give_way() -> std::io::Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .thread_name("storage-reader")
        .on_thread_start(|| {
            // Of the calling thread. Where that is not allowed, it stays as it is.
            let own = getpriority_process(None).unwrap_or(0);
            let _ = setpriority_process(None, own + NICE);
        })
        .build()?;
    let _ = READERS.set(runtime.handle().clone());
    Ok(runtime)
}

/// Runs a read on a blocking thread.
pub(crate) fn read<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match READERS.get() {
        Some(readers) => readers.spawn_blocking(read),
        None => tokio::task::spawn_blocking(read),
    }
}
