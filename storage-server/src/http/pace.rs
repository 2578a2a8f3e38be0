//! How long a peer of plain HTTP may take nothing of what it is sent, and send nothing of what it has announced; and where it
//! holds a place that others wait for, how fast it has to be.
//!
//! What counts is the time that is spent waiting for the peer: a slow handler of ours costs nobody anything. With a least
//! rate that time is judged in stretches, so who sends a byte now and then is ended like one that is silent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// The least rate of who holds a place that others wait for. A modem had five times as much.
pub(crate) const LEAST_BYTES_PER_SECOND: u32 = 1024;

/// The peer has not brought enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooSlow {
    #[error("nothing moved for {0:?}")]
    Nothing(Duration),
    #[error("less than {LEAST_BYTES_PER_SECOND} bytes per second moved for {0:?}")]
    Little(Duration),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    stretch: Duration,
    has_least_rate: bool,
    /// Spent waiting in this stretch, without the wait that goes on.
    waited: Duration,
    moved: usize,
    waits: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    since: Instant,
    until: Pin<Box<Sleep>>,
}

impl Pace {
    /// Of a peer that is too slow if nothing at all moves for so long.
    pub(super) fn new(stretch: Duration) -> Self {
        Self {
            stretch,
            has_least_rate: false,
            waited: Duration::ZERO,
            moved: 0,
            waits: None,
        }
    }

    /// The same of one that keeps the least rate.
    fn with_least_rate(stretch: Duration) -> Self {
        Self {
            has_least_rate: true,
            ..Self::new(stretch)
        }
    }

    /// So many bytes moved.
    pub(super) fn moved(&mut self, bytes: usize) {
        if !self.has_least_rate && bytes > 0 {
            self.done();
            return;
        }
        if let Some(wait) = self.waits.take() {
            self.waited += wait.since.elapsed();
        }
        self.moved = self.moved.saturating_add(bytes);
    }

    /// Nothing is waited for any more.
    pub(super) fn done(&mut self) {
        self.waited = Duration::ZERO;
        self.moved = 0;
        self.waits = None;
    }

    /// Nothing moves now: ready when the peer has been waited for too long.
    pub(super) fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<TooSlow> {
        loop {
            let left = self.stretch.saturating_sub(self.waited);
            let wait = self.waits.get_or_insert_with(|| Wait {
                since: Instant::now(),
                until: Box::pin(tokio::time::sleep(left)),
            });
            ready!(wait.until.as_mut().poll(cx));
            if !self.has_least_rate {
                return Poll::Ready(TooSlow::Nothing(self.stretch));
            }
            if !self.is_enough() {
                return Poll::Ready(TooSlow::Little(self.stretch));
            }
            self.done();
        }
    }

    fn is_enough(&self) -> bool {
        let least = self.stretch.as_secs_f64() * f64::from(LEAST_BYTES_PER_SECOND);
        #[expect(
            clippy::cast_precision_loss,
            reason = "no figure of bytes is so large that it would not be exact"
        )]
        let moved = self.moved as f64;
        self.moved > 0 && moved >= least
    }
}

/// A request's body, of a peer that has to keep the pace. Its error is [`TooSlow`], or the body's.
#[derive(Debug)]
pub(crate) struct PacedBody<B> {
    body: B,
    pace: Pace,
}

impl<B> PacedBody<B> {
    /// One that is an error if nothing of it comes for so long.
    pub(super) fn new(body: B, stretch: Duration) -> Self {
        Self {
            body,
            pace: Pace::new(stretch),
        }
    }

    /// One that is an error if less than [`LEAST_BYTES_PER_SECOND`] come for so long.
    pub(crate) fn with_least_rate(body: B, stretch: Duration) -> Self {
        Self {
            body,
            pace: Pace::with_least_rate(stretch),
        }
    }
}

impl<B> Body for PacedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                let data = frame.as_ref().and_then(|frame| frame.as_ref().ok());
                let data = data.and_then(Frame::data_ref);
                self.pace.moved(data.map_or(0, Bytes::len));
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                let slow = ready!(self.pace.poll_wait(cx));
                Poll::Ready(Some(Err(slow.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const STRETCH: Duration = Duration::from_secs(3600);
    const LEAST: usize = 3600 * 1024;

    /// How it ends behind a whole stretch of waiting in which so much moved: `None` if it goes on.
    async fn behind_a_stretch(pace: &mut Pace, moved: usize) -> Option<TooSlow> {
        pace.moved(moved);
        pace.waited = STRETCH;
        let waiting = std::future::poll_fn(|cx| pace.poll_wait(cx));
        tokio::time::timeout(Duration::from_millis(100), waiting)
            .await
            .ok()
    }

    #[tokio::test]
    async fn who_is_silent_or_sends_a_byte_now_and_then_is_too_slow() {
        for moved in [0, 1, LEAST - 1] {
            let slow = behind_a_stretch(&mut Pace::with_least_rate(STRETCH), moved).await;
            assert_eq!(slow, Some(TooSlow::Little(STRETCH)));
        }
        for moved in [LEAST, usize::MAX] {
            let slow = behind_a_stretch(&mut Pace::with_least_rate(STRETCH), moved).await;
            assert_eq!(slow, None);
        }
        // Without a least rate a byte is enough, and it begins anew with each.
        let mut pace = Pace::new(STRETCH);
        assert_eq!(
            behind_a_stretch(&mut pace, 0).await,
            Some(TooSlow::Nothing(STRETCH))
        );
        pace.moved(1);
        assert_eq!(pace.waited, Duration::ZERO);
    }

    #[tokio::test]
    async fn each_stretch_is_judged_by_itself_and_only_waiting_counts() {
        let mut pace = Pace::with_least_rate(STRETCH);
        assert_eq!(behind_a_stretch(&mut pace, usize::MAX).await, None);
        // What came before is no credit for this one.
        assert_eq!((pace.moved, pace.waited), (0, Duration::ZERO));
        pace.moved(1);
        assert!(pace.waited > Duration::ZERO && pace.waited < STRETCH);
        let waited = pace.waited;
        tokio::time::sleep(Duration::from_millis(5)).await;
        pace.moved(1);
        assert_eq!((pace.moved, pace.waited), (2, waited));
        pace.done();
        assert_eq!((pace.moved, pace.waited), (0, Duration::ZERO));
    }

    #[tokio::test]
    async fn a_body_that_is_waited_for_too_long_is_an_error() {
        // It is too long as soon as it is waited for at all.
        let read = async |body: axum::body::Body| {
            let body = axum::body::Body::new(PacedBody::new(body, Duration::ZERO));
            axum::body::to_bytes(body, 100).await.map_err(|error| {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                source.unwrap_or_else(|| error.to_string())
            })
        };
        assert_eq!(read("all of it".into()).await.unwrap(), "all of it");
        let silent = stream::pending::<Result<Bytes, std::io::Error>>();
        let error = read(axum::body::Body::from_stream(silent))
            .await
            .unwrap_err();
        assert!(error.contains("nothing moved"), "{error}");
    }
}
