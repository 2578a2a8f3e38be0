//! What `put` puts: bytes that are there already, or more than one part of an object, read while they are sent.
//!
//! Files and stdin are read by a thread of their own, a few chunks ahead.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::anyhow;
use bytes::Bytes;
use storage_protocol::objects::{MAGIC, PART_BYTES};
use tokio::sync::mpsc;

use crate::failure::usage;

/// Read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks that were read and wait for room.
const READ_AHEAD: usize = 2;

/// See the module.
pub(crate) enum Content {
    /// A value.
    Whole(Bytes),
    /// The beginning of what is larger than one part of an object, or begins like a manifest; and the rest.
    Long(Bytes, Rest),
}

/// What is left to be read.
pub(crate) struct Rest {
    /// What errors call it.
    name: String,
    source: Box<dyn Read + Send>,
    /// How long the file is; `None`: it is none, or grows.
    pub(crate) total: Option<u64>,
}

impl Content {
    pub(crate) fn of_file(name: &str, path: &Path) -> anyhow::Result<Self> {
        let name = format!("{name}: {}", path.display());
        let file = File::open(path).map_err(|error| unreadable(&name, &error))?;
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file);
        Self::of(
            name,
            Box::new(file),
            metadata.map(|metadata| metadata.len()),
        )
    }

    pub(crate) fn of_stdin(name: &str) -> anyhow::Result<Self> {
        Self::of(format!("{name}: stdin"), Box::new(io::stdin()), None)
    }

    fn of(
        name: String,
        mut source: Box<dyn Read + Send>,
        total: Option<u64>,
    ) -> anyhow::Result<Self> {
        let mut head = Vec::new();
        let read = source
            .by_ref()
            .take(PART_BYTES as u64 + 1)
            .read_to_end(&mut head);
        read.map_err(|error| unreadable(&name, &error))?;
        if head.len() <= PART_BYTES && !head.starts_with(MAGIC) {
            return Ok(Self::Whole(head.into()));
        }
        let rest = Rest {
            name,
            source,
            total,
        };
        Ok(Self::Long(head.into(), rest))
    }

    /// All of it, in memory.
    pub(crate) fn whole(self) -> anyhow::Result<Bytes> {
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::Long(head, mut rest) => {
                let mut bytes = Vec::from(head);
                let read = rest.source.read_to_end(&mut bytes);
                read.map_err(|error| unreadable(&rest.name, &error))?;
                Ok(bytes.into())
            }
        }
    }
}

fn unreadable(name: &str, error: &io::Error) -> anyhow::Error {
    usage(format!("{name} cannot be read: {error}"))
}

impl Rest {
    /// Chunks as they are read; the thread ends at the end, or when nobody takes them any more. A read of stdin that does
    /// not return is left behind when the process ends.
    pub(crate) fn chunks(mut self) -> Chunks {
        let (sender, chunks) = mpsc::channel(READ_AHEAD);
        let thread = tokio::task::spawn_blocking(move || {
            loop {
                let mut chunk = Vec::new();
                let limited = self.source.by_ref().take(CHUNK_BYTES as u64);
                let read = { limited }.read_to_end(&mut chunk);
                read.map_err(|error| unreadable(&self.name, &error))?;
                if chunk.is_empty() || sender.blocking_send(chunk.into()).is_err() {
                    return Ok(());
                }
            }
        });
        Chunks { chunks, thread }
    }
}

/// See [`Rest::chunks`].
pub(crate) struct Chunks {
    chunks: mpsc::Receiver<Bytes>,
    thread: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Chunks {
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        if let Some(chunk) = self.chunks.recv().await {
            return Ok(Some(chunk));
        }
        let read = (&mut self.thread).await;
        read.map_err(|error| anyhow!("the reading thread failed: {error}"))??;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Content {
        Content::of(
            "VALUE".to_owned(),
            Box::new(io::Cursor::new(bytes.to_vec())),
            None,
        )
        .unwrap()
    }

    #[test]
    fn what_fits_into_a_part_is_whole() {
        for bytes in [&b""[..], b"x", &[b'x'; PART_BYTES]] {
            assert!(matches!(of(bytes), Content::Whole(whole) if whole == bytes));
        }
        assert!(matches!(of(MAGIC), Content::Long(..)));
    }

    #[tokio::test]
    async fn what_is_longer_comes_in_chunks() {
        let bytes: Vec<u8> = (0..3 * PART_BYTES + 7)
            .map(|n| (n % 251).to_le_bytes()[0])
            .collect();
        let Content::Long(head, rest) = of(&bytes) else {
            panic!("it is longer than a part");
        };
        let mut found = head.to_vec();
        let mut chunks = rest.chunks();
        while let Some(chunk) = chunks.next().await.unwrap() {
            assert!(chunk.len() <= CHUNK_BYTES);
            found.extend_from_slice(&chunk);
        }
        assert!(found == bytes);
        assert!(of(&bytes).whole().unwrap() == bytes);
    }
}
