//! `GET /new_db`, `GET /drop_db`, and what else is asked of the data base as such.
//!
//! Both are for peers on loopback who may write everything: outside of all projects too.

use std::sync::Arc;

use storage_protocol::objects::is_part;
use storage_protocol::{Batch, CommitOptions, Key, KeyRange, Storage, StorageError};

use super::answer::{Answer, Refusal, json, text};
use super::cursor::Cursor;
use super::house::House;
use super::keys;
use crate::gateway::{Caller, Guest};

/// Keys that are removed in one commit, and how many of them may be parts of files, whose values are looked at.
const KEYS_PER_COMMIT: usize = 1_000;
const PARTS_PER_COMMIT: usize = 32;

const DONE: &str = " {\"acknowledged\":true}\n";

/// That the peer is on this machine.
///
/// # Errors
/// It is not.
pub(super) fn check_loopback(guest: &Guest) -> Result<(), Refusal> {
    match guest.address().ip().to_canonical().is_loopback() {
        true => Ok(()),
        false => Err(Refusal::text(
            403,
            "\n403: FORBIDDEN access from external IP.\n",
        )),
    }
}

pub(super) async fn new(house: &House, caller: &Caller) -> Answer {
    let storage = caller.storage(&house.keyspace);
    let marker = Key::from_static(keys::DATABASE);
    let batch = Batch::new()
        .check_absent(marker.clone())
        .put(marker, Key::new());
    let options = CommitOptions::labelled("repository made");
    match storage.commit(batch, options).await {
        Ok(_) => Ok(json(DONE)),
        Err(StorageError::CheckFailed { .. }) => Err(Refusal::text(
            400,
            "\n400: Bad Request when creating DB it exists already\n",
        )),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn drop_all(house: &House, caller: &Caller) -> Answer {
    let storage = caller.storage(&house.keyspace);
    let marker = Key::from_static(keys::DATABASE);
    // Who may not remove this may not remove the rest, and removes nothing.
    let options = CommitOptions::labelled("repository dropped");
    let batch = Batch::new().remove(marker.clone());
    let existed = super::cursor::first(&*storage, KeyRange::all())
        .await?
        .is_some();
    storage.commit(batch, options).await?;
    house.forget_made();
    if !existed {
        let body = "\n400: Bad Request dropping error: there is no data base\n";
        return Err(Refusal::text(400, body));
    }
    remove_all(&storage).await?;
    Ok(json(DONE))
}

async fn remove_all(storage: &Arc<dyn Storage>) -> Result<(), StorageError> {
    let mut cursor = Cursor::new(storage, KeyRange::all());
    let (mut batch, mut parts) = (Batch::new(), 0);
    let mut is_over = false;
    while !is_over {
        match cursor.next().await? {
            Some(key) => {
                parts += usize::from(is_part(&key));
                batch = batch.remove(key);
            }
            None => is_over = true,
        }
        let keys = batch.operations.len();
        let is_full = keys >= KEYS_PER_COMMIT || parts >= PARTS_PER_COMMIT;
        if is_full || (is_over && keys > 0) {
            let options = CommitOptions::labelled("repository dropped");
            let full = std::mem::take(&mut batch);
            storage.commit(full, options).await?;
            parts = 0;
        }
    }
    Ok(())
}

/// Whether storage answers.
pub(super) async fn verify(house: &House) -> Answer {
    let own = house.server.own_storage(&house.keyspace);
    let answered = own.get(&[]).await;
    match answered {
        Ok(_) if house.server.is_serving() => Ok(text("200")),
        _ => Err(Refusal::text(503, "503")),
    }
}

/// What is acknowledged is durable already.
pub(super) async fn flush(house: &House) -> Answer {
    match house.server.own_storage(&house.keyspace).get(&[]).await {
        Ok(_) => Ok(text("200 Succeed\n")),
        Err(error) => Err(Refusal::text(400, format!("400Flush error {error}\n"))),
    }
}
