//! A walk over the documents that a query asks for, by way of the index: never over all documents, unless all are asked for.

use std::collections::HashSet;
use std::sync::Arc;

use storage_protocol::{Entry, Key, KeyRange, Result, Storage, StorageError, StorageExt};

use super::cursor::{Cursor, first};
use super::index::{self, Query};
use super::place::Place;
use super::{keys, metadata};

/// Where the walk is.
#[derive(Debug)]
enum Stage {
    /// Between projects: the next one begins here or later.
    Project(KeyRange),
    /// Within a project's index, between groups of entries of one project's name.
    Group {
        project: String,
        left: KeyRange,
    },
    /// At keys that lead to documents.
    Keys {
        cursor: Cursor,
        then: Box<Stage>,
    },
    Over,
}

/// See the module. It goes over the projects that its storage may read, one after the other.
#[derive(Debug)]
pub(super) struct Search {
    storage: Arc<dyn Storage>,
    query: Query,
    stage: Stage,
    has_begun: bool,
    /// Documents may be found twice: by what they say and by what the request said.
    found: HashSet<Key>,
}

impl Search {
    pub(super) fn new(storage: Arc<dyn Storage>, query: Query) -> Self {
        Self {
            storage,
            query,
            stage: Stage::Project(keys::projects()),
            has_begun: false,
            found: HashSet::new(),
        }
    }

    /// The next document. The caller bounds how many it takes: the walk remembers each of them.
    pub(super) async fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Over => return Ok(None),
                Stage::Project(range) => self.stage = self.project(range).await?,
                Stage::Group { project, left } => self.stage = self.group(project, left).await?,
                Stage::Keys { mut cursor, then } => {
                    let Some(key) = cursor.next().await? else {
                        self.stage = *then;
                        continue;
                    };
                    self.stage = Stage::Keys { cursor, then };
                    if let Some(place) = place_of(&key)
                        && let Some(entry) = self.document(&place).await?
                    {
                        return Ok(Some(entry));
                    }
                }
            }
        }
    }

    /// The next project.
    async fn project(&mut self, range: KeyRange) -> Result<Stage> {
        let found = match self.has_begun {
            true => self.readable(range).await?,
            // Who may read nothing at all is told so.
            false => first(&*self.storage, range).await?,
        };
        self.has_begun = true;
        let Some(key) = found else {
            return Ok(Stage::Over);
        };
        let Some((project, end)) = keys::project_at(&key) else {
            // No project's: somebody has put it by other means.
            let next = KeyRange::single(key).end;
            return Ok(next.map_or(Stage::Over, |next| Stage::Project(from(next))));
        };
        let then = end.map_or(Stage::Over, |end| Stage::Project(from(end)));
        if self.query.is_open() {
            let range = KeyRange::prefix(keys::metadata_of(&project));
            if self.readable(range.clone()).await?.is_none() {
                return Ok(then);
            }
            return Ok(Stage::Keys {
                cursor: Cursor::new(&self.storage, range),
                then: Box::new(then),
            });
        }
        let left = KeyRange::prefix(self.query.start(&project));
        Ok(match self.group(project, left).await? {
            Stage::Over => then,
            stage => stage,
        })
    }

    /// The next group of a project's index; behind the last one, the next project.
    async fn group(&mut self, project: String, left: KeyRange) -> Result<Stage> {
        let next_project = || {
            let end = KeyRange::prefix(keys::project(&project)).end;
            end.map_or(Stage::Over, |end| Stage::Project(from(end)))
        };
        let found = self.readable(left.clone()).await?;
        let ranges = found.and_then(|key| {
            let range = self.query.range(&project, &key)?;
            Some((range, Query::behind(&project, &key)?))
        });
        let Some((range, behind)) = ranges else {
            return Ok(next_project());
        };
        let left = KeyRange {
            start: behind,
            end: left.end,
        };
        Ok(Stage::Keys {
            cursor: Cursor::new(&self.storage, range),
            then: Box::new(Stage::Group { project, left }),
        })
    }

    /// The first key of a range; none, where nothing of it may be read.
    async fn readable(&mut self, range: KeyRange) -> Result<Option<Key>> {
        match first(&*self.storage, range).await {
            Err(StorageError::AccessDenied { .. }) => Ok(None),
            found => found,
        }
    }

    /// The document of a place, if it is one that is asked for and was not found before.
    async fn document(&mut self, place: &Place) -> Result<Option<Entry>> {
        let key = keys::metadata(place);
        if self.found.contains(&key) {
            return Ok(None);
        }
        // It may be gone, or another one by now.
        let entry = self.storage.get_one(key.clone()).await?;
        let is_it = |entry: &Entry| {
            let said = metadata::said(&entry.value);
            said.is_some_and(|said| self.query.matches(place, &said))
        };
        let entry = entry.filter(is_it);
        // Without the index each comes once.
        if entry.is_some() && !self.query.is_open() {
            self.found.insert(key);
        }
        Ok(entry)
    }
}

fn from(start: Key) -> KeyRange {
    KeyRange { start, end: None }
}

fn place_of(key: &[u8]) -> Option<Place> {
    keys::place_of_metadata(key).or_else(|| index::place_of(key))
}
