//! A stream that counts its bytes: for the metrics, and to see whether a slow peer sends or takes anything at all.
//!
//! Writes can be diverted into memory: see [`super::closing`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::metrics::Metrics;

/// See the module.
#[derive(Debug)]
pub(crate) struct Metered<S> {
    inner: S,
    metrics: Arc<Metrics>,
    read: u64,
    written: u64,
    /// While set, writes go here instead of the stream.
    diverted: Option<Vec<u8>>,
}

impl<S> Metered<S> {
    pub(crate) fn new(inner: S, metrics: Arc<Metrics>) -> Self {
        Self {
            inner,
            metrics,
            read: 0,
            written: 0,
            diverted: None,
        }
    }

    /// Keeps what is written from here on, instead of writing it.
    pub(super) fn divert(&mut self) {
        self.diverted = Some(Vec::new());
    }

    /// What was kept; the stream is written to again.
    pub(super) fn take_diverted(&mut self) -> Vec<u8> {
        self.diverted.take().unwrap_or_default()
    }

    /// Bytes read from the stream so far.
    pub(crate) fn read(&self) -> u64 {
        self.read
    }

    /// Bytes written to the stream so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let given = (buf.filled().len() - before) as u64;
        self.read += given;
        self.metrics.received_bytes.inc_by(given);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(diverted) = &mut self.diverted {
            diverted.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        let taken = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.written += taken as u64;
        self.metrics.sent_bytes.inc_by(taken as u64);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
