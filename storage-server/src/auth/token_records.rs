//! The records of the tokens that were minted, and how much of them each principal has.

use std::collections::HashMap;
use std::sync::Arc;

use super::system::TokenRecord;

/// How many tokens, and how long their records are together, in bytes as they are stored. In memory they take about twice
/// that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenUsage {
    pub(crate) tokens: usize,
    pub(crate) bytes: usize,
}

impl TokenUsage {
    fn add(&mut self, bytes: usize) {
        self.tokens += 1;
        self.bytes += bytes;
    }

    fn take(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// See the module. Invariant: what is counted of a principal is what its records are.
#[derive(Debug, Default)]
pub(super) struct TokenRecords {
    by_id: HashMap<String, Kept>,
    by_principal: HashMap<String, TokenUsage>,
    all: TokenUsage,
}

#[derive(Debug)]
struct Kept {
    record: Arc<TokenRecord>,
    bytes: usize,
}

impl TokenRecords {
    pub(super) fn get(&self, id: &str) -> Option<&Arc<TokenRecord>> {
        self.by_id.get(id).map(|kept| &kept.record)
    }

    /// All, by their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Arc<TokenRecord>)> {
        self.by_id.iter().map(|(id, kept)| (id, &kept.record))
    }

    pub(super) fn of(&self, principal: &str) -> TokenUsage {
        self.by_principal
            .get(principal)
            .copied()
            .unwrap_or_default()
    }

    pub(super) fn all(&self) -> TokenUsage {
        self.all
    }

    /// Takes the record of a token; `None`: it is gone. One that cannot be read is good for nothing.
    pub(super) fn set(&mut self, id: &str, json: Option<&[u8]>) {
        if let Some(Kept { record, bytes }) = self.by_id.remove(id) {
            self.all.take(bytes);
            if let Some(own) = self.by_principal.get_mut(&record.principal) {
                own.take(bytes);
                if own.tokens == 0 {
                    self.by_principal.remove(&record.principal);
                }
            }
        }
        let read = |json: &[u8]| serde_json::from_slice::<TokenRecord>(json).ok();
        let Some((record, bytes)) = json.and_then(|json| Some((read(json)?, json.len()))) else {
            return;
        };
        self.all.add(bytes);
        let own = self.by_principal.entry(record.principal.clone());
        own.or_default().add(bytes);
        let record = Arc::new(record);
        self.by_id.insert(id.to_owned(), Kept { record, bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(principal: &str, name: &str) -> String {
        format!(r#"{{"principal":"{principal}","name":"{name}","issued":1,"expires":2}}"#)
    }

    #[test]
    fn what_a_principal_has_is_counted_as_records_come_change_and_go() {
        let mut records = TokenRecords::default();
        let usage = |tokens, bytes| TokenUsage { tokens, bytes };
        let (one, longer, other) = (
            json("cert:a", "x"),
            json("cert:a", "longer"),
            json("user:b", ""),
        );
        records.set("1", Some(one.as_bytes()));
        records.set("2", Some(longer.as_bytes()));
        records.set("3", Some(other.as_bytes()));
        assert_eq!(records.of("cert:a"), usage(2, one.len() + longer.len()));
        assert_eq!(records.of("user:b"), usage(1, other.len()));
        // Put anew, by somebody else, unreadable, gone, and gone before.
        records.set("1", Some(longer.as_bytes()));
        assert_eq!(records.of("cert:a"), usage(2, 2 * longer.len()));
        records.set("1", Some(other.as_bytes()));
        records.set("2", Some(b"{}"));
        records.set("3", None);
        records.set("4", None);
        assert_eq!(records.of("cert:a"), TokenUsage::default());
        assert_eq!(records.of("user:b"), usage(1, other.len()));
        assert_eq!(records.all(), usage(1, other.len()));
        assert!(records.get("1").is_some() && records.get("2").is_none());
        assert_eq!(records.iter().count(), 1);
        assert_eq!(records.by_principal.len(), 1, "who has none takes no room");
    }
}
