//! The dates of the certificates in use: checked for `/readyz`, shown as metrics, and logged before one ends.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::tls::{Dates, Validity};
use crate::auth::text::date;

/// So long before its end it is first logged.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often that is logged again.
const REMIND: Duration = Duration::from_secs(24 * 3600);
/// How often the dates are checked.
const LOOK: Duration = Duration::from_secs(60);

/// The dates of what TLS stands on now; nothing where no listener has TLS.
#[derive(Debug, Default)]
pub(crate) struct Certificates(RwLock<Option<Dates>>);

impl Certificates {
    pub(crate) fn dates(&self) -> Option<Dates> {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, dates: Dates) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(dates);
    }

    /// Whether clients that check the dates can connect.
    ///
    /// # Errors
    /// A text for operators.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.dates().map_or(Ok(()), |dates| check(dates.own))
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Whether clients that check the dates can connect to a server with this one.
///
/// # Errors
/// A text for operators.
pub(crate) fn check(validity: Validity) -> Result<(), String> {
    check_validity(validity, now())
}

fn check_validity(validity: Validity, now: u64) -> Result<(), String> {
    if now > validity.until {
        let until = date(validity.until);
        return Err(format!(
            "the server's certificate expired at {until}: no client can connect"
        ));
    }
    if now < validity.from {
        let from = date(validity.from);
        return Err(format!(
            "the server's certificate is not valid before {from}: no client can connect"
        ));
    }
    Ok(())
}

/// Whether something that ends then ends soon, or has ended.
fn ends_soon(until: u64, now: u64) -> bool {
    until.saturating_sub(now) < SOON.as_secs()
}

/// What an operator has to do something about, at this time.
fn warnings(dates: &Dates, now: u64) -> Vec<String> {
    let mut all = Vec::new();
    match check_validity(dates.own, now) {
        Err(reason) => all.push(reason),
        Ok(()) if ends_soon(dates.own.until, now) => all.push(format!(
            "the server's certificate expires soon, at {}: renew it (the server takes the new files by itself)",
            date(dates.own.until)
        )),
        Ok(()) => {}
    }
    for (until, what) in [
        (
            dates.between,
            "a certificate between the server's and its authority",
        ),
        (
            dates.authority,
            "an authority that clients are verified with",
        ),
    ] {
        if let Some(until) = until.filter(|until| ends_soon(*until, now)) {
            all.push(format!("{what} expires at {}", date(until)));
        }
    }
    // They are replaced every few days or weeks.
    if let Some(due) = dates.lists.filter(|due| *due < now) {
        all.push(format!(
            "a revocation list should have been replaced at {}: who was revoked since gets in",
            date(due)
        ));
    }
    all
}

/// Logs at once, and then each day, what has expired or soon will.
pub(crate) async fn remind(certificates: Arc<Certificates>, stop: CancellationToken) {
    let mut reminded: Option<(Vec<String>, u64)> = None;
    loop {
        let now = now();
        let dates = certificates.dates();
        let unusable = dates.and_then(|dates| check_validity(dates.own, now).err());
        let found = dates.map(|dates| warnings(&dates, now)).unwrap_or_default();
        let is_old = reminded
            .as_ref()
            .is_none_or(|(told, at)| *told != found || now.saturating_sub(*at) >= REMIND.as_secs());
        if is_old {
            for warning in &found {
                match unusable.as_ref() == Some(warning) {
                    true => tracing::error!("{warning}"),
                    false => tracing::warn!("{warning}"),
                }
            }
            reminded = Some((found, now));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_dates_are_checked() {
        let validity = Validity {
            from: 1_000_000_000,
            until: 2_000_000_000,
        };
        check_validity(validity, 1_500_000_000).unwrap();
        assert!(
            check_validity(validity, 2_000_000_001)
                .unwrap_err()
                .contains("expired at 2033-05-18T03:33:20Z")
        );
        assert!(
            check_validity(validity, 999_999_999)
                .unwrap_err()
                .contains("not valid before 2001-09-09T01:46:40Z")
        );
        assert_eq!(date(u64::MAX), "never");
    }

    #[test]
    fn what_ends_soon_is_told_from_thirty_days_on() {
        const DAY: u64 = 24 * 3600;
        let now = 1_900_000_000;
        let dates = |own: u64| Dates {
            own: Validity {
                from: 0,
                until: now + own * DAY,
            },
            between: None,
            authority: Some(now + 100 * DAY),
            lists: Some(now + 1),
        };
        assert_eq!(warnings(&dates(31), now), Vec::<String>::new());
        let told = warnings(&dates(29), now);
        assert!(told[0].contains("expires soon"), "{told:?}");
        let told = warnings(&dates(31), now + 71 * DAY);
        let [own, authority, list] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(own.contains("expired at"), "{own}");
        assert!(authority.contains("an authority"), "{authority}");
        assert!(list.contains("revocation list"), "{list}");
    }
}
