//! Passwords and tokens on their way in: from a file, from the terminal without showing there, or from stdin where that
//! is no terminal. Never from the command line, which every user of the machine can read.
//!
//! A newline at the end is no part of them. Invariant: the terminal shows again what is typed, however the asking ends; a
//! signal that is listened to ends it by dropping it.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use crate::escape;
use crate::failure::usage;
use crate::stdin;

/// The longest password that a server takes, in bytes.
const PASSWORD_BYTES_MAX: usize = 1024;
/// The longest token that a server takes, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;
/// So much is read: more than any of them has, with a newline.
const READ_BYTES_MAX: u64 = 8192;

/// The password of a user who logs in.
pub(crate) async fn password(user: &str, file: Option<&Path>) -> anyhow::Result<String> {
    match file {
        Some(file) => from_file(file, "the password", PASSWORD_BYTES_MAX),
        None if io::stdin().is_terminal() => ask(&format!("Password of {user}: ")).await,
        None => from_stdin("the password of --user", "--password-file").await,
    }
}

/// A password that is to be set; on a terminal it is typed twice.
pub(crate) async fn new_password(user: &str, file: Option<&Path>) -> anyhow::Result<String> {
    if let Some(file) = file {
        let password = from_file(file, "the new password", PASSWORD_BYTES_MAX)?;
        return one_line(password).map_err(|why| usage(format!("{}: {why}", file.display())));
    }
    if !io::stdin().is_terminal() {
        let password = from_stdin("the new password", "--new-password-file").await?;
        return one_line(password).map_err(|why| usage(format!("stdin: {why}")));
    }
    let first = ask(&format!("New password of {user}: ")).await?;
    match ask("The same once more: ").await? == first {
        true => Ok(first),
        false => Err(usage("the two passwords differ; nothing was changed")),
    }
}

/// Nobody could type more at a terminal or into a page: the file is some other one, or has a remark in it.
fn one_line(password: String) -> Result<String, &'static str> {
    match password.contains(['\n', '\r']) {
        false => Ok(password),
        true => Err("the new password has more than one line; it is to be on one"),
    }
}

/// The token in a file.
pub(crate) fn token(file: &Path) -> anyhow::Result<String> {
    let token = from_file(file, "the token", TOKEN_BYTES_MAX)?;
    match token.trim() {
        "" => Err(usage(format!("{}: the token is empty", file.display()))),
        token => Ok(token.to_owned()),
    }
}

fn from_file(file: &Path, what: &str, bytes_max: usize) -> anyhow::Result<String> {
    let name = file.display();
    let unreadable = |error| usage(format!("{name} cannot be read: {error}"));
    let file = File::open(file).map_err(unreadable)?;
    let bytes = bounded(file).map_err(unreadable)?;
    checked(bytes, what, bytes_max).map_err(|why| usage(format!("{name}: {why}")))
}

async fn from_stdin(what: &'static str, otherwise: &str) -> anyhow::Result<String> {
    stdin::take(what).map_err(|error| usage(format!("{error}; give {otherwise} FILE")))?;
    let read = tokio::task::spawn_blocking(|| bounded(io::stdin())).await?;
    let bytes = read.map_err(|error| usage(format!("{what}: stdin cannot be read: {error}")))?;
    checked(bytes, what, PASSWORD_BYTES_MAX)
        .map_err(|why| usage(format!("stdin: {why}; {otherwise} FILE is another way")))
}

fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Without the newline at its end.
fn checked(mut bytes: Vec<u8>, what: &str, bytes_max: usize) -> Result<String, String> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    // Before it is looked at: a long one may be cut within a character.
    if bytes.len() > bytes_max {
        return Err(format!("{what} is longer than {bytes_max} bytes"));
    }
    match String::from_utf8(bytes) {
        Ok(secret) if secret.is_empty() => Err(format!("{what} is empty")),
        Ok(secret) => Ok(secret),
        Err(_) => Err(format!("{what} is no UTF-8 text")),
    }
}

/// Asks at the terminal that stdin is. Cancel safe: the terminal is as before then; a line that is typed later is lost.
async fn ask(question: &str) -> anyhow::Result<String> {
    let failed = |error: io::Error| usage(format!("the terminal cannot be asked: {error}"));
    let hidden = Hidden::new().map_err(failed)?;
    let mut stderr = io::stderr();
    let asked = write!(stderr, "{}", escape::message(question)).and_then(|()| stderr.flush());
    asked.map_err(failed)?;
    let read = tokio::task::spawn_blocking(|| {
        let mut line = Vec::new();
        io::stdin()
            .lock()
            .read_until(b'\n', &mut line)
            .map(|_| line)
    });
    let line = read.await?;
    drop(hidden);
    // The newline that was typed did not show either.
    let _ = writeln!(stderr);
    checked(line.map_err(failed)?, "the password", PASSWORD_BYTES_MAX).map_err(usage)
}

/// While it is there, stdin's terminal does not show what is typed.
#[cfg(unix)]
struct Hidden(rustix::termios::Termios);

#[cfg(unix)]
impl Hidden {
    fn new() -> io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Now, &hidden)?;
        Ok(Self(before))
    }
}

#[cfg(unix)]
impl Drop for Hidden {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        // A terminal that is gone shows nothing anyway.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(not(unix))]
struct Hidden;

#[cfg(not(unix))]
impl Hidden {
    fn new() -> io::Result<Self> {
        Err(io::Error::other(
            "on this system what is typed would show; give the password in a file",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_is_cut_and_nothing_else() {
        let cut = |bytes: &[u8]| checked(bytes.to_vec(), "it", TOKEN_BYTES_MAX);
        for (bytes, secret) in [
            (&b"a"[..], "a"),
            (b"a\n", "a"),
            (b"a\r\n", "a"),
            (b"a\n\n", "a\n"),
            (b" a ", " a "),
            (b"a\r", "a\r"),
        ] {
            assert_eq!(cut(bytes).as_deref(), Ok(secret));
        }
        assert_eq!(cut(b"\r\n").unwrap_err(), "it is empty");
        assert_eq!(cut(b"\xff").unwrap_err(), "it is no UTF-8 text");
        assert!(cut(&[b'a'; 4096]).is_ok());
        assert!(cut(&[b'a'; 4097]).unwrap_err().contains("longer than 4096"));
    }
}
