//! The folder: what it keeps, whom it refuses, and what damage does.

use redb::Table;
use storage_protocol::{EntryLifetime, Epoch, Revision, UnixMillis};

use super::facts::{CHECKSUM, FORMAT};
use super::*;

fn folder(path: &Path, keyspace: &str) -> Folder {
    Folder {
        path: path.to_owned(),
        keyspace: keyspace.to_owned(),
    }
}

fn entry(value: &'static str, lifetime: EntryLifetime) -> Entry {
    Entry {
        value: value.into(),
        revision: Revision(7),
        lifetime,
    }
}

fn at(revision: u64) -> Position {
    Position {
        epoch: Epoch(0xe),
        revision: Revision(revision),
    }
}

#[test]
fn what_is_written_is_read_again() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(&place.path().join("a/b"), "models");
    let range = KeyRange::prefix("k");
    let (disk, held) = Disk::open(&folder, &range, usize::MAX).unwrap();
    assert!(held.is_none());
    let rows = [
        (
            Key::from("k1"),
            Some(entry("", EntryLifetime::Until(UnixMillis(5)))),
        ),
        (Key::from("k2"), Some(entry("two", EntryLifetime::Session))),
        (
            Key::from("k3"),
            Some(entry("three", EntryLifetime::Forever)),
        ),
    ];
    disk.write(at(7), &rows).unwrap();
    disk.write(at(9), &[("k2".into(), None)]).unwrap();
    drop(disk);
    let (_disk, held) = Disk::open(&folder, &range, usize::MAX).unwrap();
    let held = held.unwrap();
    assert_eq!(held.position, Some(at(9)));
    assert!(held.proven.is_none());
    let expected: BTreeMap<_, _> = rows
        .into_iter()
        .filter_map(|(key, entry)| Some((key, entry?)))
        .filter(|(key, _)| key != "k2")
        .collect();
    assert_eq!(held.entries(), &expected);
}

#[test]
fn a_folder_of_something_else_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let range = KeyRange::prefix("k");
    let mine = folder(&place.path().join("r"), "models");
    let refusal = |folder: &Folder, range: &KeyRange, max: usize| {
        let error = Disk::open(folder, range, max).unwrap_err();
        error.to_string()
    };
    let (disk, _) = Disk::open(&mine, &range, usize::MAX).unwrap();
    assert!(refusal(&mine, &range, usize::MAX).contains("in use by another"));
    let rows = [(
        Key::from("k"),
        Some(entry("123456", EntryLifetime::Forever)),
    )];
    disk.write(at(7), &rows).unwrap();
    drop(disk);
    let other = folder(&mine.path, "other");
    let text = refusal(&other, &range, usize::MAX);
    assert!(
        text.contains("\"models\"") && text.contains("\"other\""),
        "{text}"
    );
    let text = refusal(&mine, &KeyRange::all(), usize::MAX);
    assert!(text.contains("[k..l)") && text.contains("[..)"), "{text}");
    let text = refusal(&mine, &range, 100);
    assert!(text.contains("memory_bytes_max is 100"), "{text}");
    fs::write(mine.path.join("notes.txt"), "mine").unwrap();
    assert!(refusal(&mine, &range, usize::MAX).contains("notes.txt"));
    fs::remove_file(mine.path.join("notes.txt")).unwrap();
    // What a newer version wrote is not touched.
    change(&mine.path, |facts, _| {
        facts.set("format", &(FORMAT + 1).to_be_bytes());
    });
    let text = refusal(&mine, &range, usize::MAX);
    assert!(text.contains("format 3"), "{text}");
}

/// Three entries at 7.
fn three(folder: &Folder) -> BTreeMap<Key, Entry> {
    let (disk, _) = Disk::open(folder, &KeyRange::all(), usize::MAX).unwrap();
    let entry = |n: u8| {
        let entry = entry("the value", EntryLifetime::Until(UnixMillis(n.into())));
        (Key::from(vec![b'k', n]), Some(entry))
    };
    let rows: Vec<_> = (0..3).map(entry).collect();
    disk.write(at(7), &rows).unwrap();
    let live = rows.into_iter().filter_map(|(key, row)| Some((key, row?)));
    live.collect()
}

/// Changes the tables by way of redb, whose own checksums are right then.
fn change(path: &Path, change: impl FnOnce(&mut Facts, &mut Table<'_, &[u8], &[u8]>)) {
    let database = builder().open(path.join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(FACTS).unwrap();
        let mut facts = Facts::of(&table).unwrap();
        change(&mut facts, &mut transaction.open_table(ENTRIES).unwrap());
        for (name, value) in &facts.0 {
            table.insert(name.as_str(), value.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
}

fn begins_anew(folder: &Folder) -> bool {
    let opened = Disk::open(folder, &KeyRange::all(), usize::MAX);
    let (disk, held) = opened.unwrap();
    let put_aside = folder.path.join(DAMAGED).exists();
    assert_eq!(held.is_none(), put_aside);
    // It can be written to, and read again.
    let rows = [("k".into(), Some(entry("v", EntryLifetime::Forever)))];
    disk.write(at(9), &rows).unwrap();
    drop(disk);
    let (_, held) = Disk::open(folder, &KeyRange::all(), usize::MAX).unwrap();
    assert_eq!(held.unwrap().position, Some(at(9)));
    put_aside
}

#[test]
fn what_does_not_add_up_is_begun_anew() {
    type Change = fn(&mut Facts, &mut Table<'_, &[u8], &[u8]>);
    let changes: [(&str, Change, bool); 9] = [
        ("nothing", |_, _| {}, false),
        (
            "an older format",
            |facts, _| facts.set("format", &1u64.to_be_bytes()),
            true,
        ),
        ("no format", |facts, _| facts.set("format", b""), true),
        (
            "another position",
            |facts, _| {
                facts.set(POSITION, at(8).to_string().as_bytes());
            },
            true,
        ),
        (
            "no position that can be read",
            |facts, _| {
                facts.set(POSITION, b"x");
                let checksum = facts.checksum();
                facts.set(CHECKSUM, &checksum);
            },
            true,
        ),
        (
            "another keyspace",
            |facts, _| facts.set("keyspace", b"others"),
            true,
        ),
        (
            "an entry less",
            |_, entries| drop(entries.remove(&b"k\x01"[..]).unwrap()),
            true,
        ),
        (
            "an older entry",
            |_, entries| {
                let mut older = Vec::new();
                let mut entry = entry("the value", EntryLifetime::Forever);
                entry.revision = Revision(6);
                encode(b"k\x01", &entry, &mut older);
                entries.insert(&b"k\x01"[..], older.as_slice()).unwrap();
            },
            true,
        ),
        (
            "another value",
            |_, entries| {
                let mut row = entries
                    .get(&b"k\x01"[..])
                    .unwrap()
                    .unwrap()
                    .value()
                    .to_vec();
                *row.last_mut().unwrap() ^= 1;
                entries.insert(&b"k\x01"[..], row.as_slice()).unwrap();
            },
            true,
        ),
    ];
    for (what, damage, anew) in changes {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path(), "models");
        three(&folder);
        change(place.path(), damage);
        assert_eq!(begins_anew(&folder), anew, "{what}");
    }
    // A file that is no database, or not all of one.
    for bytes in [Some(&b"no database"[..]), Some(b""), None] {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path(), "models");
        three(&folder);
        let file = place.path().join(FILE);
        match bytes {
            Some(bytes) => fs::write(file, bytes).unwrap(),
            None => {
                let file = File::options().write(true).open(file).unwrap();
                file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            }
        }
        assert!(begins_anew(&folder), "{bytes:?}");
    }
}

/// Its tables are changed while it is open.
fn damaged_in_use(
    folder: &Folder,
    damage: impl FnOnce(&mut Facts, &mut Table<'_, &[u8], &[u8]>),
) -> Disk {
    let (disk, _) = Disk::open(folder, &KeyRange::all(), usize::MAX).unwrap();
    let Disk {
        database,
        facts,
        _lock,
        ..
    } = disk;
    // redb lets nobody else in, so it is opened again, as if nothing had been between.
    drop(database);
    change(&folder.path, damage);
    Disk {
        database: builder().open(folder.path.join(FILE)).unwrap(),
        facts,
        folder: folder.path.clone(),
        _lock,
    }
}

/// What is written next to them does not vouch for them.
#[test]
fn facts_that_were_damaged_while_the_folder_was_open_are_not_believed() {
    let older = 1u64.to_be_bytes();
    let newer = (FORMAT + 1).to_be_bytes();
    for (name, damaged) in [
        ("keyspace", &b"others"[..]),
        ("start", b"x"),
        ("end", b"x"),
        ("format", &older),
        ("format", &newer),
        (POSITION, b"000000000000000e:8"),
        (SUM, &[1; 16]),
        ("name", b"of no fact"),
    ] {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path(), "models");
        let mut expected = three(&folder);
        let disk = damaged_in_use(&folder, |facts, _| facts.set(name, damaged));
        let new = entry("new", EntryLifetime::Forever);
        let rows = [(Key::from_static(b"k\x01"), Some(new.clone()))];
        disk.write(at(9), &rows).unwrap();
        drop(disk);
        expected.insert(Key::from_static(b"k\x01"), new);
        // Not refused; and what is there is what was saved, or nothing.
        let opened = Disk::open(&folder, &KeyRange::all(), usize::MAX);
        let (_, held) = opened.unwrap_or_else(|error| panic!("{name}: {error}"));
        if let Some(held) = held {
            assert_eq!(held.position, Some(at(9)), "{name}");
            assert_eq!(held.entries(), &expected, "{name}");
        }
    }
}

/// A sum that was wrong when a row was replaced stays wrong.
#[test]
fn a_row_that_was_damaged_before_it_was_replaced_is_noticed() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path(), "models");
    three(&folder);
    let disk = damaged_in_use(&folder, |_, entries| {
        drop(entries.remove(&b"k\x01"[..]).unwrap());
    });
    let rows = [(
        Key::from_static(b"k\x01"),
        Some(entry("new", EntryLifetime::Forever)),
    )];
    disk.write(at(9), &rows).unwrap();
    drop(disk);
    assert!(begins_anew(&folder));
}

/// Flips one bit after the other of the file's bytes: all of its head, and many of the rest.
#[test]
fn a_flipped_bit_gives_the_saved_state_or_none_and_no_panic() {
    let place = tempfile::tempdir().unwrap();
    let saved = folder(&place.path().join("saved"), "models");
    let expected = three(&saved);
    let bytes = fs::read(saved.path.join(FILE)).unwrap();
    let (mut anew, mut whole) = (0, 0);
    let places = (0..320).chain((320..bytes.len()).step_by(bytes.len() / 400));
    // Where the values are, each byte.
    let value = b"the value";
    let values = bytes.windows(value.len()).enumerate();
    let values = values.filter(|(_, window)| window == value);
    let values: Vec<usize> = values.flat_map(|(at, _)| at..at + value.len()).collect();
    assert!(values.len() >= 3 * value.len());
    for flipped in places.chain(values.iter().copied()) {
        let folder = folder(&place.path().join("flipped"), "models");
        fs::create_dir(&folder.path).unwrap();
        let mut bytes = bytes.clone();
        bytes[flipped] ^= 1 << (flipped % 8);
        fs::write(folder.path.join(FILE), bytes).unwrap();
        // Without catching what panics.
        let loaded = load(&folder.path.join(FILE), &folder, &KeyRange::all());
        match loaded {
            Ok((_, _, held)) => {
                let held = held.expect("a state was saved");
                assert_eq!(held.position, Some(at(7)), "byte {flipped}");
                assert_eq!(held.entries(), &expected, "byte {flipped}");
                whole += 1;
            }
            Err(Trouble::Damaged(_)) => {
                // Not each time: it syncs.
                if anew % 16 == 0 {
                    assert!(begins_anew(&folder), "byte {flipped}");
                }
                anew += 1;
            }
            Err(Trouble::Refused(what)) => panic!("byte {flipped}: {what}"),
        }
        fs::remove_dir_all(&folder.path).unwrap();
    }
    assert!(
        anew > values.len() / 2 && whole > 0,
        "{anew} anew, {whole} whole"
    );
}

#[test]
fn a_file_that_was_not_finished_is_made_anew() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path(), "models");
    fs::write(place.path().join("replica.redb.new"), "half").unwrap();
    let (_disk, held) = Disk::open(&folder, &KeyRange::all(), usize::MAX).unwrap();
    assert!(held.is_none());
}
