//! A walk over the documents that a query asks for, by way of the index: never over all documents, unless all are asked for.
//!
//! It looks at [`QUERY_ROWS_MAX`] rows at most, and at [`QUERY_BYTES_MAX`] bytes of documents that are not asked for: then the
//! query is refused. Others of the runtime have their turn meanwhile, however long it takes.

use std::collections::HashSet;
use std::sync::Arc;

use storage_protocol::{Entry, Key, KeyRange, Storage, StorageError, StorageExt};

use super::cursor::{Cursor, first};
use super::index::{self, Query};
use super::place::Place;
use super::{keys, metadata};

/// The most rows that one query looks at: keys of projects, of the index, and documents. Two for each project, also where one
/// is named: a document may say another project than the one that it lies in.
pub(super) const QUERY_ROWS_MAX: u64 = 50_000;
/// The most bytes of documents that one query looks at in vain. Each condition on a text goes over them once more.
pub(super) const QUERY_BYTES_MAX: u64 = 64 << 20;
/// When so many bytes were looked at, others have their turn: some hundred microseconds.
const TURN_BYTES: u64 = 64 << 10;
/// What a row takes beside its document, in such bytes.
const ROW_BYTES: u64 = 1 << 10;

/// Why a walk does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SearchError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(
        "more than {QUERY_ROWS_MAX} rows would have to be looked at, two of them for each project that may be read \
         (query_rows_max): name a project, or more than was named"
    )]
    TooManyRows,
    #[error(
        "more than {QUERY_BYTES_MAX} bytes of documents would have to be looked at (query_bytes_max): name a project, or more \
         than was named"
    )]
    TooManyBytes,
}

type Result<T> = std::result::Result<T, SearchError>;

/// What a walk may still look at, and when others have their turn.
#[derive(Debug)]
struct Work {
    rows_left: u64,
    bytes_left: u64,
    since_turn: u64,
}

impl Work {
    fn new() -> Self {
        Self {
            rows_left: QUERY_ROWS_MAX,
            bytes_left: QUERY_BYTES_MAX,
            since_turn: 0,
        }
    }

    /// A row is looked at.
    async fn row(&mut self) -> Result<()> {
        let left = self.rows_left.checked_sub(1);
        self.rows_left = left.ok_or(SearchError::TooManyRows)?;
        self.pass(ROW_BYTES).await;
        Ok(())
    }

    /// So many bytes were looked at in vain.
    fn in_vain(&mut self, bytes: u64) -> Result<()> {
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or(SearchError::TooManyBytes)?;
        Ok(())
    }

    /// So many bytes were looked at. Reads come from memory mostly, so nothing else gives the turn away.
    async fn pass(&mut self, bytes: u64) {
        self.since_turn = self.since_turn.saturating_add(bytes);
        if self.since_turn >= TURN_BYTES {
            self.since_turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

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
    work: Work,
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
            work: Work::new(),
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
                    self.work.row().await?;
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

    /// The document that was told last is not asked for after all: it was gone over for this many bytes.
    ///
    /// # Errors
    /// That was too much.
    pub(super) async fn was_in_vain(&mut self, bytes: u64) -> Result<()> {
        self.work.in_vain(bytes)?;
        self.work.pass(bytes).await;
        Ok(())
    }

    /// The next project.
    async fn project(&mut self, range: KeyRange) -> Result<Stage> {
        let found = match self.has_begun {
            true => self.readable(range).await?,
            // Who may read nothing at all is told so.
            false => {
                self.work.row().await?;
                first(&*self.storage, range).await?
            }
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
        self.work.row().await?;
        match first(&*self.storage, range).await {
            Err(StorageError::AccessDenied { .. }) => Ok(None),
            found => Ok(found?),
        }
    }

    /// The document of a place, if it is one that is asked for and was not found before.
    async fn document(&mut self, place: &Place) -> Result<Option<Entry>> {
        let key = keys::metadata(place);
        if self.found.contains(&key) {
            return Ok(None);
        }
        self.work.row().await?;
        // It may be gone, or another one by now.
        let Some(entry) = self.storage.get_one(key.clone()).await? else {
            return Ok(None);
        };
        let bytes = entry.value.len() as u64;
        self.work.pass(bytes).await;
        let said = metadata::said(&entry.value);
        if !said.is_some_and(|said| self.query.matches(place, &said)) {
            self.work.in_vain(bytes)?;
            return Ok(None);
        }
        // Without the index each comes once.
        if !self.query.is_open() {
            self.found.insert(key);
        }
        Ok(Some(entry))
    }
}

fn from(start: Key) -> KeyRange {
    KeyRange { start, end: None }
}

fn place_of(key: &[u8]) -> Option<Place> {
    keys::place_of_metadata(key).or_else(|| index::place_of(key))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_and_the_work_has_an_end() {
        let mut work = Work::new();
        assert!(work.pass(TURN_BYTES - 1).now_or_never().is_some());
        assert!(work.pass(1).now_or_never().is_none());
        assert!(work.pass(1).now_or_never().is_some(), "it begins anew");
        let mut turns = 0;
        for _ in 0..QUERY_ROWS_MAX {
            match work.row().now_or_never() {
                Some(done) => done.unwrap(),
                None => turns += 1,
            }
        }
        assert!(turns >= QUERY_ROWS_MAX * ROW_BYTES / TURN_BYTES);
        assert_eq!(work.row().await, Err(SearchError::TooManyRows));
        work.in_vain(QUERY_BYTES_MAX).unwrap();
        assert_eq!(work.in_vain(1), Err(SearchError::TooManyBytes));
    }
}
