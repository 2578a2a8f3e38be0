//! The `storage` command: one file per sub-command, and what they share.
//!
//! Here: the program's arguments and its way from them to an exit code. Arguments and files are checked before the
//! connection is made, so that a usage error costs nothing; the connection is closed on every way out.
//!
//! Invariant: results go to stdout, everything else to stderr, and the exit code is `failure::exit_code`'s.

mod access;
mod api;
mod app;
mod batches;
mod commit;
mod completions;
mod content;
mod deliver;
mod digest;
mod escape;
mod export;
mod failure;
mod get;
mod globals;
mod import;
mod job;
mod journal;
mod json;
mod manifests;
mod output;
mod ping;
mod put;
mod quota;
mod quotes;
mod replica;
mod rm;
mod role;
mod room;
mod rows;
mod scan;
mod secret;
mod sending;
mod size;
mod stdin;
mod sweep;
mod tally;
mod target;
mod template;
mod text;
mod token;
mod unpack;
mod user;
mod warnings;
mod watch;
mod whoami;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Parser, Subcommand};

use app::App;
use failure::{Exit, Interrupted};
use globals::Globals;
use output::Output;

const EXAMPLES: &str = "\
Keys and values are UTF-8 text, @FILE (the file's bytes; @@ for a literal @) or - (stdin, once).

Examples:
  export STORAGE_URL=wss://localhost:7443/storage/models STORAGE_CERTS=certs/dev STORAGE_IDENTITY=alice
  storage put greeting hello
  storage get greeting
  storage put weights/1 @weights.bin --ttl 1h
  storage put model @model.tar                 # of any size
  storage --json scan --prefix weights/ --keys-only
  storage import weather.csv.gz --key 'weather/{origin}/{time_hour}'
  storage watch --prefix weather/ --json
  storage room history NODE n-1
  storage replica --prefix weather/ --dir weather.copy
  storage --url ws://localhost:7000/storage/models --danger-plaintext ping
  storage job add LAB-3 hello --at 'tomorrow 9:00'
  storage deliver LAB-3
  storage access grant user:ann models read,write
  storage quota set ann --principal user:ann --commits-per-second 100
  storage --user ann --ca certs/dev/alice/ca.pem get greeting

Exit codes:
  0    done
  1    refused: a check failed, a job cannot be what was asked, a key in `get` is missing, a position in `watch` is no longer served, `access explain` says
       denied, a user, role, rule, quota or token is not there (or is, for `user add`); a quota of stored data is used up
  2    wrong usage or configuration, or a local file that cannot be read or written
  3    not reachable, not authenticated, not allowed, or not served now; nothing was executed
  4    outcome unknown: a commit or another change was sent, and no answer came
  130  interrupted (Ctrl-C, SIGTERM) before it was done; a watch and a replica end with 0";

/// How long the runtime may take to end; what hangs beyond that (a read of stdin) is left behind.
const RUNTIME_END_TIMEOUT: Duration = Duration::from_millis(100);

/// Reads and writes a keyspace of a storage-sync server.
#[derive(Debug, Parser)]
#[command(name = "storage", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Put(put::Put),
    Get(get::Get),
    Rm(rm::Rm),
    Scan(scan::Scan),
    Commit(commit::Commit),
    Import(import::Import),
    Export(export::Export),
    Sweep(sweep::Sweep),
    Job(job::Job),
    Watch(watch::Watch),
    Replica(replica::ReplicaCommand),
    Deliver(deliver::Deliver),
    Digest(digest::Digest),
    Ping(ping::Ping),
    Whoami(whoami::Whoami),
    Access(access::Access),
    Role(role::Role),
    Room(room::RoomCommand),
    Quota(quota::Quota),
    User(user::User),
    Token(token::Token),
    Completions(completions::Completions),
}

/// Parses the process's arguments, does what they say and reports; the exit code is for `main` to return.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let app = App::new(cli.globals);
    let done = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| anyhow!("the runtime cannot be started: {error}"))
        .and_then(|runtime| {
            let done = runtime.block_on(run(cli.command, &app));
            runtime.shutdown_timeout(RUNTIME_END_TIMEOUT);
            done
        });
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            failure::report(&error, app.wrote());
            failure::exit_code(&error).into()
        }
    }
}

/// Runs the command and closes the connection, unless it is told twice to end.
async fn run(command: Command, app: &App) -> anyhow::Result<Exit> {
    let in_order = async {
        let mut out = Output::stdout();
        let done = Box::pin(dispatch(command, app, &mut out)).await;
        // What was found before a failure is a result too. An earlier error says more than that of the flush.
        let flushed = out.flush();
        app.close().await;
        done.and_then(|exit| flushed.map(|()| exit))
    };
    tokio::select! {
        biased;
        done = in_order => done,
        () = app.abort.cancelled() => Err(Interrupted::new(app.outcome_if_ended()).into()),
    }
}

async fn dispatch(command: Command, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
    // These stop in order by themselves.
    let stops_in_order = match &command {
        Command::Import(_) | Command::Watch(_) | Command::Replica(_) => true,
        Command::Room(room) => room.stops_in_order(),
        _ => false,
    };
    let work = async {
        match command {
            Command::Put(put) => put.run(app, out).await,
            Command::Get(get) => get.run(app, out).await,
            Command::Rm(rm) => rm.run(app, out).await,
            Command::Scan(scan) => scan.run(app, out).await,
            Command::Commit(commit) => commit.run(app, out).await,
            Command::Import(import) => import.run(app, out).await,
            Command::Export(export) => export.run(app, out).await,
            Command::Sweep(sweep) => sweep.run(app, out).await,
            Command::Job(job) => job.run(app, out).await,
            Command::Watch(watch) => watch.run(app, out).await,
            Command::Replica(replica) => replica.run(app, out).await,
            Command::Deliver(deliver) => deliver.run(app, out).await,
            Command::Digest(digest) => digest.run(app, out).await,
            Command::Ping(ping) => ping.run(app, out).await,
            Command::Whoami(whoami) => whoami.run(app, out).await,
            Command::Access(access) => access.run(app, out).await,
            Command::Role(role) => role.run(app, out).await,
            Command::Room(room) => room.run(app, out).await,
            Command::Quota(quota) => quota.run(app, out).await,
            Command::User(user) => user.run(app, out).await,
            Command::Token(token) => token.run(app, out).await,
            Command::Completions(completions) => completions.run(out),
        }
    };
    if stops_in_order {
        work.await
    } else {
        app.unless_interrupted(work).await
    }
}

/// Tells people something, on one line that does nothing to a terminal. A closed stderr must not end what goes on.
fn tell(text: impl std::fmt::Display) {
    let text = text.to_string();
    let _ = writeln!(std::io::stderr(), "{}", escape::message(&text));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
