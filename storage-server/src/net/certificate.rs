//! The dates of the server's own certificate: checked for `/readyz`, and logged before it expires.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::tls::Validity;

/// So long before its end it is first logged.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often that is logged again.
const REMIND: Duration = Duration::from_secs(24 * 3600);
/// How often the dates are checked.
const LOOK: Duration = Duration::from_secs(60);

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A time of a certificate as text.
pub(crate) fn date(seconds: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    // Neither X.509 nor the text knows a year after 9999.
    let time = time.filter(|_| seconds < 253_402_300_800);
    time.map_or_else(
        || "never".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

/// Whether clients that check the dates can connect.
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

/// Whether it ends soon.
fn ends_soon(validity: Validity, now: u64) -> bool {
    validity.until.saturating_sub(now) < SOON.as_secs()
}

/// Logs at once, and then each day, that the certificate is not valid, or soon will not be.
pub(crate) async fn remind(validity: Validity, stop: CancellationToken) {
    let mut reminded: Option<(bool, u64)> = None;
    loop {
        let now = now();
        let checked = check_validity(validity, now);
        let is_old = reminded.is_none_or(|(was_good, at)| {
            was_good != checked.is_ok() || now.saturating_sub(at) >= REMIND.as_secs()
        });
        if is_old {
            match &checked {
                Err(reason) => tracing::error!("{reason}"),
                Ok(()) if ends_soon(validity, now) => tracing::warn!(
                    "the server's certificate expires soon, at {}: renew it and restart the server",
                    date(validity.until)
                ),
                Ok(()) => {}
            }
            reminded = Some((checked.is_ok(), now));
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
        assert!(!ends_soon(validity, 1_900_000_000));
        assert!(ends_soon(validity, 2_000_000_000 - 13 * 24 * 3600));
        assert_eq!(date(u64::MAX), "never");
    }
}
