//! The last frames, so that an event is put together once and not for each of its thousand listeners.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use storage_protocol::{Key, Revision};

use crate::gateway::Utf8Bytes;

/// How many are kept.
const FRAMES_MAX: usize = 32;
/// A longer one is put together for each.
const FRAME_BYTES_MAX: usize = 128 << 10;

/// See the module. Takes 4 MiB at most.
#[derive(Debug, Default)]
pub(super) struct Frames(Mutex<VecDeque<(Revision, Key, Utf8Bytes)>>);

impl Frames {
    /// The frame for the change of a key in a commit.
    pub(super) fn of(
        &self,
        revision: Revision,
        key: &Key,
        make: impl FnOnce() -> String,
    ) -> Utf8Bytes {
        let known = self.with(|frames| {
            let mut newest = frames.iter().rev();
            let is_it = |(at, of, _): &&(Revision, Key, Utf8Bytes)| *at == revision && of == key;
            newest.find(is_it).map(|(_, _, frame)| frame.clone())
        });
        if let Some(frame) = known {
            return frame;
        }
        let frame = Utf8Bytes::from(make());
        if frame.len() <= FRAME_BYTES_MAX {
            // The key may be a part of a larger message.
            let (key, frame) = (Key::copy_from_slice(key), frame.clone());
            self.with(|frames| {
                if frames.len() >= FRAMES_MAX {
                    frames.pop_front();
                }
                frames.push_back((revision, key, frame));
            });
        }
        frame
    }

    fn with<T>(&self, work: impl FnOnce(&mut VecDeque<(Revision, Key, Utf8Bytes)>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_put_together_once_and_the_oldest_are_forgotten() {
        let frames = Frames::default();
        let mut made = 0;
        for _ in 0..3 {
            let frame = frames.of(Revision(1), &Key::from("a/b"), || {
                made += 1;
                "frame".to_owned()
            });
            assert_eq!(frame.as_str(), "frame");
        }
        assert_eq!(made, 1);
        let other = frames.of(Revision(1), &Key::from("a/c"), || "other".to_owned());
        assert_eq!(other.as_str(), "other");
        for n in 2..100 {
            frames.of(Revision(n), &Key::from("a/b"), || "next".to_owned());
        }
        let again = frames.of(Revision(1), &Key::from("a/b"), || "again".to_owned());
        assert_eq!(again.as_str(), "again");
        assert_eq!(frames.with(|frames| frames.len()), FRAMES_MAX);
    }
}
