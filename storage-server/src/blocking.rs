//! Work that may block, or takes a processor for long, on threads that give way to those of sessions and commits.
//!
//! The runtime's blocking threads do it. With as many of them busy as there are processors, and more, each call of anybody
//! would wait for slices of theirs: measured on 2 processors, beside a flood of watches, which reads 1,000 entries for each,
//! another's put of 0.4 ms took 5.6 ms, and takes 0.6 to 1.3 ms if they give way.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{getpriority_process, setpriority_process};
use tokio::task::JoinHandle;

/// How much they give way, as of `nice`: a thread of sessions has nine times the weight of one of these.
const NICE: i32 = 10;

/// Whether they do. Once a thread gives way it does for ever, and in a program with a server in it the threads are that
/// program's.
static GIVES_WAY: AtomicBool = AtomicBool::new(false);

thread_local! {
    static GAVE_WAY: Cell<bool> = const { Cell::new(false) };
}

/// From now on the threads give way: for a process that is a server and nothing else.
pub(crate) fn give_way() {
    GIVES_WAY.store(true, Ordering::Relaxed);
}

/// Runs this on a blocking thread.
pub(crate) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(move || {
        if GIVES_WAY.load(Ordering::Relaxed) && !GAVE_WAY.replace(true) {
            // Of the calling thread. Where that is not allowed, it stays as it is.
            let own = getpriority_process(None).unwrap_or(0);
            let _ = setpriority_process(None, own + NICE);
        }
        work()
    })
}
