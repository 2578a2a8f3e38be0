//! Admission: bounds connections before their peers are known.
//!
//! Each listener has places of its own for connections that are not sessions yet ([`Handshakes`]), so that a flood on
//! one listener does not affect the others. When all places are taken, a newcomer does not wait for silent connections:
//! the oldest silent one of the address with the most connections is closed. If there is no silent one, an address that
//! has more connections than the newcomer's loses one in any case. An address is an IPv4 address or an IPv6 network of
//! 64 bits. [`Connections`] bounds all connections of the server, sessions too, by the descriptors there are.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::limits::address::Address;

/// A connection whose peer has sent nothing at all for so long can be closed for a newcomer. An honest client's first
/// bytes arrive one round trip after its connection.
const SILENT_AFTER: Duration = Duration::from_millis(250);
/// The same for a peer that has sent something before.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// If no connection is silent, a newcomer checks again after so long.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// So many connections are reserved for each listener, if there are enough for all.
const RESERVED_PER_LISTENER: usize = 16;

/// All connections of the server.
#[derive(Debug)]
pub(crate) struct Connections {
    max: usize,
    reserved: usize,
    /// Open connections of each listener. Locked for short sections only.
    open: Mutex<Vec<usize>>,
}

impl Connections {
    pub(crate) fn new(max: usize, listeners: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            reserved: RESERVED_PER_LISTENER.min(max / (4 * listeners.max(1))),
            open: Mutex::new(vec![0; listeners]),
        })
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn open(&self) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().sum()
    }

    fn take(self: &Arc<Self>, listener: usize) -> Option<Connected> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let others = open.iter().enumerate().filter(|(n, _)| *n != listener);
        let others: usize = others.map(|(_, count)| (*count).max(self.reserved)).sum();
        let mine = open.get_mut(listener)?;
        if others + *mine >= self.max {
            return None;
        }
        *mine += 1;
        drop(open);
        Some(Connected {
            connections: self.clone(),
            listener,
        })
    }
}

/// One of the connections, until it is dropped.
#[derive(Debug)]
pub(crate) struct Connected {
    connections: Arc<Connections>,
    listener: usize,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let open = &self.connections.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = open.get_mut(self.listener) {
            *mine -= 1;
        }
    }
}

/// The places of one listener for connections that are not sessions yet.
#[derive(Debug)]
pub(crate) struct Handshakes {
    max: usize,
    connections: Arc<Connections>,
    listener: usize,
    /// Locked for short sections only.
    state: Mutex<State>,
    /// A place was given back, or a connection that was asked to leave may stay.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Oldest first.
    seats: BTreeMap<u64, Arc<Seat>>,
    of_address: HashMap<Address, usize>,
}

/// What is known of a connection that is not a session yet.
#[derive(Debug)]
pub(crate) struct Seat {
    address: Address,
    began: Instant,
    /// Since when the server waits for its peer: milliseconds after `began`, plus one; 0 while it does not wait.
    waits_since: AtomicU64,
    /// Whether the peer has sent anything.
    heard: AtomicBool,
    /// Whether it was asked to leave.
    asked: AtomicBool,
    /// It has to leave even if it is not silent: its address has more connections than the newcomer's.
    must_leave: AtomicBool,
    leave: Notify,
    /// It is a session or an HTTP connection now, and silence is not noted any more.
    settled: AtomicBool,
}

impl Seat {
    fn new(address: Address) -> Self {
        Self {
            address,
            began: Instant::now(),
            waits_since: AtomicU64::new(1),
            heard: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            must_leave: AtomicBool::new(false),
            leave: Notify::new(),
            settled: AtomicBool::new(false),
        }
    }

    /// Whether its peer has sent anything yet.
    pub(crate) fn was_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    fn is_silent(&self, now: Instant) -> bool {
        let since = self.waits_since.load(Ordering::Relaxed);
        if since == 0 {
            return false;
        }
        let since = self.began + Duration::from_millis(since - 1);
        let patience = match self.was_heard() {
            true => STALLED_AFTER,
            false => SILENT_AFTER,
        };
        now.saturating_duration_since(since) >= patience
    }

    fn read(&self, any: bool) {
        self.waits_since.store(0, Ordering::Relaxed);
        if any {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    fn waits(&self) {
        if self.waits_since.load(Ordering::Relaxed) == 0 {
            let after = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.waits_since.store(after + 1, Ordering::Relaxed);
        }
    }
}

/// A newcomer that cannot have a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoConnection;

/// How an attempt to get a place went.
enum Attempt {
    Entered(Place),
    /// A connection was asked to leave, or one may be silent soon.
    Wait,
    Refused,
}

impl Handshakes {
    pub(crate) fn new(max: usize, connections: &Arc<Connections>, listener: usize) -> Arc<Self> {
        Arc::new(Self {
            // The other half is for sessions.
            max: max.min((connections.max() / 2).max(1)),
            connections: connections.clone(),
            listener,
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// A place for a peer at `address`. Waits while all places are taken and none of their connections has to leave.
    ///
    /// # Errors
    /// All connections of the server are taken, and none of them can be closed for this one.
    pub(crate) async fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, NoConnection> {
        let address = Address::from(address);
        loop {
            // Ordering: before the attempt, so that no change between the attempt and the wait is missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.attempt(address) {
                Attempt::Entered(place) => return Ok(place),
                Attempt::Refused => return Err(NoConnection),
                Attempt::Wait => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
                }
            }
        }
    }

    fn attempt(self: &Arc<Self>, address: Address) -> Attempt {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let has_place = state.seats.len() < self.max;
        let connected = has_place.then(|| self.connections.take(self.listener));
        if let Some(Some(connected)) = connected {
            let number = state.next;
            state.next += 1;
            let seat = Arc::new(Seat::new(address));
            state.seats.insert(number, seat.clone());
            *state.of_address.entry(address).or_default() += 1;
            drop(state);
            return Attempt::Entered(Place {
                handshakes: self.clone(),
                number,
                seat,
                connected: Some(connected),
            });
        }
        let leaving = state
            .seats
            .values()
            .any(|seat| seat.asked.load(Ordering::Relaxed));
        if leaving || state.ask_one_to_leave(address) || !has_place {
            Attempt::Wait
        } else {
            Attempt::Refused
        }
    }
}

impl State {
    /// Asks a connection to leave: a silent one of the address with the most, else any of an address with more than
    /// `newcomer`'s. False if there is none.
    fn ask_one_to_leave(&self, newcomer: Address) -> bool {
        let now = Instant::now();
        let count = |address| self.of_address.get(address).copied().unwrap_or(0);
        let own = count(&newcomer) + 1;
        let candidates = self.seats.iter().filter_map(|(number, seat)| {
            let (silent, count) = (seat.is_silent(now), count(&seat.address));
            (silent || count > own).then_some((!silent, std::cmp::Reverse(count), *number, seat))
        });
        let first = candidates.min_by_key(|(busy, count, number, _)| (*busy, *count, *number));
        let Some((busy, _, _, seat)) = first else {
            return false;
        };
        seat.must_leave.store(busy, Ordering::Relaxed);
        seat.asked.store(true, Ordering::Relaxed);
        seat.leave.notify_one();
        true
    }
}

/// A connection, with its place among the handshakes until [`Place::settle`]. Dropping it gives both back.
#[derive(Debug)]
pub(crate) struct Place {
    handshakes: Arc<Handshakes>,
    number: u64,
    seat: Arc<Seat>,
    connected: Option<Connected>,
}

impl Place {
    pub(crate) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    /// Runs `work`; `None` if the place is needed for another connection meanwhile. If the peer turns out not to be
    /// silent, it stays.
    pub(crate) async fn unless_asked_to_leave<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            // The work is polled first: it reads what the peer has sent meanwhile, and then the peer is not silent.
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = self.seat.leave.notified() => {}
            }
            if self.is_settled() {
                return Some(work.await);
            }
            let seat = &self.seat;
            if seat.must_leave.load(Ordering::Relaxed) || seat.is_silent(Instant::now()) {
                return None;
            }
            seat.asked.store(false, Ordering::Relaxed);
            self.handshakes.changed.notify_waiters();
        }
    }

    /// Gives the place among the handshakes to others; the connection counts until this is dropped.
    pub(crate) fn settle(&self) {
        self.seat.settled.store(true, Ordering::Relaxed);
        self.free();
        self.handshakes.changed.notify_waiters();
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.seat.settled.load(Ordering::Relaxed)
    }

    fn free(&self) {
        let state = &self.handshakes.state;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.seats.remove(&self.number).is_none() {
            return;
        }
        if let Some(count) = state.of_address.get_mut(&self.seat.address) {
            *count -= 1;
            if *count == 0 {
                state.of_address.remove(&self.seat.address);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.free();
        // Ordering: before waiters are notified, so that the connection is free for them too.
        drop(self.connected.take());
        self.handshakes.changed.notify_waiters();
    }
}

/// A stream that notes in its [`Seat`] whether the peer sends anything.
#[derive(Debug)]
pub(crate) struct Heard<S> {
    inner: S,
    seat: Arc<Seat>,
}

impl<S> Heard<S> {
    pub(crate) fn new(inner: S, seat: &Arc<Seat>) -> Self {
        Self {
            inner,
            seat: seat.clone(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if !self.seat.settled.load(Ordering::Relaxed) {
            match polled {
                Poll::Pending => self.seat.waits(),
                Poll::Ready(_) => self.seat.read(buf.filled().len() > before),
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
