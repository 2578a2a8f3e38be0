//! The table of facts: what the file is a copy of, and at which position.

use std::collections::BTreeMap;

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};
use storage_protocol::{Key, KeyRange, Position, StorageError};

use super::Trouble;
use super::folder::FILE;
use super::rows::{CHECKSUM_BYTES, Sum};

pub(super) const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

/// The format of the tables. With a file of an older format the copy begins anew.
pub(super) const FORMAT: u64 = 2;

pub(super) const POSITION: &str = "position";
/// The name of the fact that holds the [`Sum`](super::rows::Sum) of the entries.
pub(super) const SUM: &str = "sum";
/// CRC-32 of all other facts.
pub(super) const CHECKSUM: &str = "checksum";

/// The table of facts.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts(pub(super) BTreeMap<String, Vec<u8>>);

pub(super) fn read_facts(database: &Database) -> Result<Facts, redb::Error> {
    let transaction = database.begin_read()?;
    Ok(Facts::of(&transaction.open_table(FACTS)?)?)
}

impl Facts {
    pub(super) fn of(
        table: &impl ReadableTable<&'static str, &'static [u8]>,
    ) -> Result<Self, redb::StorageError> {
        let mut facts = BTreeMap::new();
        for row in table.iter()? {
            let (name, value) = row?;
            facts.insert(name.value().to_owned(), value.value().to_vec());
        }
        Ok(Self(facts))
    }

    pub(super) fn write(
        &mut self,
        table: &mut Table<'_, &str, &[u8]>,
    ) -> Result<(), redb::StorageError> {
        let checksum = self.checksum();
        self.set(CHECKSUM, &checksum);
        for (name, value) in &self.0 {
            table.insert(name.as_str(), value.as_slice())?;
        }
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    pub(super) fn set(&mut self, name: &str, value: &[u8]) {
        self.0.insert(name.to_owned(), value.to_vec());
    }

    pub(super) fn sum(&self) -> Option<Sum> {
        Sum::decode(self.get(SUM)?)
    }

    pub(super) fn checksum(&self) -> [u8; CHECKSUM_BYTES] {
        let mut hasher = crc32fast::Hasher::new();
        for (name, value) in self.0.iter().filter(|(name, _)| *name != CHECKSUM) {
            for bytes in [name.as_bytes(), value] {
                hasher.update(&(bytes.len() as u64).to_be_bytes());
                hasher.update(bytes);
            }
        }
        hasher.finalize().to_be_bytes()
    }

    pub(super) fn check(&self, keyspace: &str, range: &KeyRange) -> Result<(), Trouble> {
        let format = self.get("format").and_then(|bytes| bytes.try_into().ok());
        match format.map(u64::from_be_bytes) {
            Some(newer) if newer > FORMAT => {
                return Err(Trouble::Refused(format!(
                    "is of format {newer}, and this version knows {FORMAT}"
                )));
            }
            Some(FORMAT) if self.get(CHECKSUM) == Some(&self.checksum()) => {}
            Some(older) if older < FORMAT => {
                let what = format!("it is of format {older}, which had no checksums");
                return Err(Trouble::Damaged(what));
            }
            _ => {
                let what = format!("the facts of {FILE} are not those that were saved");
                return Err(Trouble::Damaged(what));
            }
        }
        let saved = String::from_utf8_lossy(self.get("keyspace").unwrap_or_default());
        if saved != keyspace {
            return Err(Trouble::Refused(format!(
                "is a copy of keyspace {saved:?}, and {keyspace:?} was asked for; give another folder"
            )));
        }
        let saved = KeyRange {
            start: Key::copy_from_slice(self.get("start").unwrap_or_default()),
            end: self.get("end").map(Key::copy_from_slice),
        };
        if saved != *range {
            return Err(Trouble::Refused(format!(
                "is a copy of the range {saved:?}, and {range:?} was asked for; give another folder"
            )));
        }
        Ok(())
    }

    pub(super) fn position(&self) -> Result<Option<Position>, Trouble> {
        let Some(bytes) = self.get(POSITION) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(bytes);
        let position = text.parse();
        position.map(Some).map_err(|error: StorageError| {
            Trouble::Damaged(format!("its position is damaged: {error}"))
        })
    }
}
