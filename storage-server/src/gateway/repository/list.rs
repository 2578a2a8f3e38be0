//! `GET /downloadlist` and `GET /downloadzip`: what lies in a folder, as it is read.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use storage_protocol::objects::ObjectReader;
use storage_protocol::{Key, Storage, StorageError};

use super::answer::{Answer, Refusal, text};
use super::cursor::Cursor;
use super::download::not_found;
use super::house::House;
use super::keys;
use super::metrics::Metrics;
use super::parameters::Parameters;
use super::place::{Flaw, Folder, Place, READ};
use super::zip::{FILES_MAX, NAMES_BYTES_MAX, SMALL_FILES_MAX, SMALL_NAMES_BYTES_MAX, Zip};
use crate::gateway::Caller;
use crate::limits::turns::Turn;

/// So many bytes of lines are sent together.
const LINES_BYTES: usize = 16 << 10;

/// The files of a folder.
#[derive(Debug)]
struct Files(Cursor);

impl Files {
    fn of(storage: &Arc<dyn Storage>, folder: &Folder) -> Self {
        Self(Cursor::new(storage, keys::folder(folder)))
    }

    async fn next(&mut self) -> Result<Option<(Key, Place)>, StorageError> {
        while let Some(key) = self.0.next().await? {
            // What lies between are parts of files, and what is none.
            if let Some(place) = keys::place_of_file(&key) {
                return Ok(Some((key, place)));
            }
        }
        Ok(None)
    }
}

async fn folder_of(parts: &Parts, body: Body) -> Result<Folder, Refusal> {
    let parameters = Parameters::read(parts, body).await?;
    Ok(Folder::of(parameters.unquoted_values(READ))?)
}

fn shown(folder: &Folder) -> String {
    let parts = [folder.project.as_deref(), folder.source.as_deref()];
    let parts = parts.into_iter().flatten();
    let path = Some(folder.path.as_str()).filter(|path| !path.is_empty());
    parts.chain(path).collect::<Vec<_>>().join("/")
}

/// How a file is called from outside of its project.
fn full_name(place: &Place) -> String {
    let Place {
        project,
        source,
        path,
        name,
    } = place;
    match path.is_empty() {
        true => format!("{project}/{source}/{name}"),
        false => format!("{project}/{source}/{path}/{name}"),
    }
}

pub(super) async fn list(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let folder = folder_of(parts, body).await?;
    let storage = caller.storage(&house.keyspace);
    let mut files = Files::of(&storage, &folder);
    let Some((_, first)) = files.next().await? else {
        return match folder.project {
            // The folder of all projects is there always.
            None => Ok(text("")),
            Some(_) => Err(not_found(&shown(&folder))),
        };
    };
    let start = Bytes::from(format!("{}\n", full_name(&first)));
    let rest = stream::try_unfold(files, |mut files| async move {
        let mut lines = String::new();
        while lines.len() < LINES_BYTES
            && let Some((_, place)) = files.next().await?
        {
            lines.push_str(&full_name(&place));
            lines.push('\n');
        }
        let lines = (!lines.is_empty()).then(|| (Bytes::from(lines), files));
        Ok::<_, StorageError>(lines)
    });
    let all = stream::iter([Ok(start)]).chain(rest);
    Ok(text(Body::from_stream(all)))
}

pub(super) async fn zip(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let folder = folder_of(parts, body).await?;
    if folder.project.is_none() {
        return Err(Flaw::Missing("project").into());
    }
    let storage = caller.storage(&house.keyspace);
    let mut files = Files::of(&storage, &folder);
    let (mut count, mut names) = (0, 0);
    while let Some((_, place)) = files.next().await? {
        count += 1;
        names += full_name(&place).len();
        if count > FILES_MAX || names > NAMES_BYTES_MAX {
            return Err(Refusal::bad(format!(
                "more than {FILES_MAX} files, or {NAMES_BYTES_MAX} bytes of their names: ask for a folder within it"
            )));
        }
    }
    if count == 0 {
        return Err(not_found(&shown(&folder)));
    }
    // A file that comes while a small one is packed is left out where that would make it a large one.
    let (zip, turn) = match count <= SMALL_FILES_MAX && names <= SMALL_NAMES_BYTES_MAX {
        true => (Zip::small(), None),
        false => (Zip::default(), Some(house.large_zip_place(caller).await?)),
    };
    let packing = Packing {
        files: Files::of(&storage, &folder),
        storage,
        zip,
        open: None,
        is_over: false,
        metrics: house.metrics.clone(),
        _turn: turn,
    };
    let pieces = stream::try_unfold(packing, |mut packing| async move {
        let piece = packing.next().await?;
        Ok::<_, StorageError>(piece.map(|piece| (piece, packing)))
    });
    let mut response = text(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    let disposition = HeaderValue::from_static("attachment; filename=download.zip");
    headers.insert(CONTENT_DISPOSITION, disposition);
    Ok(response)
}

/// A folder as it becomes a zip file, one piece after the other.
struct Packing {
    files: Files,
    storage: Arc<dyn Storage>,
    zip: Zip,
    /// The file that is being read.
    open: Option<ObjectReader<'static>>,
    is_over: bool,
    metrics: Metrics,
    /// Where its directory is a large one: it is kept until it is written.
    _turn: Option<Turn>,
}

impl Packing {
    async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        if let Some(reader) = &mut self.open {
            let Some(chunk) = reader.next().await? else {
                self.open = None;
                return Ok(Some(self.zip.end_file()));
            };
            self.metrics.bytes_out.inc_by(chunk.len() as u64);
            return Ok(Some(self.zip.data(&chunk)));
        }
        if self.is_over {
            return Ok(None);
        }
        // More files may have come since they were counted.
        while let Some((key, place)) = self.files.next().await? {
            let name = full_name(&place);
            if !self.zip.has_room(&name) {
                break;
            }
            // It may be gone since its key was seen.
            let opened = ObjectReader::open(self.storage.clone(), key).await?;
            if let Some(reader) = opened {
                let size = reader.info().size;
                self.open = Some(reader);
                return Ok(Some(self.zip.begin_file(&name, size)));
            }
        }
        self.is_over = true;
        Ok(Some(self.zip.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::repository::keys::tests::place;

    #[test]
    fn names_start_at_the_project() {
        assert_eq!(full_name(&place("p", "s", "", "n")), "p/s/n");
        assert_eq!(full_name(&place("p", "s", "a/b", "n")), "p/s/a/b/n");
        let folder = Folder {
            project: Some("p".to_owned()),
            source: Some("s".to_owned()),
            path: "a".to_owned(),
        };
        assert_eq!(shown(&folder), "p/s/a");
    }
}
