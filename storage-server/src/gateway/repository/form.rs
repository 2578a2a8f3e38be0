//! A multipart body, as it arrives.

use axum::body::{Body, BodyDataStream};
use futures_util::StreamExt;

use super::answer::Refusal;
use super::multipart::{Parser, Piece};

/// See the module.
#[derive(Debug)]
pub(super) struct Form {
    stream: BodyDataStream,
    parser: Parser,
}

impl Form {
    pub(super) fn new(body: Body, boundary: &str) -> Self {
        Self {
            stream: body.into_data_stream(),
            parser: Parser::new(boundary),
        }
    }

    /// The next piece.
    ///
    /// # Errors
    /// It is malformed, or does not go on.
    pub(super) async fn next(&mut self) -> Result<Piece, Refusal> {
        loop {
            if let Some(piece) = self.parser.next()? {
                return Ok(piece);
            }
            match self.stream.next().await {
                Some(Ok(bytes)) => self.parser.feed(&bytes),
                Some(Err(_)) => return Err(broken()),
                None => {
                    self.parser.finish()?;
                    return Ok(Piece::Done);
                }
            }
        }
    }

    /// The data of the field whose head was read.
    ///
    /// # Errors
    /// As [`Form::next`]; `too_long` if it has more bytes than that.
    pub(super) async fn data(
        &mut self,
        bytes_max: usize,
        too_long: impl FnOnce() -> Refusal,
    ) -> Result<Vec<u8>, Refusal> {
        let mut data = Vec::new();
        loop {
            match self.next().await? {
                Piece::Data(bytes) if data.len() + bytes.len() > bytes_max => {
                    return Err(too_long());
                }
                Piece::Data(bytes) => data.extend_from_slice(&bytes),
                _ => return Ok(data),
            }
        }
    }

    /// Passes over the data of the field whose head was read.
    ///
    /// # Errors
    /// As [`Form::next`].
    pub(super) async fn skip(&mut self) -> Result<(), Refusal> {
        while let Piece::Data(_) = self.next().await? {}
        Ok(())
    }
}

/// The answer to a body that ends too early, or does not go on in time.
pub(super) fn broken() -> Refusal {
    Refusal::text(
        408,
        "408: the body was broken off, or did not go on in time\n",
    )
}
