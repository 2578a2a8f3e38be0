//! The gateway `robots`: `[robots]`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_protocol::Keyspace;
use storage_schedule::Zone;

use super::ConfigError;
use super::checks;
use super::text::{self, duration, size};

/// What the gateway `robots` goes by: `[robots]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RobotsConfig {
    /// Where robots, packages and jobs are. Default `robots`.
    #[serde(with = "text::keyspace")]
    pub keyspace: Keyspace,
    /// Of which time zone the dates and times of schedules are, and the days of log files: a name such as `Europe/Berlin`, or
    /// `UTC`, or `system`. Default `system`.
    pub time_zone: String,
    /// A job whose time has passed by at most so much when it is scheduled is due at once. Default 60s.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// For so long a job that is due waits for a robot that is not connected; then it has failed. At least 1s. Default 24h.
    #[serde(with = "duration")]
    pub window: Duration,
    /// A robot whose connection has not answered for so long is sent the package again. Default 30s.
    #[serde(with = "duration")]
    pub confirm: Duration,
    /// So many times a package is sent again. Default 5.
    #[serde(deserialize_with = "size")]
    pub resends_max: u32,
    /// After so long for the first time, and each further time after twice as long. Default 500ms.
    #[serde(with = "duration")]
    pub resend: Duration,
    /// For so long a job is remembered when it has ended. Default 30days.
    #[serde(with = "duration")]
    pub keep: Duration,
    /// How often a robot is pinged; at most 10s, since robots reconnect that have seen none for 20s. Default 8s.
    #[serde(with = "duration")]
    pub ping: Duration,
    /// A robot that has sent nothing for so long, not even the answer to a ping, counts as disconnected; at least twice
    /// `ping`. Default 24s.
    #[serde(with = "duration")]
    pub silence: Duration,
    /// The second refusal of a connection, or of a robot over its connections, waits for so long, and each further one twice as
    /// long. Default 1s.
    #[serde(with = "duration")]
    pub refusal_delay: Duration,
    /// With so many refusals a connection is closed at the next one, and its robot blocked. Default 10.
    #[serde(deserialize_with = "size")]
    pub refusals_max: u32,
    /// For so long; so long refusals of a robot are remembered as well. Default 10m.
    #[serde(with = "duration")]
    pub blocked: Duration,
    /// Robots that are remembered. Default 100,000.
    #[serde(deserialize_with = "size")]
    pub robots_max: u64,
    /// Daily logs, and the logs of robots, are in the folders `ServerLogs` and `RobotLogs` of this one, with links by the robots'
    /// names in `ClientLogs`. Default: `robots` in the data folder.
    pub logs: Option<PathBuf>,
    /// Days that the daily logs are kept, today included. Default 30.
    #[serde(deserialize_with = "size")]
    pub log_days: usize,
    /// Bytes of a daily log, and of a robot's log; what was before stays once more beside that. Default 16 MiB.
    #[serde(deserialize_with = "size")]
    pub log_bytes_max: u64,
    /// Bytes that the logs of all robots take of the disk together; beyond that the one goes that was written longest ago. At
    /// least four times `log_bytes_max`. Default 1 GiB.
    #[serde(deserialize_with = "size")]
    pub robot_logs_bytes_max: u64,
}

impl Default for RobotsConfig {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            keyspace: Keyspace::new("robots").expect("the name follows the rule"),
            time_zone: "system".to_owned(),
            grace: seconds(60),
            window: seconds(24 * 3600),
            confirm: seconds(30),
            resends_max: 5,
            resend: Duration::from_millis(500),
            keep: seconds(30 * 24 * 3600),
            ping: seconds(8),
            silence: seconds(24),
            refusal_delay: seconds(1),
            refusals_max: 10,
            blocked: seconds(600),
            robots_max: 100_000,
            logs: None,
            log_days: 30,
            log_bytes_max: 16 << 20,
            robot_logs_bytes_max: 1 << 30,
        }
    }
}

const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

impl RobotsConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let told = |duration| humantime::format_duration(duration);
        let millis = Duration::from_millis;
        let day = Duration::from_secs(24 * 3600);
        for (key, value, least, most) in [
            ("robots.grace", self.grace, Duration::ZERO, day),
            ("robots.window", self.window, millis(1_000), YEAR),
            ("robots.confirm", self.confirm, millis(100), day),
            ("robots.resend", self.resend, millis(1), day),
            ("robots.keep", self.keep, millis(1_000), 5 * YEAR),
            ("robots.ping", self.ping, millis(100), millis(10_000)),
            (
                "robots.silence",
                self.silence,
                self.ping.saturating_mul(2),
                day,
            ),
            (
                "robots.refusal_delay",
                self.refusal_delay,
                Duration::ZERO,
                millis(60_000),
            ),
            ("robots.blocked", self.blocked, Duration::ZERO, YEAR),
        ] {
            if !(least..=most).contains(&value) {
                let allowed = format!("allowed are {} to {}", told(least), told(most));
                return Err(ConfigError::value(key, told(value), allowed));
            }
        }
        for (key, value, least, most) in [
            ("robots.resends_max", u64::from(self.resends_max), 0, 1_000),
            (
                "robots.refusals_max",
                u64::from(self.refusals_max),
                1,
                1_000,
            ),
            ("robots.robots_max", self.robots_max, 1, 10_000_000),
            ("robots.log_days", self.log_days as u64, 1, 10_000),
            (
                "robots.log_bytes_max",
                self.log_bytes_max,
                64 << 10,
                1 << 40,
            ),
            (
                "robots.robot_logs_bytes_max",
                self.robot_logs_bytes_max,
                self.log_bytes_max.saturating_mul(4),
                1 << 50,
            ),
        ] {
            if !(least..=most).contains(&value) {
                let allowed = format!("allowed are {least} to {most}");
                return Err(ConfigError::value(key, value, allowed));
            }
        }
        if let Err(error) = Zone::named(&self.time_zone) {
            let value = format!("{:?}", self.time_zone);
            return Err(ConfigError::value(
                "robots.time_zone",
                value,
                error.to_string(),
            ));
        }
        checks::ordinary_keyspace("robots.keyspace", &self.keyspace)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_without_measure_are_refused_by_name() {
        let refused = |config: RobotsConfig| config.validate().unwrap_err().to_string();
        let ping = refused(RobotsConfig {
            ping: Duration::MAX,
            ..RobotsConfig::default()
        });
        assert!(ping.starts_with("robots.ping = "), "{ping}");
        let log = refused(RobotsConfig {
            log_bytes_max: u64::MAX,
            ..RobotsConfig::default()
        });
        assert!(log.starts_with("robots.log_bytes_max = "), "{log}");
        assert!(RobotsConfig::default().validate().is_ok());
    }
}
