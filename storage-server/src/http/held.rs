//! An answer that holds a place until its peer has taken it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// So much is given to the connection at a time, and may wait there behind the place.
const CHUNK_BYTES: usize = 64 << 10;

/// A body of known bytes that keeps `held` until the last of them is taken, or the request is given up.
#[derive(Debug)]
struct Held<T> {
    left: Bytes,
    _held: T,
}

/// See the module.
pub(crate) fn held<T: Send + Unpin + 'static>(bytes: impl Into<Bytes>, held: T) -> Body {
    Body::new(Held {
        left: bytes.into(),
        _held: held,
    })
}

impl<T: Unpin> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let bytes = CHUNK_BYTES.min(self.left.len());
        // A copy: a slice would keep all of it in memory until the connection has sent the last one, and by then the place
        // is given back.
        let chunk = Bytes::copy_from_slice(&self.left[..bytes]);
        self.left.advance(bytes);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn it_holds_until_the_last_chunk_is_taken() {
        let place = Arc::new(());
        let text: Vec<u8> = (0..CHUNK_BYTES * 2 + 1)
            .map(|n| n.to_le_bytes()[0])
            .collect();
        let body = held(text.clone(), place.clone());
        assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
        let mut chunks = body.into_data_stream();
        let mut taken = Vec::new();
        while let Some(chunk) = chunks.next().await {
            assert_eq!(Arc::strong_count(&place), 2);
            let chunk = chunk.unwrap();
            // It keeps nothing but itself.
            assert!(chunk.is_unique());
            taken.extend_from_slice(&chunk);
        }
        assert_eq!(taken, text);
        drop(chunks);
        assert_eq!(Arc::strong_count(&place), 1);
    }
}
