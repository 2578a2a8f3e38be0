//! What is measured: cells, their names, and the other measurements.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, bail};

/// Operations of one multi-get or commit.
pub(crate) const TOGETHER: usize = 64;

/// Entries of one scan.
pub(crate) const SCANNED: usize = 1_000;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    /// One key.
    Get,
    /// One key.
    Put,
    /// 95 gets for 5 puts, of keys that are asked for by a zipf distribution (0.99).
    Mix,
    /// [`TOGETHER`] keys.
    MultiGet,
    /// [`TOGETHER`] puts, all or none.
    Commit,
    /// [`SCANNED`] entries.
    Scan,
    /// A put if the key is as it was.
    CompareAndSet,
}

impl Work {
    pub(crate) const ALL: [Self; 7] = [
        Self::Get,
        Self::Put,
        Self::Mix,
        Self::MultiGet,
        Self::Commit,
        Self::Scan,
        Self::CompareAndSet,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Mix => "mix",
            Self::MultiGet => "multi-get",
            Self::Commit => "commit",
            Self::Scan => "scan",
            Self::CompareAndSet => "cas",
        }
    }
}

/// A load on one system: so many connections, each with so many requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cell {
    pub(crate) work: Work,
    pub(crate) value: usize,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            work,
            value,
            connections,
            in_flight,
        } = self;
        let (work, size) = (work.name(), Size(*value));
        write!(f, "{work} {size} c{connections} i{in_flight}")
    }
}

impl FromStr for Cell {
    type Err = Error;

    /// As it is displayed.
    fn from_str(text: &str) -> Result<Self, Error> {
        let usage = "a cell is such as \"get 1KiB c8 i16\"";
        let words: Vec<_> = text.split_whitespace().collect();
        let [work, value, connections, in_flight] = words.as_slice() else {
            bail!("{text:?}: {usage}");
        };
        let known = Work::ALL.into_iter().find(|known| known.name() == *work);
        let count = |word: &str, letter: char| -> Result<usize, Error> {
            let count: usize = word
                .strip_prefix(letter)
                .and_then(|count| count.parse().ok())
                .filter(|count| *count > 0)
                .with_context(|| format!("{text:?}: {usage}"))?;
            Ok(count)
        };
        Ok(Self {
            work: known.with_context(|| format!("{text:?}: {usage}"))?,
            value: value.parse::<Size>()?.0,
            connections: count(connections, 'c')?,
            in_flight: count(in_flight, 'i')?,
        })
    }
}

impl Cell {
    /// So many keys there are of values of this size: 100,000, but fewer of large ones.
    pub(crate) fn keys(value: usize) -> u64 {
        match value {
            0..=4096 => 100_000,
            4097..=65_536 => 10_000,
            _ => 200,
        }
    }
}

/// Bytes, as names of cells have them: `100B`, `16KiB`, `1MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: usize = 1 << 10;
        const MIB: usize = 1 << 20;
        match self.0 {
            bytes if bytes >= MIB && bytes % MIB == 0 => write!(f, "{}MiB", bytes / MIB),
            bytes if bytes >= KIB && bytes % KIB == 0 => write!(f, "{}KiB", bytes / KIB),
            bytes => write!(f, "{bytes}B"),
        }
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("B", 1)];
        for (unit, factor) in units {
            if let Some(count) = text.strip_suffix(unit) {
                let count: usize = count
                    .parse()
                    .with_context(|| format!("{text:?} is no size"))?;
                return Ok(Self(count * factor));
            }
        }
        bail!("{text:?} is no size such as 100B, 1KiB or 1MiB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_read_as_it_is_displayed() {
        for name in [
            "get 1KiB c8 i16",
            "put 100B c1 i128",
            "mix 16KiB c1000 i1",
            "multi-get 1MiB c64 i4",
            "cas 1500B c8 i16",
        ] {
            assert_eq!(name.parse::<Cell>().unwrap().to_string(), name);
        }
        for bad in [
            "get",
            "get 1KB c1 i1",
            "got 1KiB c1 i1",
            "get 1KiB c0 i1",
            "get 1KiB i1 c1",
        ] {
            assert!(bad.parse::<Cell>().is_err(), "{bad}");
        }
    }
}
