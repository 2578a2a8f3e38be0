//! The index that queries by project, source, path and name go by, without regard to case.
//!
//! It is keys without values, beside the documents that they lead to: `PROJECT/␀index/ORDER/A/B/C/D/` and the place, where
//! A is the project and B to D are source, path and name in one of three orders, such that whichever of them are asked for
//! come first in one of them. Each is a hash of the text in lower case, so a key has one length whatever the texts are; who
//! reads an entry compares the document itself.
//!
//! A document that says another project or another source than the request did is found by both.

use std::collections::BTreeSet;

use storage_protocol::{Key, KeyRange};
use xxhash_rust::xxh3::xxh3_64;

use super::keys;
use super::metadata::Said;
use super::place::Place;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Source,
    Path,
    Name,
}

/// The name of an order, and what it is.
type Order = (&'static [u8; 4], [Field; 3]);

const BY_NAME: Order = (b"nps/", [Field::Name, Field::Path, Field::Source]);
const BY_PATH: Order = (b"psn/", [Field::Path, Field::Source, Field::Name]);
const BY_SOURCE: Order = (b"snp/", [Field::Source, Field::Name, Field::Path]);

/// A hash and a slash.
const TERM_BYTES: usize = 17;

fn folded(text: &str) -> String {
    text.to_lowercase()
}

fn push_term(key: &mut Vec<u8>, text: &str) {
    let hash = xxh3_64(folded(text).as_bytes());
    key.extend(format!("{hash:016x}/").bytes());
}

/// Project and source of a document: as the request had them, and as the document says.
fn names<'a>(place: &'a Place, said: &'a Said) -> [(&'a str, &'a str); 2] {
    let (project, source) = (place.project.as_str(), place.source.as_str());
    let said_project = said.project.as_deref().unwrap_or(project);
    let said_source = said.source.as_deref().unwrap_or(source);
    [(project, source), (said_project, said_source)]
}

/// The entries of a document.
pub(crate) fn entries(place: &Place, said: &Said) -> BTreeSet<Key> {
    let mut entries = BTreeSet::new();
    for (project, source) in names(place, said) {
        for (order, fields) in [BY_NAME, BY_PATH, BY_SOURCE] {
            let mut key = keys::index_of(&place.project);
            key.extend(order);
            push_term(&mut key, project);
            for field in fields {
                let text = match field {
                    Field::Source => source,
                    Field::Path => &place.path,
                    Field::Name => &place.name,
                };
                push_term(&mut key, text);
            }
            keys::push_place(&mut key, place);
            entries.insert(key.into());
        }
    }
    entries
}

/// How long an entry of a document of this place is: none of its keys is longer, nor those of the parts of its file.
pub(crate) fn key_bytes(place: &Place) -> usize {
    let mut key = keys::index_of(&place.project);
    keys::push_place(&mut key, place);
    key.len() + BY_NAME.0.len() + 4 * TERM_BYTES
}

/// The place that an entry leads to.
pub(crate) fn place_of(entry: &[u8]) -> Option<Place> {
    let (project, _) = keys::project_at(entry)?;
    let beginning = keys::index_of(&project).len() + BY_NAME.0.len() + 4 * TERM_BYTES;
    keys::place_of_entry(entry, beginning)
}

/// What is asked for: what is `None` may be anything; an empty text is asked for as such.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) project: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) name: Option<String>,
}

impl Query {
    /// Whether it asks for everything.
    pub(crate) fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a document is one of those that are asked for.
    pub(crate) fn matches(&self, place: &Place, said: &Said) -> bool {
        let is = |asked: &Option<String>, text: &str| {
            let same = |asked: &String| folded(asked) == folded(text);
            asked.as_ref().is_none_or(same)
        };
        let named = names(place, said);
        let mut named = named.iter();
        is(&self.path, &place.path)
            && is(&self.name, &place.name)
            && named.any(|(project, source)| is(&self.project, project) && is(&self.source, source))
    }

    /// The order in which what is asked for comes first.
    fn order(&self) -> Order {
        let (source, path, name) = (&self.source, &self.path, &self.name);
        match (source.is_some(), path.is_some(), name.is_some()) {
            (false, true, false) | (true, true, false) => BY_PATH,
            (true, false, false) | (true, false, true) => BY_SOURCE,
            _ => BY_NAME,
        }
    }

    /// What is to be read of a project's index: one range where the project is asked for.
    pub(crate) fn start(&self, project: &str) -> Vec<u8> {
        let mut key = keys::index_of(project);
        key.extend(self.order().0);
        if let Some(asked) = &self.project {
            push_term(&mut key, asked);
        }
        key
    }

    /// The entries with what is asked for, among those that begin as this one: with the same project.
    pub(crate) fn range(&self, project: &str, first: &[u8]) -> Option<KeyRange> {
        let group = keys::index_of(project).len() + BY_NAME.0.len() + TERM_BYTES;
        let mut key = first.get(..group)?.to_vec();
        for field in self.order().1 {
            let asked = match field {
                Field::Source => &self.source,
                Field::Path => &self.path,
                Field::Name => &self.name,
            };
            let Some(asked) = asked else {
                break;
            };
            push_term(&mut key, asked);
        }
        Some(KeyRange::prefix(key))
    }

    /// Behind all entries that begin as this one.
    pub(crate) fn behind(project: &str, first: &[u8]) -> Option<Key> {
        let group = keys::index_of(project).len() + BY_NAME.0.len() + TERM_BYTES;
        KeyRange::prefix(Key::copy_from_slice(first.get(..group)?)).end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use storage_protocol::objects::{ObjectId, PartKey};

    use super::*;
    use crate::gateway::repository::keys::tests::place;

    fn said(project: &str, source: &str) -> Said {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Said {
            project: some(project),
            source: some(source),
        }
    }

    #[test]
    fn an_entry_leads_to_its_place_and_has_one_length() {
        let place = place("p/q", "s", "a/b", "n");
        let entries = entries(&place, &said("", ""));
        assert_eq!(entries.len(), 3);
        for entry in &entries {
            assert_eq!(place_of(entry), Some(place.clone()));
            assert_eq!(entry.len(), key_bytes(&place));
            assert!(entry.starts_with(b"p%2Fq/\0index/"));
        }
        assert_eq!(super::entries(&place, &said("other", "")).len(), 6);
        assert_eq!(super::entries(&place, &said("P/Q", "S")).len(), 3);
        assert_eq!(place_of(b"p/\0index/nps/short"), None);
        let part = PartKey::part(&keys::file(&place), ObjectId([0; 16]), 0);
        assert!(part.len() < key_bytes(&place));
    }

    fn name() -> impl Strategy<Value = String> {
        "[aAb]{1,2}"
    }

    fn asked() -> impl Strategy<Value = Option<String>> {
        prop::option::of("[aAb]{0,2}")
    }

    proptest! {
        /// As a walk over the index goes.
        #[test]
        fn the_index_finds_what_matches_and_nothing_else(
            places in prop::collection::vec((name(), "[aAb]{0,2}", name(), name(), name()), 1..12),
            project in asked(), source in asked(), path in asked(), filename in asked(),
        ) {
            let query = Query { project, source, path, name: filename };
            let documents: Vec<_> = places
                .iter()
                .map(|(source, path, name, said_project, said_source)| {
                    (place("a", source, path, name), said(said_project, said_source))
                })
                .collect();
            let index: BTreeSet<Key> = documents
                .iter()
                .flat_map(|(place, said)| entries(place, said))
                .collect();
            let mut found = BTreeSet::new();
            let mut start = Key::from(query.start("a"));
            let end = KeyRange::prefix(start.clone()).end.unwrap();
            while let Some(first) = index.range(start.clone()..end.clone()).next() {
                let range = query.range("a", first).unwrap();
                found.extend(index.iter().filter(|key| range.contains(key)).cloned());
                start = Query::behind("a", first).unwrap();
            }
            let found: BTreeSet<_> = found.iter().map(|entry| keys::metadata(&place_of(entry).unwrap())).collect();
            for (place, said) in &documents {
                // One that was put again is as it was put last, so only what is there in one form is compared.
                let is_alone = documents.iter().filter(|(other, _)| other == place).count() == 1;
                if is_alone {
                    let is_found = found.contains(&keys::metadata(place));
                    prop_assert_eq!(is_found, query.matches(place, said), "{:?} {:?}", place, said);
                }
            }
        }
    }
}
