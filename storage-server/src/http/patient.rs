//! A stream that fails if its peer takes not a byte of what is written to it for too long.
//!
//! For HTTP only: hyper has no such time-out. Sessions have their own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pace::Pace;

/// See the module.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    inner: S,
    pace: Pace,
}

impl<S> Patient<S> {
    pub(crate) fn new(inner: S, patience: Duration) -> Self {
        Self {
            inner,
            pace: Pace::new(patience),
        }
    }

    pub(crate) fn into_inner(self) -> S {
        self.inner
    }

    /// Passes on the result of an attempt to write; [`io::ErrorKind::TimedOut`] if none has succeeded for too long.
    fn keep_pace(
        &mut self,
        cx: &mut Context<'_>,
        attempt: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match attempt {
            Poll::Ready(written) => {
                self.pace.moved(written.as_ref().copied().unwrap_or(0));
                Poll::Ready(written)
            }
            Poll::Pending => {
                let slow = ready!(self.pace.poll_wait(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, slow)))
            }
        }
    }

    /// The same for an attempt that ends when nothing waits to be taken any more.
    fn keep_pace_to_the_end(
        &mut self,
        cx: &mut Context<'_>,
        attempt: Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        if attempt.is_ready() {
            self.pace.done();
            return attempt;
        }
        self.keep_pace(cx, Poll::Pending).map_ok(|_| ())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.keep_pace(cx, attempt)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let attempt = Pin::new(&mut self.inner).poll_flush(cx);
        self.keep_pace_to_the_end(cx, attempt)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let attempt = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.keep_pace_to_the_end(cx, attempt)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.keep_pace(cx, attempt)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_takes_is_waited_for_and_who_does_not_gets_an_error() {
        // It is over as soon as it begins to wait.
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut ours = Patient::new(ours, Duration::ZERO);
        for _ in 0..3 {
            ours.write_all(&[0; 4]).await.unwrap();
            theirs.read_exact(&mut [0; 4]).await.unwrap();
        }
        let error = ours.write_all(&[0; 5]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // An hour is not over, and what was taken in it counts.
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut ours = Patient::new(ours, Duration::from_secs(3600));
        let mut taken = [0; 5];
        let (written, _) = tokio::join!(ours.write_all(&[0; 5]), theirs.read_exact(&mut taken));
        written.unwrap();
    }
}
