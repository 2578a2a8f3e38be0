//! The keys of the repository's keyspace.
//!
//! | key | value |
//! | --- | --- |
//! | `PROJECT/SOURCE/PATH…/NAME` | a file, as an object (its parts lie behind its key) |
//! | `PROJECT/␀meta/SOURCE/PATH…/NAME` | its metadata document |
//! | `PROJECT/␀index/ORDER/…/SOURCE/PATH…/NAME` | nothing: see [`super::index`] |
//! | `␀log/` and a revision | an entry of the log |
//! | `␀db` | nothing: the data base was made |
//!
//! All of a project has one prefix, so that one access rule covers it. A name is in a key as it is, but for control
//! characters, `%`, `/` and `#`, which are `%` and two hexadecimal digits: so a NUL begins what is no file, and only what
//! stands between the names is a slash. A path keeps its slashes.

use percent_encoding::percent_decode;
use storage_protocol::{Key, KeyRange};

use super::place::{Folder, Place};

/// Where the log is.
pub(crate) const LOG: &[u8] = b"\0log/";
/// That the data base was made.
pub(crate) const DATABASE: &[u8] = b"\0db";

const META: &str = "\0meta/";
const INDEX: &str = "\0index/";
/// No project begins with a NUL, so all of them are here.
const FIRST: &[u8] = b"\x01";

fn is_plain(byte: u8) -> bool {
    !byte.is_ascii_control() && !matches!(byte, b'%' | b'/' | b'#')
}

/// A name as keys have it.
fn push_encoded(key: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match is_plain(byte) {
            true => key.push(byte),
            false => key.extend(format!("%{byte:02X}").bytes()),
        }
    }
}

fn decoded(text: &[u8]) -> Option<String> {
    String::from_utf8(percent_decode(text).collect()).ok()
}

/// A path as keys have it, with a slash behind each part.
fn push_path(key: &mut Vec<u8>, path: &str) {
    if path.is_empty() {
        return;
    }
    for part in path.split('/') {
        push_encoded(key, part);
        key.push(b'/');
    }
}

/// What all keys of a project begin with.
pub(crate) fn project(project: &str) -> Vec<u8> {
    let mut key = Vec::new();
    push_encoded(&mut key, project);
    key.push(b'/');
    key
}

fn within(project_name: &str, what: &str) -> Vec<u8> {
    let mut key = project(project_name);
    key.extend(what.bytes());
    key
}

/// What the keys of a project's metadata documents begin with.
pub(crate) fn metadata_of(project: &str) -> Vec<u8> {
    within(project, META)
}

/// What the keys of a project's index begin with.
pub(crate) fn index_of(project: &str) -> Vec<u8> {
    within(project, INDEX)
}

/// Source, path and name as keys have them: the same behind a file's, a document's and an index entry's own beginning.
pub(crate) fn push_place(key: &mut Vec<u8>, place: &Place) {
    push_encoded(key, &place.source);
    key.push(b'/');
    push_path(key, &place.path);
    push_encoded(key, &place.name);
}

/// The key of a file.
pub(crate) fn file(place: &Place) -> Key {
    let mut key = project(&place.project);
    push_place(&mut key, place);
    key.into()
}

/// The key of a file's metadata document.
pub(crate) fn metadata(place: &Place) -> Key {
    let mut key = metadata_of(&place.project);
    push_place(&mut key, place);
    key.into()
}

/// The files of a folder, and what lies between their keys.
pub(crate) fn folder(folder: &Folder) -> KeyRange {
    let Some(name) = &folder.project else {
        return projects();
    };
    let mut key = project(name);
    match &folder.source {
        // What is no file lies before.
        None => {
            let end = KeyRange::prefix(key.clone()).end;
            key.extend(FIRST);
            return KeyRange {
                start: key.into(),
                end,
            };
        }
        Some(source) => {
            push_encoded(&mut key, source);
            key.push(b'/');
            push_path(&mut key, &folder.path);
        }
    }
    KeyRange::prefix(key)
}

/// All projects.
pub(crate) fn projects() -> KeyRange {
    KeyRange {
        start: Key::from_static(FIRST),
        end: None,
    }
}

/// The name of a key's project, and where the next project may begin.
pub(crate) fn project_at(key: &[u8]) -> Option<(String, Option<Key>)> {
    let slash = key.iter().position(|byte| *byte == b'/')?;
    let name = decoded(key.get(..slash)?)?;
    let end = KeyRange::prefix(Key::copy_from_slice(key.get(..=slash)?)).end;
    Some((name, end))
}

fn place_within(project: &[u8], rest: &[u8]) -> Option<Place> {
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    let (source, rest) = (rest.get(..slash)?, rest.get(slash + 1..)?);
    let (path, name) = match rest.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (rest.get(..slash)?, rest.get(slash + 1..)?),
        None => (&[][..], rest),
    };
    Some(Place {
        project: decoded(project)?,
        source: decoded(source)?,
        path: decoded(path)?,
        name: decoded(name)?,
    })
}

fn split_project(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = key.iter().position(|byte| *byte == b'/')?;
    Some((key.get(..slash)?, key.get(slash + 1..)?))
}

/// The place of a file by its key; `None` for a part of one, and for what is no file's.
pub(crate) fn place_of_file(key: &[u8]) -> Option<Place> {
    if key.contains(&0) {
        return None;
    }
    let (project, rest) = split_project(key)?;
    place_within(project, rest)
}

/// The place that a metadata document is of, by its key; `None` for any other key.
pub(crate) fn place_of_metadata(key: &[u8]) -> Option<Place> {
    let (project, rest) = split_project(key)?;
    place_within(project, rest.strip_prefix(META.as_bytes())?)
}

/// The place that an index entry is of: what is behind its own beginning, of this many bytes.
pub(crate) fn place_of_entry(key: &[u8], beginning: usize) -> Option<Place> {
    let (project, _) = split_project(key)?;
    place_within(project, key.get(beginning..)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn place(project: &str, source: &str, path: &str, name: &str) -> Place {
        Place {
            project: project.to_owned(),
            source: source.to_owned(),
            path: path.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn keys_are_as_the_page_has_them() {
        let place = place("p 1", "a/b#", "x/y", "100%.c");
        assert_eq!(file(&place), "p 1/a%2Fb%23/x/y/100%25.c");
        assert_eq!(metadata(&place), "p 1/\0meta/a%2Fb%23/x/y/100%25.c");
        assert_eq!(place_of_file(b"p/\0meta/s/n"), None);
        assert_eq!(place_of_file(b"p/s/n\0part\0x"), None);
        assert_eq!(place_of_metadata(b"p/s/n"), None);
        assert_eq!(place_of_metadata(LOG), None);
        let (name, end) = project_at(b"a%2Fb/x/y").unwrap();
        assert_eq!((&*name, end), ("a/b", Some(Key::from_static(b"a%2Fb0"))));
    }

    #[test]
    fn a_folder_has_its_files_and_nothing_of_others() {
        let of = |project: &str, source: &str, path: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            folder(&Folder {
                project: some(project),
                source: some(source),
                path: path.to_owned(),
            })
        };
        let file = |path| file(&place("p", "s", path, "n"));
        for range in [
            of("", "", ""),
            of("p", "", ""),
            of("p", "s", ""),
            of("p", "s", "a"),
        ] {
            assert!(range.contains(&file("a")) && range.contains(&file("a/b")));
            assert!(!range.contains(LOG) && !range.contains(DATABASE));
        }
        assert!(!of("p", "s", "a").contains(&file("ab")));
        assert!(!of("p", "s", "a").contains(&file("")));
        assert!(!of("p", "", "").contains(&metadata(&place("p", "s", "a", "n"))));
        assert!(!of("p", "", "").contains(b"pp/s/n"));
    }

    proptest! {
        #[test]
        fn each_place_has_keys_of_its_own(
            one in [".{1,6}", ".{1,6}", "[a-b/]{0,4}", ".{1,6}"],
            other in [".{1,6}", ".{1,6}", "[a-b/]{0,4}", ".{1,6}"],
        ) {
            let of = |[project, source, path, name]: &[String; 4]| {
                place(project, source, path.trim_matches('/'), name)
            };
            let (one, other) = (of(&one), of(&other));
            prop_assert_eq!(file(&one) == file(&other), one == other);
            prop_assert_eq!(place_of_file(&file(&one)), Some(one.clone()));
            prop_assert_eq!(place_of_metadata(&metadata(&one)), Some(one.clone()));
            prop_assert!(!file(&one).contains(&0) && !metadata(&one).contains(&b'#'));
        }
    }
}
