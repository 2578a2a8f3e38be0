//! A server of HTTP on a thread of its own that gives the answers it was told to, and keeps what it was asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::thread;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::run::{self, Ran};

/// The status of an answer that never comes; the connection breaks.
pub(crate) const LOST: u16 = 0;

/// What it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Method and path with its query.
    pub(crate) what: String,
    pub(crate) authorization: Option<String>,
    /// `null`: there is none.
    pub(crate) body: Value,
}

#[derive(Default)]
struct State {
    answers: Vec<(String, u16, String)>,
    asked: Vec<Asked>,
}

/// A server. It ends with the process.
pub(crate) struct HttpServer {
    url: String,
    state: Arc<Mutex<State>>,
}

impl HttpServer {
    /// One that answers these requests (method and path with its query); what is not among them is answered as by a
    /// listener that has no route for it.
    pub(crate) fn with(answers: &[(&str, u16, &str)]) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = state.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(serve(listener, served));
        });
        let url = format!("ws://127.0.0.1:{port}/storage/models");
        let server = Self { url, state };
        for (what, status, body) in answers {
            server.answer(what, *status, body);
        }
        server
    }

    /// The answer to this request from now on.
    pub(crate) fn answer(&self, what: &str, status: u16, body: &str) {
        let mut state = self.state.lock().unwrap();
        state.answers.retain(|(known, ..)| known != what);
        state
            .answers
            .push((what.to_owned(), status, body.to_owned()));
    }

    /// What it was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// The changes it was asked for since the last time, with their bodies.
    pub(crate) fn changes(&self) -> Vec<(String, Value)> {
        let asked = self.asked().into_iter();
        let changes = asked.filter(|asked| !asked.what.starts_with("GET "));
        changes.map(|asked| (asked.what, asked.body)).collect()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = run::command(arguments);
        command.args(["--danger-plaintext", "--url", &self.url]);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        run::finish(self.command(arguments).spawn().unwrap())
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<Mutex<State>>) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((tcp, _)) = listener.accept().await {
        let state = state.clone();
        let answer = service_fn(move |request| answer(state.clone(), request));
        let served = http1::Builder::new().serve_connection(TokioIo::new(tcp), answer);
        tokio::spawn(served);
    }
}

/// Fails where the answer is to be lost.
async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?;
    let body = body.to_bytes();
    let authorization = parts.headers.get(AUTHORIZATION);
    let asked = Asked {
        what: format!("{} {}", parts.method, parts.uri),
        authorization: authorization.map(|value| value.to_str().unwrap().to_owned()),
        body: match body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&body).unwrap(),
        },
    };
    let mut state = state.lock().unwrap();
    let known = state.answers.iter().find(|(what, ..)| *what == asked.what);
    let (status, text) = match known {
        Some((_, LOST, _)) => (LOST, String::new()),
        Some((_, status, body)) => (*status, body.clone()),
        None if parts.headers.contains_key(UPGRADE) => (401, "the token was revoked\n".to_owned()),
        None => (404, "there is nothing here\n".to_owned()),
    };
    state.asked.push(asked);
    if status == LOST {
        return Err(std::io::Error::other("lost"));
    }
    let answered: Result<_, Infallible> = Ok(Response::builder()
        .status(status)
        .body(Full::from(text))
        .unwrap());
    answered.map_err(|never| match never {})
}
