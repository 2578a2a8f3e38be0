//! `POST /upload`: a file is streamed into an object, and comes to be seen in one commit with its metadata and its index.
//!
//! The file's place must be known before much of the file has come: by the query, or by fields before the file. Where they
//! come behind it, a file of up to 1 MiB is kept until then, and a longer one is refused.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use hyper::http::request::Parts;
use storage_protocol::objects::{ObjectOptions, ObjectWriter};
use storage_protocol::{Batch, CommitOptions, Key, Storage, StorageError, StorageExt};

use super::answer::{Answer, Refusal, text};
use super::form::Form;
use super::house::House;
use super::metadata::{self, Document, JSON_BYTES_MAX, Said, metadata_document};
use super::multipart::{self, Head, Piece};
use super::parameters::{self, FIELD_BYTES, Parameters};
use super::place::{Flaw, Place, WRITTEN};
use super::{index, keys};
use crate::gateway::Caller;
use crate::http::pace::PacedBody;

/// So much of a file is kept whose place is not known yet.
const HELD_BYTES_MAX: usize = 1 << 20;
/// How often the commit is repeated because the same file was uploaded meanwhile.
const ATTEMPTS: u32 = 64;

pub(super) async fn upload(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let Some(boundary) = multipart::boundary(parameters::content_type(parts)) else {
        return Err(Refusal::text(400, "No files were uploaded."));
    };
    let _place = house.upload_place(caller).await?;
    // Others may wait for its place.
    let patience = house.server.config().timeouts.partial_message;
    let body = Body::new(PacedBody::with_least_rate(body, patience));
    let mut form = Form::new(body, &boundary);
    let upload = Upload {
        house,
        storage: caller.storage(&house.keyspace),
        parameters: Parameters::of_query(parts),
        fields_left: parameters::BYTES_MAX,
        json: None,
        file: File::None,
    };
    upload.run(&mut form).await
}

/// The file, as far as it has come.
enum File {
    None,
    /// Its place is not known yet.
    Held(Vec<u8>),
    Sent {
        writer: Box<ObjectWriter<'static>>,
        place: Place,
    },
}

struct Upload<'a> {
    house: &'a House,
    storage: Arc<dyn Storage>,
    parameters: Parameters,
    /// So many bytes may small fields still have.
    fields_left: usize,
    json: Option<Vec<u8>>,
    file: File,
}

impl Upload<'_> {
    async fn run(mut self, form: &mut Form) -> Answer {
        let done = match self.read(form).await {
            Ok(()) => self.finish().await,
            Err(refusal) => Err(refusal),
        };
        if done.is_err()
            && let File::Sent { writer, .. } = self.file
        {
            // What is left, the server removes.
            let _ = writer.abort().await;
        }
        done
    }

    async fn read(&mut self, form: &mut Form) -> Result<(), Refusal> {
        loop {
            match form.next().await? {
                Piece::Head(head) => self.field(head, form).await?,
                Piece::Done => return Ok(()),
                Piece::Data(_) | Piece::End => {}
            }
        }
    }

    async fn field(&mut self, head: Head, form: &mut Form) -> Result<(), Refusal> {
        match head.name.as_str() {
            "UploadFile" => self.file(form).await,
            "UploadJSON" => {
                self.json = Some(form.data(JSON_BYTES_MAX, json_too_long).await?);
                Ok(())
            }
            // Of several the first counts.
            "RawJSON" if self.parameters.get("RawJSON").is_some() => form.skip().await,
            "RawJSON" => {
                let json = form.data(JSON_BYTES_MAX, json_too_long).await?;
                let json = String::from_utf8_lossy(&json).into_owned();
                self.parameters.push(head.name, json);
                Ok(())
            }
            _ if head.is_file => form.skip().await,
            _ => {
                let value = form.data(self.fields_left, fields_too_long).await?;
                let bytes = FIELD_BYTES + value.len() + head.name.len();
                let left = self.fields_left.checked_sub(bytes);
                self.fields_left = left.ok_or_else(fields_too_long)?;
                let value = String::from_utf8_lossy(&value).into_owned();
                self.parameters.push(head.name, value);
                Ok(())
            }
        }
    }

    /// Takes the file.
    async fn file(&mut self, form: &mut Form) -> Result<(), Refusal> {
        if !matches!(self.file, File::None) {
            return Err(Refusal::bad("more than one UploadFile"));
        }
        match self.parameters.values(WRITTEN).place(WRITTEN) {
            Ok(place) => {
                let writer = self.open(&place).await?;
                self.file = File::Sent { writer, place };
            }
            Err(Flaw::Missing(_)) => self.file = File::Held(Vec::new()),
            Err(flaw) => return Err(flaw.into()),
        }
        while let Piece::Data(bytes) = form.next().await? {
            match &mut self.file {
                File::Sent { writer, .. } => writer.write(bytes).await?,
                File::Held(held) if held.len() + bytes.len() > HELD_BYTES_MAX => {
                    return Err(Refusal::bad(format!(
                        "project, source, Path and DestFileName must be in the query, or in fields before UploadFile, for a \
                         file of over {HELD_BYTES_MAX} bytes"
                    )));
                }
                File::Held(held) => held.extend_from_slice(&bytes),
                File::None => {}
            }
        }
        Ok(())
    }

    async fn open(&mut self, place: &Place) -> Result<Box<ObjectWriter<'static>>, Refusal> {
        // Here, and not where its keys are put: that is when the whole file has come.
        let bytes = index::key_bytes(place);
        let max = self.storage.limits().await?.key_bytes_max;
        if bytes > max {
            return Err(Refusal::bad(format!(
                "project, source, Path and DestFileName make a key of {bytes} bytes, and it may have {max} (key_bytes_max); %, /, \
                 # and control characters in a name count three times"
            )));
        }
        self.house.ensure_made().await?;
        let options = ObjectOptions {
            max_bytes: Some(self.house.object_bytes_max),
            // A quota of commits per second holds the peer back.
            wait: Some(|time| Box::pin(tokio::time::sleep(time))),
            ..ObjectOptions::default()
        };
        let writer = ObjectWriter::new(self.storage.clone(), keys::file(place), options).await?;
        Ok(Box::new(writer))
    }

    /// Everything has come.
    async fn finish(&mut self) -> Answer {
        let place = self.parameters.values(WRITTEN).place(WRITTEN)?;
        let raw = self.parameters.get("RawJSON").map(str::as_bytes);
        let json = raw.or(self.json.as_deref()).unwrap_or_default();
        let document = metadata_document(json, &place).map_err(|error| {
            tracing::debug!(%error, "an upload's JSON is no document");
            Refusal::bad("Invalid UploadJSON")
        })?;
        match std::mem::replace(&mut self.file, File::None) {
            File::None => return Err(Refusal::bad("missing UploadFile")),
            File::Held(held) => {
                let mut writer = self.open(&place).await?;
                writer.write(Bytes::from(held)).await?;
                self.file = File::Sent {
                    writer,
                    place: place.clone(),
                };
            }
            sent @ File::Sent { .. } => self.file = sent,
        }
        let File::Sent { writer, place: to } = &mut self.file else {
            return Err(Refusal::bad("missing UploadFile"));
        };
        if *to != place {
            return Err(Refusal::bad(
                "fields behind UploadFile name another place than those before it",
            ));
        }
        let size = writer.size();
        publish(&*self.storage, writer, &place, document).await?;
        let metrics = &self.house.metrics;
        metrics.uploads.inc();
        metrics.bytes_in.inc_by(size);
        Ok(text("UPLOAD: succeed\n"))
    }
}

fn json_too_long() -> Refusal {
    Refusal::text(
        413,
        format!("413: UploadJSON has at most {JSON_BYTES_MAX} bytes\n"),
    )
}

fn fields_too_long() -> Refusal {
    Refusal::text(
        413,
        format!(
            "413: the fields beside the files have at most {} bytes\n",
            parameters::BYTES_MAX
        ),
    )
}

/// What is known of a file's metadata.
pub(super) struct Known {
    pub(super) batch: Batch,
    pub(super) key: Key,
    /// What the stored document says; `None`: there is none.
    pub(super) said: Option<Said>,
}

impl Known {
    /// Reads it. The batch demands that it stays so.
    pub(super) async fn read(storage: &dyn Storage, place: &Place) -> Result<Self, StorageError> {
        let key = keys::metadata(place);
        let stored = storage.get_one(key.clone()).await?;
        let batch = match &stored {
            Some(entry) => Batch::new().check_revision(key.clone(), entry.revision),
            None => Batch::new().check_absent(key.clone()),
        };
        Ok(Self {
            batch,
            key,
            said: stored.map(|entry| metadata::said(&entry.value).unwrap_or_default()),
        })
    }

    /// Whether an error says that it is known no more.
    pub(super) fn is_stale(&self, error: &StorageError) -> bool {
        matches!(error, StorageError::CheckFailed { key, .. } if *key == self.key)
    }
}

/// One commit: the file, its document, its index entries, and those of the document before gone.
async fn publish(
    storage: &dyn Storage,
    writer: &mut ObjectWriter<'static>,
    place: &Place,
    document: Document,
) -> Result<(), StorageError> {
    let said = metadata::said(document.text().as_bytes()).unwrap_or_default();
    let entries = index::entries(place, &said);
    let document = Bytes::from(document.into_text());
    let mut attempts = 0;
    loop {
        attempts += 1;
        let known = Known::read(storage, place).await?;
        let before = known.said.as_ref();
        let before = before.map(|said| index::entries(place, said));
        let before = before.unwrap_or_default();
        let mut batch = known.batch.clone().put(known.key.clone(), document.clone());
        for stale in before.difference(&entries) {
            batch = batch.remove(stale.clone());
        }
        for new in entries.difference(&before) {
            batch = batch.put(new.clone(), Bytes::new());
        }
        let options = CommitOptions::labelled("uploaded");
        match writer.finish_with(batch, options).await {
            Ok(_) => return Ok(()),
            Err(error) if known.is_stale(&error) && attempts < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
}
