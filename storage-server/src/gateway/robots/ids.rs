//! Numbers for robots, packages and jobs: each kind counts from 1, and no number is given twice.
//!
//! They are taken out of the store a block at a time, by a commit that others see; what is left of a block when the server ends
//! is never used.

use storage_protocol::{Batch, CommitOptions, Storage, StorageError, StorageExt};
use tokio::sync::Mutex;

use super::keys;

/// Numbers that are taken at once.
const BLOCK: u64 = 20;
/// Others may take some meanwhile, so many times.
const TRIES_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ids {
    robots: Mutex<Block>,
    packages: Mutex<Block>,
    jobs: Mutex<Block>,
}

#[derive(Debug, Default)]
struct Block {
    next: u64,
    end: u64,
}

/// What is numbered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Robot,
    Package,
    Job,
}

impl Ids {
    /// The next number.
    pub(super) async fn next(&self, own: &dyn Storage, kind: Kind) -> Result<u64, StorageError> {
        let (block, name) = match kind {
            Kind::Robot => (&self.robots, "robot"),
            Kind::Package => (&self.packages, "package"),
            Kind::Job => (&self.jobs, "job"),
        };
        // Held while a block is taken: who comes meanwhile waits for it.
        let mut block = block.lock().await;
        if block.next == block.end {
            *block = take(own, name).await?;
        }
        let number = block.next;
        block.next += 1;
        Ok(number)
    }
}

async fn take(own: &dyn Storage, name: &str) -> Result<Block, StorageError> {
    let key = keys::numbers(name);
    let mut last = None;
    for _ in 0..TRIES_MAX {
        let entry = own.get_one(key.clone()).await?;
        let (next, batch) = match &entry {
            None => (1, Batch::new().check_absent(key.clone())),
            Some(entry) => {
                let text = str::from_utf8(&entry.value).unwrap_or_default();
                let next = text
                    .parse::<u64>()
                    .map_err(|_| StorageError::InvalidArgument {
                        message: format!("the key ids/{name} has {text:?}, which is no number"),
                    })?;
                (
                    next,
                    Batch::new().check_revision(key.clone(), entry.revision),
                )
            }
        };
        let end = next + BLOCK;
        let batch = batch.put(key.clone(), end.to_string());
        let options = CommitOptions::labelled("numbers taken");
        match own.commit(batch, options).await {
            Ok(_) => return Ok(Block { next, end }),
            Err(error @ StorageError::CheckFailed { .. }) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(StorageError::Cancelled))
}

/// A random UUID, of version 4.
pub(super) fn uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    let parts = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    parts.join("-")
}
