//! The sessions by id, and the lost ones by time and by principal. All of it is behind the one lock of
//! [`Sessions`](super::Sessions).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use storage_protocol::{SessionId, UnixMillis};

use super::state::SessionState;

#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Each session with a handle, with work in the queue, or with a row.
    pub(super) states: HashMap<SessionId, Weak<SessionState>>,
    /// With so many states, those of sessions that are gone are swept out.
    sweep_at: usize,
    /// The sessions with a row and without a socket, longest lost first.
    pub(super) lost: BTreeMap<(UnixMillis, SessionId), Arc<SessionState>>,
    /// Those of `lost` that may have keys.
    pub(super) with_keys: BTreeSet<(UnixMillis, SessionId)>,
    /// Sessions whose keys are being removed, also if they were resumed since; each with the time at which its socket
    /// was lost.
    pub(super) expiring: BTreeMap<SessionId, (UnixMillis, Arc<SessionState>)>,
    /// The sessions in `lost` by principal, and the principals by how many they have.
    lost_of: HashMap<Arc<str>, BTreeSet<(UnixMillis, SessionId)>>,
    principals: BTreeSet<(usize, Arc<str>)>,
    pub(super) ended: HashSet<SessionId>,
    pub(super) ended_order: VecDeque<SessionId>,
}

impl Registry {
    pub(super) fn insert(&mut self, state: &Arc<SessionState>) {
        if self.states.len() >= self.sweep_at {
            self.states.retain(|_, state| state.strong_count() > 0);
            self.sweep_at = 2 * self.states.len() + 1024;
        }
        self.states.insert(state.id, Arc::downgrade(state));
    }

    pub(super) fn lose(&mut self, state: &Arc<SessionState>, now: UnixMillis) {
        state.lost.store(now.0, Ordering::Release);
        self.lost.insert((now, state.id), state.clone());
        self.with_keys.insert((now, state.id));
        self.change_lost_of(&state.principal, |lost| {
            lost.insert((now, state.id));
        });
    }

    pub(super) fn unlose(&mut self, state: &SessionState) {
        let since = UnixMillis(state.lost.swap(0, Ordering::AcqRel));
        let at = (since, state.id);
        if self.lost.remove(&at).is_none() {
            return;
        }
        self.with_keys.remove(&at);
        self.change_lost_of(&state.principal, |lost| {
            lost.remove(&at);
        });
    }

    fn change_lost_of(
        &mut self,
        principal: &Arc<str>,
        change: impl FnOnce(&mut BTreeSet<(UnixMillis, SessionId)>),
    ) {
        let lost = self.lost_of.entry(principal.clone()).or_default();
        let before = lost.len();
        change(lost);
        let after = lost.len();
        if after == 0 {
            self.lost_of.remove(principal);
        }
        self.principals.remove(&(before, principal.clone()));
        if after > 0 {
            self.principals.insert((after, principal.clone()));
        }
    }

    /// Picks `surplus` sessions to forget, at most `max`: repeatedly the longest lost of the principal with the most.
    /// It stops at one that was lost after `before`, even if other principals have older ones: no principal loses
    /// sessions because another one has too many.
    pub(super) fn surplus(
        &self,
        surplus: usize,
        before: UnixMillis,
        max: usize,
    ) -> Vec<(UnixMillis, Arc<SessionState>)> {
        // Each step takes one session, so no more principals than steps are needed.
        let steps = surplus.min(max);
        let most = self.principals.iter().rev().take(steps);
        let mut line: BTreeMap<_, _> = most
            .filter_map(|(count, principal)| {
                let lost = self.lost_of.get(principal)?.iter();
                Some(((*count, principal), lost))
            })
            .collect();
        let mut found = Vec::new();
        while found.len() < steps
            && let Some(((count, principal), mut lost)) = line.pop_last()
            && let Some(at) = lost.next()
            && at.0 <= before
        {
            found.extend(self.lost.get(at).map(|state| (at.0, state.clone())));
            line.insert((count - 1, principal), lost);
        }
        found
    }
}
