//! Clients that answer pings in their own way, frame by frame: a WebSocket library would answer each.

use std::time::Duration;

use storage_testkit::raw::in_time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;

use crate::house::{House, metadata, notification, until};

const TEXT: u8 = 1;
const PING: u8 = 9;
const PONG: u8 = 10;

struct Raw(TcpStream);

impl Raw {
    async fn connected(house: &House, address: &str) -> Self {
        let stream = TcpStream::connect(house.address()).await.unwrap();
        let url = format!("ws://{}/", house.address());
        let (socket, _) = client_async(url, stream).await.unwrap();
        // It has read nothing yet but the answer to the upgrade.
        let mut raw = Self(socket.into_inner());
        raw.send(TEXT, metadata("RAW", address).as_bytes()).await;
        let comes = async || house.robot(address).await["connected"] == true;
        until("it is connected", comes).await;
        raw
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match u8::try_from(payload.len()) {
            Ok(length) if length < 126 => frame.push(0x80 | length),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            }
        }
        // Masked with nothing.
        frame.extend([0; 4]);
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
    }

    /// Opcode and payload of the next frame.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        let reading = async {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).await.unwrap();
            let mut length = usize::from(head[1]);
            if length == 126 {
                length = usize::from(self.0.read_u16().await.unwrap());
            }
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.unwrap();
            (head[0] & 0x0f, payload)
        };
        in_time("a frame", reading).await
    }

    /// The next package, whatever pings are before it.
    async fn package(&mut self) -> String {
        loop {
            if let (TEXT, payload) = self.frame().await {
                return String::from_utf8(payload).unwrap();
            }
        }
    }
}

async fn forced(house: &House, package: &str) -> u64 {
    let job = house.trigger("AA", package, "31-12", "9:00").await;
    let (status, _) = house.ask("GET", &format!("/jobs/force/{job}")).await;
    assert_eq!(status, 200);
    job
}

/// As RFC 6455, section 5.5.3, allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_robot_that_answers_the_last_ping_alone_has_what_came_before_it() {
    let house = House::with(|config| config.robots.ping = Duration::from_millis(300)).await;
    let mut robot = Raw::connected(&house, "AA").await;
    let mut jobs = Vec::new();
    for n in 0..3 {
        jobs.push(forced(&house, &format!("p{n}")).await);
        assert_eq!(robot.package().await, notification(&format!("p{n}")));
    }
    // One behind each package, and then those that the connection sends when it is quiet.
    let mut pings = 0;
    let last = loop {
        let (opcode, payload) = robot.frame().await;
        pings += usize::from(opcode == PING);
        if pings == 3 {
            break payload;
        }
    };
    robot.send(PONG, &last).await;
    for job in jobs {
        house.arrives(job).await;
        assert_eq!(house.job(job).await["attempts"], 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_robot_that_answers_no_ping_is_sent_all_the_same_what_comes_later() {
    let house = House::with(|config| {
        config.robots.confirm = Duration::from_secs(5);
        config.robots.resends_max = 0;
        config.robots.ping = Duration::from_millis(300);
    })
    .await;
    let mut robot = Raw::connected(&house, "AA").await;
    let mut jobs = Vec::new();
    for n in 0..20 {
        jobs.push(forced(&house, &format!("p{n}")).await);
    }
    for n in 0..16 {
        assert_eq!(robot.package().await, notification(&format!("p{n}")));
    }
    // Its places are free again when there is no more time for the first ones to be answered.
    house.pass(5);
    for n in 16..20 {
        assert_eq!(robot.package().await, notification(&format!("p{n}")));
    }
    for job in &jobs[..16] {
        house.comes_to(*job, "Failed").await;
        let reason = house.job(*job).await["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("not acknowledged in time"), "{reason}");
    }
    // Pings that are answered confirm what came before them.
    while house.job(jobs[19]).await["confirmed"] != true {
        if let (PING, payload) = robot.frame().await {
            robot.send(PONG, &payload).await;
        }
    }
}
