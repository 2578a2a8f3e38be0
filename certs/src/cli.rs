//! The command line of `storage-certs`: arguments, what each command does, its report, exit codes.
//!
//! Others script against it: names, files and exit codes change only with a word in the changelog.

mod show;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use rustls_pki_types::ServerName;

use crate::folder::{
    AuthorityDir, InitOptions, IssueOptions, IssuedFolder, KeyChoice, Older, RenewOptions, Replace,
    Revoked,
};
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
  Who there is, until when, revoked or not:
    storage-certs show certs
  Renew before it expires, with the same names:
    storage-certs renew laptop --dir certs
  Lock a client out; then give the new certs/crl.pem to the servers:
    storage-certs revoke laptop --dir certs

Exit codes: 0 done, 1 refused (exists, unknown name) or failed, 2 usage or bad input.
Of show: 0 all can be used, 1 something is expired or cannot be used, 2 usage or bad input.";

/// Makes a certificate authority; issues, renews, shows and revokes credentials for mutual TLS.
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
    /// Issue a new certificate for NAME, with the names of the one it has
    ///
    /// Names, principal and use stay; serial number, dates and key are new. cert.pem, key.pem and
    /// keystore.p12, if it is there, are replaced in DIR/NAME; ca.pem and truststore.p12 are not
    /// touched. A server that runs takes the new files within seconds. A client's folder has to be
    /// handed over, as with issue.
    ///
    /// A crash at any moment leaves a pair that works. The old certificate stays valid until its
    /// end, unless --revoke-old is given. A revoked or unknown NAME is refused, and so is a
    /// certificate that would outlive the CA.
    Renew(Renew),
    /// Show who has a certificate, until when, and whether it is revoked
    ///
    /// Of a folder of certificates (the CA, servers and clients), of the folder of one credential,
    /// or of a PEM file. Needs no CA key, changes nothing, and never prints a key.
    ///
    /// Warns from 30 days before the end on. Exit code 1 if something is expired, not yet valid, or
    /// cannot be used: a key of another certificate, a file that cannot be read, a crl.pem that is
    /// damaged or by another CA. What is revoked counts only if it was asked for by itself.
    Show(show::Show),
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
struct Renew {
    /// Name of the peer
    name: Name,
    /// Folder of the CA
    #[arg(long)]
    dir: PathBuf,
    /// Days the new certificate is good for; default: as many as the one before
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(crate::DAYS_MAX)))]
    days: Option<u32>,
    /// Keep the key, for peers that pin it or have it elsewhere; default: a new key, so that a copy
    /// of the old one is of no use for long
    #[arg(long)]
    reuse_key: bool,
    /// Add the older certificates of NAME to DIR/crl.pem once the new one is written; until it has
    /// its new folder, the peer is locked out by servers that have the new crl.pem
    #[arg(long)]
    revoke_old: bool,
    /// File whose first line is the password that keystore.p12 has and keeps; default: the one in
    /// the file keystore-password beside it
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
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

/// What a command ended with.
#[derive(Debug)]
pub struct Report {
    /// For standard output.
    pub text: String,
    /// 0, or what `show` has to say of what it found.
    pub exit_code: u8,
}

/// Runs a command.
///
/// # Errors
/// Those of [`AuthorityDir`] and [`Password::from_file`].
pub fn run(cli: Cli) -> Result<Report> {
    let text = match cli.command {
        Command::Init(args) => init(args)?,
        Command::Issue(args) => issue(args)?,
        Command::Renew(args) => renew(args)?,
        Command::Revoke(args) => revoke(&args)?,
        Command::Show(args) => return show::show(&args),
    };
    Ok(Report { text, exit_code: 0 })
}

/// 2 for bad input, 1 for a refusal or a failure; clap itself uses 2.
pub fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Invalid { .. } | Error::Malformed { .. } => 2,
        Error::Exists { .. }
        | Error::UnknownName { .. }
        | Error::NoAuthority { .. }
        | Error::NoAuthorityKey { .. }
        | Error::Revoked { .. }
        | Error::AuthorityEndsFirst { .. }
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

fn renew(args: Renew) -> Result<String> {
    let options = RenewOptions {
        days: args.days,
        key: if args.reuse_key {
            KeyChoice::Reuse
        } else {
            KeyChoice::New
        },
        older: if args.revoke_old {
            Older::Revoke
        } else {
            Older::Keep
        },
        password: args
            .password_file
            .as_ref()
            .map(Password::from_file)
            .transpose()?,
    };
    let done = AuthorityDir::open(&args.dir)?.renew(&args.name, &options)?;
    let mut report = String::new();
    let kind = if done.is_server { "server" } else { "client" };
    let key = if args.reuse_key { "the same" } else { "a new" };
    let mut what = format!("renewed {kind} {} with {key} key", args.name);
    if !done.names.is_empty() {
        what += &format!(", for {}", done.names.join(", "));
    }
    issued(&mut report, &what, &done.folder);
    for serial in &done.folder.still_valid {
        line(
            &mut report,
            &format!(
                "an older certificate stays valid until it expires, serial {serial}; \
                 --revoke-old would have revoked it"
            ),
        );
    }
    if let Some(Revoked::Now {
        crl,
        number,
        serials,
    }) = &done.revoked
    {
        for serial in serials {
            line(
                &mut report,
                &format!("revoked the older certificate, serial {serial}"),
            );
        }
        paths(&mut report, std::slice::from_ref(crl));
        line(
            &mut report,
            &format!("this is CRL number {number}; give it to every server"),
        );
    }
    let folder = done.folder.path.display();
    line(
        &mut report,
        &if done.is_server {
            format!("a server that runs with {folder} takes the new files within seconds")
        } else {
            format!("hand {folder} over to the peer")
        },
    );
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
                    "this is CRL number {number}; give it to every server, which closes what {} has open \
                     within seconds: until then it is let in",
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
