//! The command line of `storage-certs`: arguments, what each command does, its report, exit codes.
//!
//! Others script against it: names, files and exit codes change only with a word in the changelog.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use rustls_pki_types::ServerName;

use crate::folder::{AuthorityDir, InitOptions, IssueOptions, IssuedFolder, Replace, Revoked};
use crate::validity::date;
use crate::{Error, Name, Password, Request, Result, Role, SanUri, Validity, server_name};

const EXAMPLES: &str = "\
Examples:
  Make a CA and the credentials of a server:
    storage-certs init --dir certs --server-name localhost --server-name 127.0.0.1
  Give a client its folder certs/laptop, for 90 days:
    storage-certs issue laptop --dir certs --days 90
  A second server:
    storage-certs issue db2 --dir certs --server --server-name db2.example.com
  Renew before it expires:
    storage-certs issue laptop --dir certs --force
  Lock a client out; then give the new certs/crl.pem to the servers:
    storage-certs revoke laptop --dir certs

Exit codes: 0 done, 1 refused (exists, unknown name) or failed, 2 usage or bad input.";

/// Makes a certificate authority, issues and revokes credentials for mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "storage-certs", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA, an empty CRL and the folder DIR/server of a first server
    ///
    /// The CA is good for ten years. DIR/ca-key.pem signs everything: keep it off the servers.
    Init(Init),
    /// Issue credentials for NAME into the folder DIR/NAME
    ///
    /// The folder is all that the peer needs: ca.pem, cert.pem, key.pem, and keystore.p12 and
    /// truststore.p12 for Java.
    Issue(Issue),
    /// Add NAME's certificates to DIR/crl.pem
    ///
    /// Servers refuse them once they have loaded the new crl.pem.
    Revoke(Revoke),
}

#[derive(Debug, Args)]
struct Init {
    /// Folder of the CA; made if missing
    #[arg(long)]
    dir: PathBuf,
    /// Host name or IP address that clients dial; repeatable
    #[arg(long = "server-name", value_name = "HOST", required = true, value_parser = server_name)]
    server_names: Vec<ServerName<'static>>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Issue {
    /// Name of the peer: 1 to 63 letters, digits, '.', '_' or '-'
    name: Name,
    /// Folder of the CA
    #[arg(long)]
    dir: PathBuf,
    /// Issue a server's certificate instead of a client's
    #[arg(long)]
    server: bool,
    /// Host name or IP address that clients dial; repeatable; default: NAME if it is one
    #[arg(long = "server-name", value_name = "HOST", requires = "server", value_parser = server_name)]
    server_names: Vec<ServerName<'static>>,
    /// Add this URI to the subject alternative names; for the server it is the peer's identity
    #[arg(long, value_name = "URI")]
    san_uri: Option<SanUri>,
    /// Issue again for an existing NAME, with a new key; the old certificate stays valid
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Days the certificate is good for
    #[arg(long, default_value_t = crate::DAYS_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(crate::DAYS_MAX)))]
    days: u32,
    /// File whose first line is the password of the PKCS#12 stores; default: a random password,
    /// written to the file keystore-password beside them
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Common {
    fn password(&self) -> Result<Option<Password>> {
        self.password_file
            .as_ref()
            .map(Password::from_file)
            .transpose()
    }
}

#[derive(Debug, Args)]
struct Revoke {
    /// Name of the peer
    name: Name,
    /// Folder of the CA
    #[arg(long)]
    dir: PathBuf,
}

/// Runs a command; the report is for standard output.
///
/// # Errors
/// Those of [`AuthorityDir`] and [`Password::from_file`].
pub fn run(cli: Cli) -> Result<String> {
    match cli.command {
        Command::Init(args) => init(args),
        Command::Issue(args) => issue(args),
        Command::Revoke(args) => revoke(&args),
    }
}

/// 2 for bad input, 1 for a refusal or a failure; clap itself uses 2.
pub fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Invalid { .. } | Error::Malformed { .. } => 2,
        Error::Exists { .. }
        | Error::UnknownName { .. }
        | Error::NoAuthority { .. }
        | Error::AuthorityExpired { .. }
        | Error::Io { .. }
        | Error::Crypto { .. } => 1,
    }
}

fn init(args: Init) -> Result<String> {
    let names = list(&args.server_names);
    let done = AuthorityDir::init(
        &args.dir,
        &InitOptions {
            password: args.common.password()?,
            server_days: args.common.days,
            server_names: args.server_names,
        },
    )?;
    let mut report = String::new();
    line(
        &mut report,
        &format!("CA, good until {}", date(done.not_after)),
    );
    paths(&mut report, &done.files);
    issued(&mut report, &format!("server for {names}"), &done.server);
    let key = args.dir.join("ca-key.pem");
    line(
        &mut report,
        &format!(
            "keep {} off the servers: it signs everything",
            key.display()
        ),
    );
    Ok(report)
}

fn issue(args: Issue) -> Result<String> {
    let mut request = if args.server {
        let names = match args.name.as_str() {
            name if args.server_names.is_empty() => vec![server_name(name)?],
            _ => args.server_names,
        };
        Request::server(args.name, names)
    } else {
        Request::client(args.name)
    };
    request = request.validity(Validity::days(args.common.days)?);
    if let Some(uri) = args.san_uri {
        request = request.uri(uri);
    }
    let options = IssueOptions {
        password: args.common.password()?,
        replace: if args.force {
            Replace::Reissue
        } else {
            Replace::Refuse
        },
    };
    let done = AuthorityDir::open(&args.dir)?.issue(&request, &options)?;
    let mut report = String::new();
    let what = match request.role() {
        Role::Client => format!("client {}", request.name()),
        Role::Server(names) => format!("server {} for {}", request.name(), list(names)),
    };
    issued(&mut report, &what, &done);
    for serial in &done.still_valid {
        line(
            &mut report,
            &format!(
                "an older certificate stays valid until it expires, serial {serial}; \
                 to lock a name out, revoke it before issuing it again"
            ),
        );
    }
    Ok(report)
}

fn revoke(args: &Revoke) -> Result<String> {
    let mut report = String::new();
    match AuthorityDir::open(&args.dir)?.revoke(&args.name)? {
        Revoked::Already => line(&mut report, &format!("{} is already revoked", args.name)),
        Revoked::Now {
            crl,
            number,
            serials,
        } => {
            for serial in serials {
                line(
                    &mut report,
                    &format!("revoked {}, serial {serial}", args.name),
                );
            }
            paths(&mut report, &[crl]);
            line(
                &mut report,
                &format!(
                    "this is CRL number {number}; give it to every server and restart the server: \
                     until then {} is let in, and what it has open stays open",
                    args.name
                ),
            );
        }
    }
    Ok(report)
}

fn issued(report: &mut String, what: &str, folder: &IssuedFolder) {
    let until = date(folder.not_after);
    line(
        report,
        &format!("{what}, good until {until}, serial {}", folder.serial),
    );
    paths(report, &folder.files);
}

fn paths(report: &mut String, paths: &[PathBuf]) {
    for path in paths {
        line(report, &format!("  wrote {}", Path::display(path)));
    }
}

fn line(report: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(report, "{text}");
}

fn list(names: &[ServerName<'_>]) -> String {
    let names: Vec<_> = names.iter().map(ServerName::to_str).collect();
    names.join(", ")
}
