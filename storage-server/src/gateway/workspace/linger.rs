//! Places for those whose socket is closed and who stay in rooms for a while, in case their client comes back: each holds a
//! session of the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::gateway::Principal;

/// The most places.
const PLACES_MAX: usize = 10_000;
/// The most of one principal: nobody who opens and closes sockets takes those of all others.
const PLACES_OF_ONE_MAX: usize = 100;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Lingering(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    taken: usize,
    of: HashMap<String, usize>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    lingering: Lingering,
    principal: String,
}

impl Lingering {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place; `None`: there are too many, so it leaves at once.
    pub(super) fn place(&self, principal: &Principal) -> Option<Place> {
        let name = principal.as_str();
        let mut places = self.places();
        let of_it = places.of.get(name).copied().unwrap_or(0);
        if places.taken >= PLACES_MAX || of_it >= PLACES_OF_ONE_MAX {
            return None;
        }
        places.taken += 1;
        places.of.insert(name.to_owned(), of_it + 1);
        Some(Place {
            lingering: self.clone(),
            principal: name.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.lingering.places();
        places.taken -= 1;
        if let Some(of_it) = places.of.get_mut(&self.principal) {
            *of_it -= 1;
            if *of_it == 0 {
                places.of.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_all_and_what_is_given_back_is_free() {
        let lingering = Lingering::default();
        let user = |n: usize| Principal::user(&format!("u{n}")).unwrap();
        let mut of_one: Vec<Place> = (0..PLACES_OF_ONE_MAX)
            .map(|_| lingering.place(&user(0)).unwrap())
            .collect();
        assert!(lingering.place(&user(0)).is_none());
        assert!(lingering.place(&user(1)).is_some());
        of_one.pop();
        of_one.push(lingering.place(&user(0)).unwrap());
        drop(of_one);
        let places = lingering.places();
        assert_eq!((places.taken, places.of.len()), (0, 0));
    }
}
