//! Revocation lists that are in use: while the server runs none goes, and none is replaced by an older one.
//!
//! Either would let everybody in again who was revoked since, and is more often a file that was lost or put back than
//! somebody's wish. A start takes what is there.

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::auth::text::{date, escaped};

/// The longest name of an authority that is told, in characters.
const NAME_CHARS_MAX: usize = 200;

/// See the module. Of each authority that has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListsInUse(Vec<InUse>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct InUse {
    authority: Authority,
    issue: Issue,
}

/// By name and key: two may have the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    subject: Vec<u8>,
    key: Vec<u8>,
    /// As it is told.
    shown: String,
}

/// Which of the lists of an authority one is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Issue {
    /// Big-endian, without zeros before it; an authority need not give any.
    number: Option<Vec<u8>>,
    /// Seconds since 1970.
    at: u64,
}

/// Why lists do not take the place of those in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is none of this authority, though it is still trusted.
    Gone { authority: String },
    /// There is an older one of this authority.
    Older { authority: String, what: String },
}

impl Issue {
    fn of(list: &CertificateRevocationList<'_>) -> Self {
        let number = list.crl_number().map(|number| number.to_bytes_be());
        Self {
            number,
            // A time before 1970 counts as 1970.
            at: u64::try_from(list.last_update().timestamp()).unwrap_or(0),
        }
    }

    /// What tells that it is older than another one, in words; `None`: it is not.
    fn older_than(&self, other: &Self) -> Option<String> {
        match (&self.number, &other.number) {
            (Some(own), Some(others)) => {
                // Without zeros before them the longer one is the higher one.
                let is_lower = (own.len(), own) < (others.len(), others);
                let shown = |number: &[u8]| format!("0x{}", hex::encode(number));
                is_lower.then(|| format!("number {} behind {}", shown(own), shown(others)))
            }
            _ => (self.at < other.at)
                .then(|| format!("of {}, behind {}", date(self.at), date(other.at))),
        }
    }
}

impl ListsInUse {
    /// The lists of these authorities. Of two lists of one authority the first is the one that is asked.
    pub(crate) fn of(
        authorities: &[CertificateDer<'_>],
        lists: &[CertificateRevocationListDer<'_>],
    ) -> Self {
        let parsed = authorities
            .iter()
            .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1));
        let authorities: Vec<_> = parsed.collect();
        let mut found: Vec<InUse> = Vec::new();
        for der in lists {
            let Ok((_, list)) = CertificateRevocationList::from_der(der) else {
                continue;
            };
            let by = authorities
                .iter()
                .find(|authority| has_signed(authority, &list));
            let Some(authority) = by.map(Authority::of) else {
                continue;
            };
            if found.iter().all(|known| known.authority != authority) {
                let issue = Issue::of(&list);
                found.push(InUse { authority, issue });
            }
        }
        Self(found)
    }

    /// Whether these may take the place of those in use, where these authorities are trusted from then on: one that is not
    /// trusted any more needs no list.
    pub(crate) fn check_next(
        &self,
        next: &Self,
        authorities: &[CertificateDer<'_>],
    ) -> Result<(), Step> {
        let trusted: Vec<_> = authorities
            .iter()
            .filter_map(|der| Some(Authority::of(&X509Certificate::from_der(der).ok()?.1)))
            .collect();
        for InUse { authority, issue } in &self.0 {
            if !trusted.contains(authority) {
                continue;
            }
            let shown = || authority.shown.clone();
            let Some(list) = next.0.iter().find(|list| list.authority == *authority) else {
                return Err(Step::Gone { authority: shown() });
            };
            if let Some(what) = list.issue.older_than(issue) {
                return Err(Step::Older {
                    authority: shown(),
                    what,
                });
            }
        }
        Ok(())
    }
}

impl Authority {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        Self {
            subject: certificate.subject().as_raw().to_vec(),
            key: certificate.public_key().raw.to_vec(),
            shown: escaped(&certificate.subject().to_string(), NAME_CHARS_MAX),
        }
    }
}

/// By name and by signature: two authorities may have the same name.
pub(super) fn has_signed(
    authority: &X509Certificate<'_>,
    list: &CertificateRevocationList<'_>,
) -> bool {
    authority.subject().as_raw() == list.issuer().as_raw()
        && list.verify_signature(authority.public_key()).is_ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
        DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
    };

    use super::*;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn authority(name: &str) -> Issuer {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Issuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn list(by: &Issuer, number: u64, year: i32) -> CertificateRevocationListDer<'static> {
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(year, 1, 1),
            next_update: rcgen::date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(by).unwrap().into()
    }

    #[test]
    fn no_list_goes_and_none_is_replaced_by_an_older_one() {
        let (one, other) = (authority("one"), authority("one"));
        let both = [one.as_ref().der().clone(), other.as_ref().der().clone()];
        let in_use = |lists: &[_]| ListsInUse::of(&both, lists);
        let used = in_use(&[list(&one, 300, 2020), list(&other, 5, 2020)]);
        let next = |lists: &[_]| used.check_next(&in_use(lists), &both);
        next(&[list(&one, 300, 2020), list(&other, 5, 2020)]).unwrap();
        // A number goes before a date, and 300 is more than 9.
        next(&[list(&other, 6, 2020), list(&one, 301, 2010)]).unwrap();
        let older = next(&[list(&one, 9, 2030), list(&other, 5, 2020)]).unwrap_err();
        assert!(
            matches!(&older, Step::Older { what, .. } if what == "number 0x09 behind 0x012c"),
            "{older:?}"
        );
        // Of two the first is the one that is asked.
        let hidden = [
            list(&one, 9, 2020),
            list(&one, 300, 2020),
            list(&other, 5, 2020),
        ];
        next(&hidden).unwrap_err();
        for lists in [&[][..], &[list(&one, 300, 2020)], &[list(&other, 5, 2020)]] {
            assert!(matches!(next(lists), Err(Step::Gone { .. })));
        }
        // Of an authority that nobody is verified with any more, none is needed.
        let left = ListsInUse::of(&both[..1], &[list(&one, 300, 2020)]);
        used.check_next(&left, &both[..1]).unwrap();
        ListsInUse::default().check_next(&left, &both).unwrap();
    }

    #[test]
    fn where_one_has_no_number_the_date_decides() {
        let issue = |number: Option<&[u8]>, at| Issue {
            number: number.map(<[u8]>::to_vec),
            at,
        };
        let (with, without) = (issue(Some(&[9]), 100), issue(None, 100));
        for next in [&with, &without] {
            for used in [&with, &without] {
                assert_eq!(next.older_than(used), None);
            }
        }
        for used in [&with, &without] {
            let older = issue(None, 99).older_than(used).unwrap();
            assert!(older.contains("behind 1970-01-01T00:01:40Z"), "{older}");
            assert_eq!(issue(None, 101).older_than(used), None);
        }
    }
}
