//! The body of a request: JSON of a bounded length.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use hyper::header::CONTENT_TYPE;

use super::answer::Fault;

/// The longest object that routes take or change, in bytes of JSON, and the longest body.
pub(super) const OBJECT_BYTES_MAX: usize = 1 << 20;

/// So much of a body that is too long is read and thrown away, so that its connection serves the next request too.
const DISCARDED_BYTES_MAX: usize = 16 << 20;

/// A body that is said to be JSON: an extractor.
#[derive(Debug)]
pub(super) struct Sent(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let kind = request.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let plain = kind.split(';').next().unwrap_or_default().trim();
        let is_json = ["application/json", "application/json-patch+json"]
            .iter()
            .any(|json| plain.eq_ignore_ascii_case(json));
        if !is_json {
            return Err(Fault::bad(format!(
                "Invalid content type: {kind:?}, expected application/json"
            )));
        }
        read(request.into_body()).await.map(Self)
    }
}

async fn read(body: Body) -> Result<Bytes, Fault> {
    let mut frames = body.into_data_stream();
    let (mut read, mut length) = (BytesMut::new(), 0);
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|error| Fault::bad(format!("the body: {error}")))?;
        length += frame.len();
        if length <= OBJECT_BYTES_MAX {
            read.extend_from_slice(&frame);
        } else if length > DISCARDED_BYTES_MAX {
            break;
        }
    }
    match length <= OBJECT_BYTES_MAX {
        true => Ok(read.freeze()),
        false => Err(Fault::too_large(format!(
            "the body has more than {OBJECT_BYTES_MAX} bytes (object_bytes_max)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_read_up_to_the_bound() {
        let longest = read(Body::from(vec![b' '; OBJECT_BYTES_MAX]))
            .await
            .unwrap();
        assert_eq!(longest.len(), OBJECT_BYTES_MAX);
        assert!(
            read(Body::from(vec![b' '; OBJECT_BYTES_MAX + 1]))
                .await
                .is_err()
        );
    }
}
