//! A zip file as it is written piece by piece, for a peer that takes it as slowly as it likes.
//!
//! Data is not compressed, since that would take a thread's time for each byte: it is in stored blocks of deflate, which
//! every reader of zip takes from a stream, with a checksum behind the data. In memory is one record for each file, of
//! which there are at most [`FILES_MAX`], with names of at most [`NAMES_BYTES_MAX`] in all. Files of 4 GiB and more, and zip files of that length, are as zip64 has them.

use bytes::{BufMut, Bytes, BytesMut};
use crc32fast::Hasher;

/// The most files of a zip file.
pub(super) const FILES_MAX: usize = 100_000;
/// The most bytes of their names, which the directory at the end has.
pub(super) const NAMES_BYTES_MAX: usize = 16 << 20;
/// With no more than this, and so many files, the directory of a zip is a small one: it takes no place of those that are few.
pub(super) const SMALL_NAMES_BYTES_MAX: usize = 256 << 10;
pub(super) const SMALL_FILES_MAX: usize = 4_000;

/// The longest stored block of deflate.
const BLOCK_BYTES_MAX: usize = 0xffff;
/// Larger numbers are in zip64's fields.
const FIELD_MAX: u64 = 0xffff_ffff;
/// Deflate.
const METHOD: u16 = 8;
/// The checksum is behind the data; names are UTF-8.
const FLAGS: u16 = 0x0808;
/// The first of January 1980: it is not kept when a file came.
const TIME_AND_DATE: u32 = 0x0021_0000;
const VERSION: u16 = 20;
const VERSION_ZIP64: u16 = 45;

/// What the directory at the end says of a file.
#[derive(Debug)]
struct Entry {
    name: String,
    start: u64,
    checksum: u32,
    size: u64,
    packed: u64,
    /// Its sizes have 8 bytes behind the data.
    is_long: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Zip {
    written: u64,
    entries: Vec<Entry>,
    names_bytes: usize,
    /// Its directory stays a small one.
    is_small: bool,
    checksum: Hasher,
}

impl Zip {
    /// Whether a file of this name may come.
    pub(super) fn has_room(&self, name: &str) -> bool {
        let (files_max, bytes_max) = match self.is_small {
            true => (SMALL_FILES_MAX, SMALL_NAMES_BYTES_MAX),
            false => (FILES_MAX, NAMES_BYTES_MAX),
        };
        self.entries.len() < files_max && self.names_bytes + name.len() <= bytes_max
    }

    /// One whose directory stays small.
    pub(super) fn small() -> Self {
        Self {
            is_small: true,
            ..Self::default()
        }
    }

    fn count(&mut self, out: BytesMut) -> Bytes {
        self.written += out.len() as u64;
        out.freeze()
    }

    /// The head of the next file, of about this size.
    pub(super) fn begin_file(&mut self, name: &str, size: u64) -> Bytes {
        let blocks = size.div_ceil(BLOCK_BYTES_MAX as u64) + 1;
        let is_long = size + 5 * blocks >= FIELD_MAX;
        let version = if is_long { VERSION_ZIP64 } else { VERSION };
        let mut out = BytesMut::new();
        out.put_u32_le(0x0403_4b50);
        out.put_u16_le(version);
        put_common(&mut out, 0);
        let sizes: u32 = if is_long { u32::MAX } else { 0 };
        out.put_u32_le(sizes);
        out.put_u32_le(sizes);
        put_length(&mut out, name.len());
        put_length(&mut out, if is_long { 20 } else { 0 });
        out.put_slice(name.as_bytes());
        if is_long {
            out.put_u16_le(1);
            out.put_u16_le(16);
            out.put_u64_le(0);
            out.put_u64_le(0);
        }
        self.checksum = Hasher::new();
        self.names_bytes += name.len();
        self.entries.push(Entry {
            name: name.to_owned(),
            start: self.written,
            checksum: 0,
            size: 0,
            packed: 0,
            is_long,
        });
        self.count(out)
    }

    /// More of the file.
    pub(super) fn data(&mut self, chunk: &[u8]) -> Bytes {
        self.checksum.update(chunk);
        let mut out =
            BytesMut::with_capacity(chunk.len() + 5 * (chunk.len() / BLOCK_BYTES_MAX + 1));
        for block in chunk.chunks(BLOCK_BYTES_MAX) {
            put_block(&mut out, block, false);
        }
        if let Some(entry) = self.entries.last_mut() {
            entry.size += chunk.len() as u64;
            entry.packed += out.len() as u64;
        }
        self.count(out)
    }

    /// The end of the file.
    pub(super) fn end_file(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        put_block(&mut out, &[], true);
        let checksum = self.checksum.clone().finalize();
        if let Some(entry) = self.entries.last_mut() {
            entry.packed += out.len() as u64;
            entry.checksum = checksum;
            out.put_u32_le(0x0807_4b50);
            out.put_u32_le(checksum);
            for size in [entry.packed, entry.size] {
                match entry.is_long {
                    true => out.put_u64_le(size),
                    false => out.put_u32_le(field(size)),
                }
            }
        }
        self.count(out)
    }

    /// The directory, which is the end.
    pub(super) fn finish(&mut self) -> Bytes {
        let start = self.written;
        let mut out = BytesMut::new();
        for entry in &self.entries {
            put_entry(&mut out, entry);
        }
        let length = out.len() as u64;
        let count = self.entries.len() as u64;
        if start + length >= FIELD_MAX || count >= 0xffff {
            put_long_end(&mut out, count, start, length);
        }
        out.put_u32_le(0x0605_4b50);
        out.put_u32_le(0);
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        out.put_u16_le(count);
        out.put_u16_le(count);
        out.put_u32_le(field(length));
        out.put_u32_le(field(start));
        out.put_u16_le(0);
        self.count(out)
    }
}

/// A number as the short fields have it.
fn field(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn put_length(out: &mut BytesMut, bytes: usize) {
    out.put_u16_le(u16::try_from(bytes).unwrap_or(u16::MAX));
}

/// Flags to checksum, which head and directory have alike.
fn put_common(out: &mut BytesMut, checksum: u32) {
    out.put_u16_le(FLAGS);
    out.put_u16_le(METHOD);
    out.put_u32_le(TIME_AND_DATE);
    out.put_u32_le(checksum);
}

/// A stored block: a byte that says so, its length twice, its data.
fn put_block(out: &mut BytesMut, block: &[u8], is_last: bool) {
    let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
    out.put_u8(u8::from(is_last));
    out.put_u16_le(length);
    out.put_u16_le(!length);
    out.put_slice(block);
}

fn put_entry(out: &mut BytesMut, entry: &Entry) {
    // In this order, and only those that the short fields cannot have.
    let is_over = |number: u64| number >= FIELD_MAX;
    let long: Vec<u64> = [entry.size, entry.packed, entry.start]
        .into_iter()
        .filter(|number| is_over(*number))
        .collect();
    let version = match entry.is_long || !long.is_empty() {
        true => VERSION_ZIP64,
        false => VERSION,
    };
    out.put_u32_le(0x0201_4b50);
    out.put_u16_le(version);
    out.put_u16_le(version);
    put_common(out, entry.checksum);
    out.put_u32_le(field(entry.packed));
    out.put_u32_le(field(entry.size));
    put_length(out, entry.name.len());
    let extra = if long.is_empty() {
        0
    } else {
        4 + 8 * long.len()
    };
    put_length(out, extra);
    // No comment, first disk, no attributes.
    out.put_bytes(0, 10);
    out.put_u32_le(field(entry.start));
    out.put_slice(entry.name.as_bytes());
    if !long.is_empty() {
        out.put_u16_le(1);
        put_length(out, 8 * long.len());
        for number in long {
            out.put_u64_le(number);
        }
    }
}

fn put_long_end(out: &mut BytesMut, count: u64, start: u64, length: u64) {
    out.put_u32_le(0x0606_4b50);
    out.put_u64_le(44);
    out.put_u16_le(VERSION_ZIP64);
    out.put_u16_le(VERSION_ZIP64);
    out.put_u64_le(0);
    out.put_u64_le(count);
    out.put_u64_le(count);
    out.put_u64_le(length);
    out.put_u64_le(start);
    out.put_u32_le(0x0706_4b50);
    out.put_u32_le(0);
    out.put_u64_le(start + length);
    out.put_u32_le(1);
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor, Read, Seek, SeekFrom};

    use ::zip::ZipArchive;

    use super::*;

    /// A zip file with holes: pieces at their places, and zeros between them.
    #[derive(Debug, Default)]
    struct Holey {
        pieces: Vec<(u64, Bytes)>,
        length: u64,
        at: u64,
    }

    impl Holey {
        fn push(&mut self, piece: Bytes) {
            let start = self.length;
            self.length += piece.len() as u64;
            self.pieces.push((start, piece));
        }
    }

    impl Read for Holey {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
            let count = buffer.len().min(left);
            let buffer = &mut buffer[..count];
            buffer.fill(0);
            for (start, piece) in &self.pieces {
                let end = start + piece.len() as u64;
                let (from, to) = (self.at.max(*start), (self.at + count as u64).min(end));
                if from < to {
                    let of = |place: u64, base: u64| usize::try_from(place - base).unwrap();
                    buffer[of(from, self.at)..of(to, self.at)]
                        .copy_from_slice(&piece[of(from, *start)..of(to, *start)]);
                }
            }
            self.at += count as u64;
            Ok(count)
        }
    }

    impl Seek for Holey {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            let place = match to {
                SeekFrom::Start(place) => Some(place),
                SeekFrom::End(offset) => self.length.checked_add_signed(offset),
                SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
            };
            let place = place.filter(|place| *place <= self.length);
            self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
            Ok(self.at)
        }
    }

    /// A folder with a file of over 4 GiB, and others before and behind it: they lie where only zip64 reaches.
    #[test]
    fn a_reader_finds_files_behind_one_of_over_4_gib() {
        const LARGE: u64 = 5 << 30;
        let (mut zip, mut all) = (Zip::default(), Holey::default());
        let small = |zip: &mut Zip, all: &mut Holey, name: &str| {
            all.push(zip.begin_file(name, 3));
            all.push(zip.data(name.as_bytes()));
            all.push(zip.end_file());
        };
        small(&mut zip, &mut all, "p/before");
        all.push(zip.begin_file("p/large", LARGE));
        // As if its data had been written.
        let packed = LARGE + 5 * LARGE.div_ceil(BLOCK_BYTES_MAX as u64);
        let entry = zip.entries.last_mut().unwrap();
        (entry.size, entry.packed) = (LARGE, packed);
        zip.written += packed;
        all.length += packed;
        all.push(zip.end_file());
        small(&mut zip, &mut all, "p/behind");
        all.push(zip.finish());
        assert_eq!(zip.written, all.length);
        let mut archive = ZipArchive::new(all).unwrap();
        let names: Vec<_> = archive
            .file_names()
            .map(|name| name.unwrap().into_owned())
            .collect();
        assert_eq!(names, ["p/before", "p/large", "p/behind"]);
        for name in ["p/before", "p/behind"] {
            let mut read = String::new();
            let mut file = archive.by_name(name).unwrap();
            file.read_to_string(&mut read).unwrap();
            assert_eq!(read, name);
        }
        let large = archive.by_name("p/large").unwrap();
        // With the block that ends it.
        assert_eq!((large.size(), large.compressed_size()), (LARGE, packed + 5));
    }

    #[test]
    fn a_reader_finds_all_of_the_most_files() {
        let (mut zip, mut all) = (Zip::default(), Vec::new());
        let mut count = 0;
        while zip.has_room("") {
            all.extend(zip.begin_file(&format!("p/{count}"), 1));
            all.extend(zip.data(b"x"));
            all.extend(zip.end_file());
            count += 1;
        }
        all.extend(zip.finish());
        assert_eq!(count, FILES_MAX);
        let mut archive = ZipArchive::new(Cursor::new(all)).unwrap();
        assert_eq!(archive.len(), FILES_MAX);
        for place in [0, 0xfffe, 0xffff, 0x1_0000, FILES_MAX - 1] {
            let mut file = archive.by_index(place).unwrap();
            assert_eq!(file.name().unwrap(), format!("p/{place}"));
            let mut read = String::new();
            file.read_to_string(&mut read).unwrap();
            assert_eq!(read, "x");
        }
    }

    #[test]
    fn a_small_one_is_what_the_format_says() {
        let mut zip = Zip::default();
        let mut all = zip.begin_file("p/a", 3).to_vec();
        all.extend(zip.data(b"abc"));
        all.extend(zip.end_file());
        let directory = all.len();
        all.extend(zip.finish());
        assert_eq!(&all[..4], b"PK\x03\x04");
        assert_eq!(&all[30..33], b"p/a");
        assert_eq!(&all[33..46], b"\0\x03\0\xfc\xffabc\x01\0\0\xff\xff");
        assert_eq!(&all[46..50], b"PK\x07\x08");
        // The checksum of "abc", and its sizes.
        assert_eq!(&all[50..62], b"\xc2\x41\x24\x35\x0d\0\0\0\x03\0\0\0");
        assert_eq!(&all[directory..directory + 4], b"PK\x01\x02");
        let end = all.len() - 22;
        assert_eq!(&all[end..end + 4], b"PK\x05\x06");
        assert_eq!(all[end + 16], u8::try_from(directory).unwrap());
    }

    #[test]
    fn the_names_of_all_files_are_bounded() {
        let mut zip = Zip::default();
        let name = "n".repeat(NAMES_BYTES_MAX / 4);
        for _ in 0..4 {
            assert!(zip.has_room(&name));
            zip.begin_file(&name, 0);
            zip.end_file();
        }
        assert!(!zip.has_room("n") && zip.has_room(""));
    }

    #[test]
    fn what_is_long_is_in_fields_of_eight_bytes() {
        let mut zip = Zip {
            written: 5 << 30,
            ..Zip::default()
        };
        let head = zip.begin_file("a", 5 << 30);
        assert_eq!(&head[18..26], [0xff; 8]);
        assert_eq!(head.len(), 30 + 1 + 20);
        let end = zip.end_file();
        assert_eq!(end.len(), 5 + 8 + 16);
        let directory = zip.finish();
        assert!(directory.windows(4).any(|window| window == b"PK\x06\x06"));
        assert!(directory.windows(4).any(|window| window == b"PK\x06\x07"));
    }
}
