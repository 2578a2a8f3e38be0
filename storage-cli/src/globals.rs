//! The program's options, and what they say of the way to the server.
//!
//! What is wrong with the options is found here, files included, apart from what is wrong with the way to the server:
//! their exit codes differ. Nothing is connected to.

use std::ffi::{OsStr, OsString};
use std::ops::Deref;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args};
use storage_client::ConnectOptions;
use storage_protocol::StorageError;

use crate::app::END_TIMEOUT;
use crate::failure::usage;
use crate::template::some;

/// Options of the program, before or behind the sub-command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection and form")]
pub(crate) struct Globals {
    /// Keyspace: wss://HOST:PORT/storage/KEYSPACE; several servers that have it: URL,URL
    #[arg(long, value_name = "URL", env = "STORAGE_URL", global = true)]
    url: Option<String>,
    /// Folder of certificates: DIR/NAME/{ca,cert,key}.pem
    #[arg(long, value_name = "DIR", env = "STORAGE_CERTS", global = true)]
    certs: Option<OsString>,
    /// Whose certificate to present [default: the only one in the folder besides "server"]
    #[arg(long, value_name = "NAME", env = "STORAGE_IDENTITY", global = true)]
    identity: Option<String>,
    /// Present no certificate, and trust servers that FILE vouches for (for listeners with tls = "server"); needed to log in
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// Log in with the token in FILE, which is read again for each connection
    #[arg(long, value_name = "FILE", env = "STORAGE_TOKEN_FILE", global = true)]
    token_file: Option<OsString>,
    /// Log in as this user; the password is asked for, or is stdin where that is no terminal
    #[arg(long, value_name = "NAME", global = true)]
    user: Option<String>,
    /// File with the password of --user: all of it is the password, but for a newline at its end
    #[arg(long, value_name = "FILE", global = true)]
    password_file: Option<PathBuf>,
    /// Allow ws:// URLs: nothing is encrypted, and nobody knows who the other side is
    #[arg(long, global = true)]
    danger_plaintext: bool,
    /// How long each attempt to connect, and each answer, may take, such as 500ms or 1m; a server that refuses the first
    /// connection is not waited for [default: 10s and 30s]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration, global = true)]
    timeout: Option<Duration>,
    /// End when there was no connection for so long [default: never; calls wait for it up to their --timeout]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration, global = true)]
    give_up_after: Option<Duration>,
    /// Print JSON for machines, one object per line
    #[arg(long, action = ArgAction::SetTrue, global = true)]
    json: bool,
    /// Keys and values on the command line and in text output are hexadecimal
    #[arg(long, action = ArgAction::SetTrue, global = true)]
    hex: bool,
}

/// How to log in, besides a certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LoginOption<'a> {
    TokenFile(&'a Path),
    /// `password_file` as [`secret::password`](crate::secret::password) takes it.
    User {
        name: &'a str,
        password_file: Option<&'a Path>,
    },
}

impl LoginOption<'_> {
    /// The option that asks for it.
    fn name(self) -> &'static str {
        match self {
            Self::TokenFile(_) => "--token-file (or STORAGE_TOKEN_FILE)",
            Self::User { .. } => "--user",
        }
    }
}

impl Globals {
    /// Whether to print for machines.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Whether keys and values are hexadecimal.
    pub(crate) fn hex(&self) -> bool {
        self.hex
    }

    /// How long each attempt to connect, and each answer, may take, if it was said.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Checks the options, files included, so that what still fails later lies with the way or the server.
    pub(crate) fn connect_options(&self) -> anyhow::Result<ConnectOptions> {
        let url = given(self.url.as_ref()).ok_or_else(|| {
            usage("which keyspace? Give --url wss://HOST:PORT/storage/KEYSPACE, or set STORAGE_URL")
        })?;
        let mut urls = url.split(',');
        let first = urls.next().unwrap_or_default();
        let mut options = self.check_options(self.options(first), first)?;
        for url in urls {
            options = self.check_options(options.also(url), url)?;
        }
        let login = self.login()?;
        if !url.split(',').any(|url| url.starts_with("wss://")) {
            return Ok(options);
        }
        let options = match login {
            Some(login) => self.with_ca_alone(options, login)?,
            None => self.with_credentials(options)?,
        };
        options.check_credentials().map_err(|error| {
            let what = what_failed(error);
            usage(format!("the certificates: {what}{}", self.others()))
        })?;
        Ok(options)
    }

    /// The same for requests over HTTP, each of which makes a connection of its own. That one cannot be made is to be known
    /// before the answer is waited for no longer.
    pub(crate) fn http_options(&self) -> anyhow::Result<ConnectOptions> {
        let options = self.connect_options()?;
        let urls = self.url.iter().flat_map(|url| url.split(',')).count();
        let connect = self.timeout.unwrap_or(Duration::from_secs(10));
        let connect = connect.saturating_mul(u32::try_from(urls).unwrap_or(u32::MAX));
        let answer = self.timeout.unwrap_or(Duration::from_secs(30));
        Ok(options.request_timeout(connect.saturating_add(answer)))
    }

    /// Checks the last URL of these options; those before it were good.
    fn check_options(&self, options: ConnectOptions, url: &str) -> anyhow::Result<ConnectOptions> {
        if url.starts_with("ws://") && !self.danger_plaintext {
            return Err(usage(format!(
                "{url} is not encrypted; use wss://, or allow it with --danger-plaintext"
            )));
        }
        match options.keyspace() {
            Ok(_) => Ok(options),
            Err(error) => Err(usage(format!("--url {}", what_failed(error)))),
        }
    }

    /// What is said of connections whatever the URLs are.
    fn options(&self, url: &str) -> ConnectOptions {
        let mut options = ConnectOptions::new(url)
            .agent(concat!("storage/", env!("CARGO_PKG_VERSION")))
            .close_timeout(END_TIMEOUT);
        if self.danger_plaintext {
            options = options.danger_plaintext();
        }
        if let Some(timeout) = self.timeout {
            options = options.connect_timeout(timeout).request_timeout(timeout);
        }
        if let Some(duration) = self.give_up_after {
            options = options.give_up_after(duration);
        }
        options
    }

    /// How to log in, if a certificate is not to do.
    pub(crate) fn login(&self) -> anyhow::Result<Option<LoginOption<'_>>> {
        let token_file = given(self.token_file.as_ref()).map(Path::new);
        let password_file = given(self.password_file.as_ref()).map(Path::new);
        match (token_file, given(self.user.as_ref()), password_file) {
            (Some(_), Some(name), _) => Err(usage(format!(
                "--token-file (or STORAGE_TOKEN_FILE) and --user {name}: which of the two?"
            ))),
            (None, None, None) if self.user.is_some() => Err(usage("--user is empty")),
            (_, None, Some(_)) => Err(usage(
                "--password-file needs --user NAME, whose password it is",
            )),
            (None, None, None) => Ok(None),
            (Some(file), None, None) => Ok(Some(LoginOption::TokenFile(file))),
            (None, Some(name), _) if name.contains(':') => Err(usage(format!(
                "--user {name}: a name with a colon cannot log in; without \"user:\" in front it is the user's name"
            ))),
            (None, Some(name), password_file) => Ok(Some(LoginOption::User {
                name,
                password_file,
            })),
        }
    }

    /// Who logs in presents no certificate: that would decide, and what is shown besides would not count.
    fn with_ca_alone(
        &self,
        options: ConnectOptions,
        login: LoginOption<'_>,
    ) -> anyhow::Result<ConnectOptions> {
        let by = login.name();
        if let Some(name) = given(self.identity.as_ref()) {
            return Err(usage(format!(
                "{by} is for no certificate at all, and --identity (or STORAGE_IDENTITY) is {name:?}: which of the two?"
            )));
        }
        let ca = given(self.ca.as_ref()).ok_or_else(|| {
            usage(format!(
                "which servers are to be trusted? With {by} give --ca FILE, the certificate of the servers' authority"
            ))
        })?;
        Ok(options.without_client_certificate(ca))
    }

    fn with_credentials(&self, options: ConnectOptions) -> anyhow::Result<ConnectOptions> {
        let (ca, certs) = (given(self.ca.as_ref()), self.certs());
        match (ca, certs, given(self.identity.as_ref())) {
            (Some(ca), _, None) => Ok(options.without_client_certificate(ca)),
            (Some(_), _, Some(name)) => Err(usage(format!(
                "--ca is for no certificate at all, and --identity (or STORAGE_IDENTITY) is {name:?}: which of the two?"
            ))),
            (None, Some(certs), Some(name)) => {
                let mut components = Path::new(name).components();
                let plain = matches!(
                    (components.next(), components.next()),
                    (Some(Component::Normal(_)), None)
                );
                if !plain {
                    return Err(usage(format!(
                        "--identity {name:?} is no name of a folder in {}",
                        certs.display()
                    )));
                }
                Ok(options.credentials_dir(certs.join(name)))
            }
            (None, None, _) => Err(usage(
                "which certificates? Give --certs DIR and --identity NAME, or set STORAGE_CERTS and STORAGE_IDENTITY",
            )),
            (None, Some(certs), None) => match &identities(certs)[..] {
                [only] => Ok(options.credentials_dir(certs.join(only))),
                there => Err(usage(format!(
                    "whose certificate? Give --identity NAME, or set STORAGE_IDENTITY{}",
                    listed(there)
                ))),
            },
        }
    }

    fn certs(&self) -> Option<&Path> {
        given(self.certs.as_ref()).map(Path::new)
    }

    /// Whose certificates there are, for a message about one that is not.
    fn others(&self) -> String {
        match (self.certs(), given(self.identity.as_ref())) {
            (Some(certs), Some(name)) if !certs.join(name).is_dir() => listed(&identities(certs)),
            _ => String::new(),
        }
    }
}

/// The reason alone: that options are wrong is no failure to connect yet.
fn what_failed(error: StorageError) -> String {
    match error {
        StorageError::ConnectFailed { message } => message,
        error => error.to_string(),
    }
}

/// An option that says something: a variable that is set to nothing does not.
fn given<T: AsRef<OsStr> + ?Sized, O: Deref<Target = T>>(option: Option<&O>) -> Option<&T> {
    option
        .map(Deref::deref)
        .filter(|value| !value.as_ref().is_empty())
}

/// Who has a certificate in this folder, the server by its usual name left out, since it cannot dial.
fn identities(certs: &Path) -> Vec<String> {
    let folders = std::fs::read_dir(certs).into_iter().flatten().flatten();
    let mut names: Vec<String> = folders
        .filter(|entry| {
            let folder = entry.path();
            entry.file_name() != "server"
                && folder.join("cert.pem").is_file()
                && folder.join("key.pem").is_file()
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("; there are: {}", some(names.iter().map(String::as_str))),
    }
}
