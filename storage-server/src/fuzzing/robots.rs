//! Frames of robots: an input is a text message.

use crate::gateway::robots::frame::{
    Dialect, Event, FRAME_BYTES_MAX, NAME_BYTES_MAX, Package, parse_frame,
};

/// Whatever a robot says is a frame or an error, in time in proportion to it; what is taken of it is within its bounds, and what
/// it is answered is JSON where it reads that.
///
/// # Panics
/// If a promise does not hold.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let frame = match parse_frame(&text) {
        Ok(frame) => frame,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(text.len() <= FRAME_BYTES_MAX);
    let short = |text: &str| assert!(!text.is_empty() && text.len() <= NAME_BYTES_MAX);
    let name = match frame.event {
        Event::Metadata(Ok(metadata)) => {
            short(&metadata.name);
            short(&metadata.address);
            metadata.name
        }
        Event::Metadata(Err(bad)) => {
            assert!(!bad.why.is_empty());
            bad.address.iter().for_each(|address| short(address));
            bad.why
        }
        Event::Message(content) => {
            serde_json::from_str::<serde_json::Value>(&content).expect("what is logged is JSON");
            content
        }
        Event::Decline(name) => name.unwrap_or_default(),
        Event::Other(name) => name,
    };
    // Whatever a package is called, its notification is read as what it is.
    let package = Package {
        package_name: name,
        path: text.into_owned(),
    };
    for dialect in [Dialect::Plain, Dialect::Underscore] {
        let sent = dialect.notification(&package);
        let value: serde_json::Value = serde_json::from_str(&sent).expect("it is JSON");
        let read = match dialect {
            Dialect::Plain => serde_json::from_value(value["value"].clone()),
            Dialect::Underscore => {
                serde_json::from_str(value["value"].as_str().expect("it is a text"))
            }
        };
        assert_eq!(read.ok(), Some(package.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::tests::seeds;

    #[test]
    fn the_seeds_hold_what_is_promised_and_are_what_their_names_say() {
        for (name, seed) in seeds("robots_frame") {
            check(&seed);
            let text = String::from_utf8(seed).unwrap();
            assert_eq!(
                parse_frame(&text).is_err(),
                name.starts_with("bad"),
                "{name}"
            );
        }
    }
}
