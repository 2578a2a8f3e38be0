//! The end of a connection that its peer closed: the requests before its close frame are answered, then the close
//! frame.
//!
//! The WebSocket library answers a close frame by itself and sends nothing after that. So the bytes that it has not
//! sent are taken out of it, and from then on frames are written to the stream below: the answers when they are ready,
//! then the close frame. Nothing is read any more. Answers are waited for as long as at a shutdown (`timeouts.drain`);
//! the socket of a peer that takes nothing for [`CLOSE_PATIENCE`] is closed.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::SinkExt;
use storage_protocol::native::close_code;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};

use super::driver::CLOSE_PATIENCE;
use super::metered::Metered;
use super::{Close, Dialect};

/// Frames that are collected before they are written: about this many bytes, and one message.
const CHUNK_BYTES: usize = 64 * 1024;

/// Answers the requests before the peer's close frame, then the close frame; `Err`: closed for this reason instead.
///
/// The code is the peer's, or 1000 if it gave none. What is not answered within `patience` is not waited for.
pub(super) async fn answer_close<S, D>(
    socket: &mut WebSocketStream<Metered<S>>,
    dialect: &mut D,
    close: Option<CloseFrame>,
    patience: Duration,
) -> Result<(), Close>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Dialect,
{
    let mut out = unsent(socket, close.clone()).await;
    let mut close = close.unwrap_or_else(|| CloseFrame {
        code: CloseCode::from(close_code::NORMAL),
        reason: "".into(),
    });
    let mut result = Ok(());
    let deadline = tokio::time::Instant::now() + patience;
    dialect.close_received();
    let stream = socket.get_mut();
    let closing = async {
        loop {
            let collecting = poll_fn(|cx| collect(cx, dialect, &mut out));
            if let Ok(Err(why)) = timeout_at(deadline, collecting).await {
                close = why.frame();
                result = Err(why);
            }
            if out.is_empty() || result.is_err() {
                break;
            }
            write(stream, &out).await?;
            out.clear();
        }
        push(Frame::close(Some(close)), &mut out);
        write(stream, &out).await
    };
    // A peer that takes none of it has its socket closed all the same.
    let _ = timeout_at(deadline + CLOSE_PATIENCE, closing).await;
    let _ = timeout(CLOSE_PATIENCE, stream.shutdown()).await;
    result
}

/// What the library has not sent yet, without its answer to the close frame.
async fn unsent<S>(socket: &mut WebSocketStream<Metered<S>>, close: Option<CloseFrame>) -> Vec<u8>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket.get_mut().divert();
    // It returns the error that it is closed.
    let _ = socket.flush().await;
    let mut unsent = socket.get_mut().take_diverted();
    let mut answer = Vec::new();
    push(Frame::close(close), &mut answer);
    if unsent.ends_with(&answer) {
        unsent.truncate(unsent.len() - answer.len());
    }
    unsent
}

/// Works until there is something to write, or everything is answered.
fn collect<D: Dialect>(
    cx: &mut Context<'_>,
    dialect: &mut D,
    out: &mut Vec<u8>,
) -> Poll<Result<(), Close>> {
    loop {
        let mut moved = dialect.poll_work(cx, Instant::now())?;
        while out.len() < CHUNK_BYTES
            && let Some(message) = dialect.next_message()
        {
            push(frame_of(message), out);
            moved = true;
        }
        if !out.is_empty() || dialect.is_answered() {
            return Poll::Ready(Ok(()));
        }
        if !moved {
            return Poll::Pending;
        }
    }
}

fn frame_of(message: Message) -> Frame {
    let data = match message {
        Message::Text(_) => Data::Text,
        _ => Data::Binary,
    };
    Frame::message(message.into_data(), OpCode::Data(data), true)
}

fn push(frame: Frame, out: &mut Vec<u8>) {
    frame.format(out).expect("a Vec takes what is written");
}

/// Writes all of it, as long as the peer goes on taking some.
async fn write<S: AsyncWrite + Unpin>(stream: &mut S, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let taken = timeout(CLOSE_PATIENCE, stream.write(bytes)).await??;
        if taken == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(taken..).unwrap_or_default();
    }
    timeout(CLOSE_PATIENCE, stream.flush()).await?
}
