//! The command line of `storage-server`, and its way into the configuration.
//!
//! A flag wins over its environment variable, that over the file, the file over the default.

mod run;

use std::path::{Path, PathBuf};

use clap::{Args, Command as ClapCommand, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::auth::Principal;
use crate::config::{self, ConfigError, Document, ServerConfig, check_address};

pub use self::run::main;

const EXAMPLES: &str = "Examples:
  storage-server serve --certs certs/dev --data /var/lib/storage
  storage-server serve --config /etc/storage-server.toml --listen 0.0.0.0:7443
  STORAGE_SERVER_DURABILITY=os storage-server serve --certs certs/dev
  storage-server serve --config /etc/storage-server.toml --grant-admin cert:boss
  storage-server serve --config gateways.toml --demo
  storage-server config check --config /etc/storage-server.toml
  storage-server config print --certs certs/dev > storage-server.toml

Exit codes: 0 stopped in order, 1 failed to start or to run, 2 wrong usage or configuration.";

/// Remote key-value storage over mutually authenticated WebSockets.
#[derive(Debug, Parser)]
#[command(name = "storage-server", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or Ctrl-C. Prints one line per listener when it is ready.
    #[command(after_help = EXAMPLES)]
    Serve(Serve),
    /// Look at the configuration without serving.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// How to serve.
#[derive(Debug, Args)]
pub struct Serve {
    /// What is served.
    #[command(flatten)]
    pub settings: Settings,
    /// Makes this principal an administrator, for who is locked out by the access rules: stores the rule `grant-admin` at
    /// this start, which gives it `admin` of the keyspace `system` until the rule is revoked. It is `cert:NAME`,
    /// `user:NAME` or `anonymous`; one that is an administrator already changes nothing.
    #[arg(long, value_name = "PRINCIPAL", value_parser = parse_principal)]
    pub grant_admin: Option<Principal>,
    /// Makes the example users and objects of the gateways that are served, where they are missing, and says so. Only where all
    /// listeners are on loopback: everybody knows the passwords. The next start without it removes the users that still have
    /// them.
    #[arg(long)]
    pub demo: bool,
}

/// A principal, and no pattern of several.
fn parse_principal(text: &str) -> Result<Principal, String> {
    let principal = Principal::parse(text).filter(|_| !text.contains('*'));
    principal.ok_or_else(|| {
        "allowed is one principal: cert:NAME, user:NAME or anonymous, without * and characters that do not show".to_owned()
    })
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether it is good; exit code 2 if not.
    Check(Settings),
    /// Print all of it, defaults included, as TOML.
    Print(Settings),
}

/// Settings that flags and environment variables can give.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "STORAGE_SERVER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder of the store; made where it is missing.
    #[arg(long, value_name = "DIR", env = "STORAGE_SERVER_DATA")]
    pub data: Option<PathBuf>,
    /// Address of the (first) listener with the gateway `storage`; port 0 takes a free one. [default: 127.0.0.1:7443]
    #[arg(long, value_name = "ADDR", env = "STORAGE_SERVER_LISTEN")]
    pub listen: Option<String>,
    /// Folder of certificates: DIR/server/{cert,key,ca}.pem, and DIR/crl.pem if there is one.
    #[arg(long, value_name = "DIR", env = "STORAGE_SERVER_CERTS")]
    pub certs: Option<PathBuf>,
    /// `sync`: a commit is on the disk before it is acknowledged. `os`: within a second. [default: sync]
    #[arg(long, value_name = "MODE", env = "STORAGE_SERVER_DURABILITY")]
    pub durability: Option<String>,
    /// Start although the store lost acknowledged commits; its history forks.
    #[arg(long, env = "STORAGE_SERVER_ACCEPT_DATA_LOSS", value_parser = clap::builder::BoolishValueParser::new())]
    pub accept_data_loss: bool,
    /// Fork the store's history at this start: for a machine or volume that was put back to an earlier snapshot. (A folder
    /// that was copied or put back file by file is noticed without it.)
    #[arg(long, env = "STORAGE_SERVER_NEW_EPOCH", value_parser = clap::builder::BoolishValueParser::new())]
    pub new_epoch: bool,
    /// `text` or `json`. [default: text]
    #[arg(long, value_name = "FORMAT", env = "STORAGE_SERVER_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// Also write the log into daily files in this folder.
    #[arg(long, value_name = "DIR", env = "STORAGE_SERVER_LOG_DIR")]
    pub log_dir: Option<PathBuf>,
    /// Which log events, such as `info` or `storage_server=debug`. [default: info]
    #[arg(long, value_name = "FILTER", env = "STORAGE_SERVER_LOG")]
    pub log: Option<String>,
}

/// All environment variables of the server begin so.
const VARIABLES: &str = "STORAGE_SERVER_";

impl Cli {
    /// What the command line and the environment say. Ends the process where clap does (`--help`, wrong usage).
    ///
    /// # Errors
    /// [`ConfigError::Value`] for a variable that there is not: a misspelt one must not be passed over in silence.
    pub fn from_command_line() -> Result<Self, ConfigError> {
        let matches = with_what_is_set(Self::command()).get_matches();
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        check_variables(names)?;
        Ok(Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
    }
}

/// An empty variable counts as one that is not set, as tools that pass variables on leave them.
fn with_what_is_set(command: ClapCommand) -> ClapCommand {
    let is_empty =
        |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|argument| match argument.get_env() {
            Some(name) if is_empty(name) => argument.env(None::<&str>),
            _ => argument,
        })
        .mut_subcommands(with_what_is_set)
}

fn check_variables(names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
    let command = Settings::augment_args(ClapCommand::new("settings"));
    let known: Vec<_> = command
        .get_arguments()
        .filter_map(|argument| argument.get_env()?.to_str())
        .collect();
    let mut names = names.filter(|name| name.starts_with(VARIABLES));
    match names.find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(ConfigError::value(
            name,
            "(set)",
            format!(
                "there is no such variable; allowed are {}",
                known.join(", ")
            ),
        )),
    }
}

/// A flag without a value is a mistake of a script, not a wish for the default.
fn check_flag(name: &str, is_empty: bool) -> Result<(), ConfigError> {
    match is_empty {
        false => Ok(()),
        true => Err(ConfigError::value(
            name,
            "\"\"",
            "a value that is not empty",
        )),
    }
}

impl Settings {
    fn check_flags(&self) -> Result<(), ConfigError> {
        for (name, path) in [
            ("--config", &self.config),
            ("--data", &self.data),
            ("--certs", &self.certs),
            ("--log-dir", &self.log_dir),
        ] {
            check_flag(
                name,
                path.as_ref()
                    .is_some_and(|path| path.as_os_str().is_empty()),
            )?;
        }
        for (name, text) in [
            ("--listen", &self.listen),
            ("--durability", &self.durability),
            ("--log-format", &self.log_format),
            ("--log", &self.log),
        ] {
            check_flag(name, text.as_ref().is_some_and(String::is_empty))?;
        }
        Ok(())
    }

    /// The checked configuration: these settings over the file over the defaults. `gateways`: the names of those that
    /// there are.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn resolve(&self, gateways: &[&str]) -> Result<ServerConfig, ConfigError> {
        self.check_flags()?;
        let path = self.config.as_deref();
        let text = path.map_or_else(|| Ok(String::new()), config::read)?;
        let mut file = Document::parse(path.unwrap_or_else(|| Path::new("")), &text)?;
        if let Some(durability) = &self.durability {
            file.set(None, "durability", durability);
        }
        if let Some(format) = &self.log_format {
            file.set(Some("log"), "format", format);
        }
        if let Some(listen) = &self.listen {
            check_address("--listen", listen)?;
            file.set_listener(listen);
        }
        let mut config = file.read()?;
        if let Some(data) = &self.data {
            config.data.clone_from(data);
        }
        if let Some(filter) = &self.log {
            config.log.filter.clone_from(filter);
        }
        config.certs = self.certs.clone().or(config.certs);
        config.log.dir = self.log_dir.clone().or(config.log.dir);
        config.accept_data_loss |= self.accept_data_loss;
        config.new_epoch |= self.new_epoch;
        config.validate(gateways)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 2] = ["storage", "admin"];

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_administrator_is_granted_to_one_principal() {
        for good in ["cert:boss", "user:ann", "anonymous", "cert:spiffe://a/b"] {
            assert_eq!(parse_principal(good).unwrap().as_str(), good);
        }
        let long = format!("cert:{}", "x".repeat(256));
        for bad in [
            "",
            "boss",
            "cert:",
            "cert:*",
            "role:ops",
            "user:a\nb",
            "server",
            &long,
        ] {
            let error = parse_principal(bad).unwrap_err();
            assert!(error.contains("cert:NAME"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_variable_that_there_is_not_is_refused_by_name() {
        let check = |name: &str| check_variables([name.to_owned()].into_iter());
        check("STORAGE_SERVER_LISTEN").unwrap();
        check("STORAGE_SERVER_ACCEPT_DATA_LOSS").unwrap();
        check("STORAGE_URL").unwrap();
        let error = check("STORAGE_SERVER_LISTN").unwrap_err().to_string();
        for part in ["STORAGE_SERVER_LISTN", "STORAGE_SERVER_LISTEN"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_empty_flag_is_refused_by_name() {
        let settings = Settings {
            data: Some(PathBuf::new()),
            ..Settings::default()
        };
        let error = settings.resolve(&KNOWN).unwrap_err().to_string();
        assert!(error.contains("--data = \"\""), "{error}");
    }

    #[test]
    fn a_flag_moves_the_storage_listener_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let file = "certs = 'c'\ndata = 'from-file'\n\
            [[listener]]\naddress = '127.0.0.1:1'\ntls = 'off'\ngateways = ['admin']\n\
            [[listener]]\naddress = '127.0.0.1:2'\n";
        std::fs::write(&path, file).unwrap();
        let settings = Settings {
            config: Some(path),
            listen: Some("127.0.0.1:3".to_owned()),
            certs: Some("from-flag".into()),
            ..Settings::default()
        };
        let config = settings.resolve(&KNOWN).unwrap();
        let ports: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| listener.address.port())
            .collect();
        assert_eq!(ports, [1, 3]);
        assert_eq!(config.data, PathBuf::from("from-file"));
        assert_eq!(config.certs, Some("from-flag".into()));
        let bad = Settings {
            listen: Some("here".to_owned()),
            ..Settings::default()
        };
        assert!(
            bad.resolve(&KNOWN)
                .unwrap_err()
                .to_string()
                .contains("--listen = \"here\"")
        );
    }

    #[test]
    fn what_a_flag_says_stands_in_the_place_of_what_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let file = "certs = 'c'\ndurability = 'never'\n[log]\nformat = 'xml'\n\
            [[listener]]\ntls_min_version = '1.2'\n";
        std::fs::write(&path, file).unwrap();
        let mut settings = Settings {
            config: Some(path),
            listen: Some("127.0.0.1:3".to_owned()),
            durability: Some("os".to_owned()),
            ..Settings::default()
        };
        let error = settings.resolve(&KNOWN).unwrap_err().to_string();
        assert!(error.contains("log.format = \"xml\""), "{error}");
        settings.log_format = Some("json".to_owned());
        let config = settings.resolve(&KNOWN).unwrap();
        let listener = &config.listeners[0];
        assert_eq!((config.listeners.len(), listener.address.port()), (1, 3));
        assert_eq!(listener.tls_min_version, config::TlsVersion::Tls12);
    }

    #[test]
    fn a_bad_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Settings {
                config: Some(path.clone()),
                ..Settings::default()
            }
            .resolve(&KNOWN)
            .unwrap_err()
            .to_string()
        };
        let unknown = error("certs = 'c'\n\ndtaa = 'x'\n");
        assert!(
            unknown.contains("c.toml:3") && unknown.contains("dtaa"),
            "{unknown}"
        );
        let syntax = error("certs = 'c'\ndata = \n");
        assert!(syntax.contains("c.toml:2"), "{syntax}");
        let missing = Settings {
            config: Some("/no/such.toml".into()),
            ..Settings::default()
        };
        assert!(
            missing
                .resolve(&KNOWN)
                .unwrap_err()
                .to_string()
                .contains("/no/such.toml")
        );
    }
}
