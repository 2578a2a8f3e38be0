//! `POST /delete_metadata`: the file, its document and its index entries go in one commit.

use axum::body::Body;
use hyper::http::request::Parts;
use storage_protocol::CommitOptions;
use storage_protocol::objects::remove_object_with;

use super::answer::{Answer, Refusal, text};
use super::house::House;
use super::parameters::Parameters;
use super::place::WRITTEN;
use super::upload::Known;
use super::{index, keys};
use crate::gateway::Caller;

/// How often the commit is repeated because the same file was uploaded meanwhile.
const ATTEMPTS: u32 = 64;

pub(super) async fn remove(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let parameters = Parameters::read(parts, body).await?;
    let place = parameters.values(WRITTEN).place(WRITTEN)?;
    let storage = caller.storage(&house.keyspace);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let known = Known::read(&*storage, &place).await?;
        let Some(said) = &known.said else {
            return Err(Refusal::text(
                420,
                "Could not DELETE an not existing register.\n\n",
            ));
        };
        let mut batch = known.batch.clone().remove(known.key.clone());
        for entry in index::entries(&place, said) {
            batch = batch.remove(entry);
        }
        let options = CommitOptions::labelled("deleted");
        let removed = remove_object_with(&*storage, keys::file(&place), None, batch, options);
        match removed.await {
            Ok(removed) if removed.previous.is_some() => return Ok(text("deleted succeed\n")),
            Ok(_) => {
                let body = "Error when deleting the file: there was none\n";
                return Err(Refusal::text(400, body));
            }
            Err(error) if known.is_stale(&error) && attempts < ATTEMPTS => {}
            Err(error) => return Err(error.into()),
        }
    }
}
