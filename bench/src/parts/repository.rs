//! What the gateway `repository` does: uploads of small files, and the server's memory while a large one comes.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use storage_testkit::harness::{Launch, ServerProcess};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{CELL, Figures};

const SMALL_BYTES: usize = 10 << 10;
const MIB: usize = 1 << 20;
const LARGE_MIB: usize = 1024;

pub(crate) async fn repository() {
    println!("\nrepository: uploads of 10 KiB files with a document each, no TLS");
    for durability in ["sync", "os"] {
        for at_once in [1, 8] {
            let house = House::new(durability);
            let figures = house.uploads(at_once).await;
            println!("  durability {durability:>4}, {at_once} at once   {figures}");
        }
    }
    let house = House::new("os");
    house.upload_large(8).await;
    let (before, peak_before) = (
        house.server.resident_bytes(),
        house.server.peak_resident_bytes(),
    );
    let began = Instant::now();
    house.upload_large(LARGE_MIB).await;
    let rate = LARGE_MIB as f64 / began.elapsed().as_secs_f64();
    let peak = house.server.peak_resident_bytes();
    println!(
        "  a file of 1 GiB: {rate:.0} MiB/s; resident memory {} MiB before (at most {}), at most {} MiB meanwhile",
        before >> 20,
        peak_before >> 20,
        peak >> 20
    );
}

struct House {
    server: ServerProcess,
    _folder: TempDir,
}

impl House {
    fn new(durability: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (file, data) = (
            folder.path().join("server.toml"),
            folder.path().join("data"),
        );
        let config = format!(
            "data = \"{}\"\ndurability = \"{durability}\"\n[repository]\nopen = true\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             tls = \"off\"\ngateways = [\"repository\"]\nauth = [\"anonymous\"]\n",
            data.display()
        );
        std::fs::write(&file, config).unwrap();
        let launched = ServerProcess::launch(Launch {
            arguments: vec!["--config".to_owned(), file.display().to_string()],
            ..Launch::default()
        });
        Self {
            server: launched.expect("it listens"),
            _folder: folder,
        }
    }

    async fn connect(&self) -> TcpStream {
        let url = self.server.url("repository");
        let stream = TcpStream::connect(url.split_once("://").unwrap().1)
            .await
            .unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// So many connections, each of which uploads one file after the other.
    async fn uploads(&self, at_once: usize) -> Figures {
        let file: Vec<u8> = super::value(SMALL_BYTES).to_vec();
        let began = Instant::now();
        let lanes = (0..at_once).map(|lane| {
            let file = file.clone();
            async move {
                let mut stream = self.connect().await;
                let mut took = Vec::new();
                while began.elapsed() < CELL {
                    let name = format!("{lane}-{}", took.len());
                    let sent = Instant::now();
                    stream
                        .write_all(&request(&name, file.len(), &file))
                        .await
                        .unwrap();
                    answered(&mut stream).await;
                    took.push(sent.elapsed());
                }
                took
            }
        });
        let mut took: Vec<Duration> = join_all(lanes).await.concat();
        let elapsed = began.elapsed();
        took.sort();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        Figures {
            per_second: took.len() as f64 / elapsed.as_secs_f64(),
            p50: at(50),
            p99: at(99),
        }
    }

    async fn upload_large(&self, mib: usize) {
        let mut stream = self.connect().await;
        let whole = request(&format!("large-{mib}"), mib * MIB, b"");
        let (start, end) = whole.split_at(whole.len() - END.len());
        stream.write_all(start).await.unwrap();
        let piece = super::value(MIB);
        for _ in 0..mib {
            stream.write_all(&piece).await.unwrap();
        }
        stream.write_all(end).await.unwrap();
        answered(&mut stream).await;
    }
}

/// Before the file.
const START: &str = "--b\r\nContent-Disposition: form-data; name=\"UploadJSON\"; filename=\"m\"\r\n\r\n{\"kind\":\"bench\",\"n\":1}\r\n\
    --b\r\nContent-Disposition: form-data; name=\"UploadFile\"; filename=\"f\"\r\n\r\n";
/// Behind it.
const END: &str = "\r\n--b--\r\n";

/// A request for an upload of a file of `bytes`, of which this is the content, or the rest is sent by the caller.
fn request(name: &str, bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = START.len() + bytes + END.len();
    let head = format!(
        "POST /upload?project=bench&source=s&Path=&DestFileName={name} HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), START.as_bytes(), content, END.as_bytes()].concat()
}

async fn answered(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"UPLOAD: succeed\n") {
        let count = stream.read_buf(&mut answer).await.unwrap();
        assert_ne!(count, 0, "{:?}", answer.escape_ascii().to_string());
    }
}
