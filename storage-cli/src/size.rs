//! Sizes in bytes as people write them: `4096`, `64KiB`, `10 GiB`.

/// The units, and how many bytes each has.
const UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads a size, for clap.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let unit = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, bytes)) => Some(*bytes),
        None => unit.is_empty().then_some(1),
    };
    let number: Option<u64> = digits.trim().parse().ok();
    let size = number.zip(unit);
    size.and_then(|(number, unit)| number.checked_mul(unit))
        .ok_or_else(|| {
            format!("{text:?} is no size; allowed are whole numbers, with B, KiB, MiB, GiB or TiB")
        })
}

/// A size as people read it: in the largest unit of which it is a whole number.
pub(crate) fn shown(bytes: u64) -> String {
    let whole = |(_, unit): &&(&str, u64)| bytes != 0 && bytes.is_multiple_of(*unit);
    match UNITS.iter().rev().find(whole) {
        Some((name, unit)) if *unit > 1 => format!("{}{name}", bytes / unit),
        _ => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024_or_none() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("64KiB", 64 << 10),
            ("10 GiB", 10 << 30),
            (" 3TiB ", 3 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "GiB",
            "10GB",
            "10G",
            "1.5GiB",
            "-1",
            "10 gib",
            "ä",
            "99999999TiB",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains("is no size"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_size_is_shown_as_it_can_be_written() {
        for (bytes, text) in [
            (0, "0"),
            (7, "7"),
            (1500, "1500"),
            (10 << 30, "10GiB"),
            (1536, "1536"),
            (3 << 20, "3MiB"),
        ] {
            assert_eq!(shown(bytes), text);
            assert_eq!(parse(text), Ok(bytes));
        }
    }
}
