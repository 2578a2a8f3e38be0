//! Rooms under fire: members are cut off and come back, the server is killed and started again, and each member has every message
//! exactly once, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{House, node};
use crate::load::MANY;

/// A quick look; `ROOMS_MEMBERS` and `ROOMS_SECONDS` say more, as scripts/soak does.
const MEMBERS: usize = 60;
const SECONDS: u64 = 6;
const POSTERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A member that comes back from wherever it was.
struct Member {
    address: String,
    token: String,
    /// The id of the last message, and all texts.
    last: Option<String>,
    heard: Vec<String>,
}

type Stream = tokio_tungstenite::WebSocketStream<TcpStream>;

impl Member {
    /// A socket in the room; `None`: not now.
    async fn connect(&self) -> Option<Stream> {
        use futures_util::SinkExt;
        let stream = TcpStream::connect(&self.address).await.ok()?;
        let uri = format!("ws://{}/chat", self.address);
        let (mut stream, _) = client_async(uri, stream).await.ok()?;
        let mut message = json!({});
        if let Some(last) = &self.last {
            message["Uuid"] = last.as_str().into();
        }
        let subscribe = json!({ "@type": "subscribe", "jwt": self.token });
        let join = json!({ "@type": "JOIN", "Room": node("n-1"), "Message": message });
        for said in [subscribe, join] {
            stream.send(Message::text(said.to_string())).await.ok()?;
        }
        Some(stream)
    }

    /// Hears until `end` is said, cut off now and then.
    async fn hear(&mut self, lifetime: Duration, end: &str) {
        loop {
            let Some(mut stream) = self.connect().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let cut = tokio::time::sleep(lifetime);
            tokio::pin!(cut);
            loop {
                let next = tokio::select! {
                    next = stream.next() => next,
                    // Without a word.
                    () = &mut cut => break,
                };
                let Some(Ok(message)) = next else {
                    break;
                };
                let Message::Text(text) = message else {
                    continue;
                };
                let frame: Value = serde_json::from_str(&text).unwrap();
                match frame["@type"].as_str() {
                    None => {
                        self.last = Some(frame["Uuid"].as_str().unwrap().to_owned());
                        self.heard
                            .push(frame["Message"].as_str().unwrap().to_owned());
                    }
                    Some("ROOM_UPDATE" | "resync") => {}
                    // A server that starts or ends.
                    Some(_) => break,
                }
                if self.heard.last().is_some_and(|text| text == end) {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_member_has_every_message_once_and_in_order_whatever_breaks() {
    let members = usize::try_from(number("ROOMS_MEMBERS", MEMBERS as u64)).unwrap();
    let seconds = Duration::from_secs(number("ROOMS_SECONDS", SECONDS));
    // When what breaks: `ROOMS_SEED=17` has it as the run that printed that.
    let seed = number("ROOMS_SEED", rand::random::<u32>().into());
    println!("ROOMS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let house = House::configured("grace = \"1s\"", MANY).await;
    let (ana, bob) = (house.token("ana").await, house.token("bob").await);
    let address = house.address.clone();
    let house = Arc::new(Mutex::new(house));
    let done = Arc::new(AtomicBool::new(false));
    let posted = Arc::new(AtomicUsize::new(0));
    let hearing: Vec<_> = (0..members)
        .map(|n| {
            let mut member = Member {
                address: address.clone(),
                token: if n % 2 == 0 { ana.clone() } else { bob.clone() },
                // From the very first one on, whenever it comes.
                last: Some("0".repeat(32)),
                heard: Vec::new(),
            };
            // Some are cut off often, some never.
            let lifetime = match n % 5 {
                0 => Duration::from_secs(3_600),
                _ => Duration::from_millis(random.random_range(200..1_500)),
            };
            tokio::spawn(async move {
                member.hear(lifetime, "the end").await;
                member.heard
            })
        })
        .collect();
    let posting = (0..POSTERS).map(|poster| {
        let (address, token, done) = (address.clone(), ana.clone(), done.clone());
        let posted = posted.clone();
        tokio::spawn(async move { post(poster, address, token, &done, &posted).await })
    });
    let posting: Vec<_> = posting.collect();
    let began = Instant::now();
    tokio::time::sleep(seconds.mul_f64(random.random_range(0.2..0.8))).await;
    // Killed, and started again on the same data.
    house.lock().await.server.restart();
    tokio::time::sleep(seconds.saturating_sub(began.elapsed())).await;
    done.store(true, Ordering::Relaxed);
    let acknowledged: Vec<Vec<String>> = join_all(posting)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    // The first and the last word are of one who is never cut off.
    let mut last = house.lock().await.chat("ana").await;
    last.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    let update = last.expect("ROOM_UPDATE").await;
    let room = update["Room"]["Uuid"].as_str().unwrap().to_owned();
    last.post(&room, "the end").await;
    let heard = tokio::time::timeout(PATIENCE, join_all(hearing))
        .await
        .unwrap();
    let heard: Vec<Vec<String>> = heard.into_iter().map(Result::unwrap).collect();
    let first = &heard[0];
    assert!(first.len() > POSTERS, "{}", first.len());
    for (n, other) in heard.iter().enumerate() {
        let differs = first.iter().zip(other).position(|(a, b)| a != b);
        assert_eq!((other.len(), differs), (first.len(), None), "member {n}");
    }
    let mut distinct = first.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), first.len(), "a message came twice");
    for (poster, texts) in acknowledged.iter().enumerate() {
        let mine = format!("{poster} ");
        let told = first.iter().filter(|text| text.starts_with(&mine));
        let told: Vec<&String> = told.collect();
        // In its order, and none that came back to it is missing.
        assert!(told.is_sorted_by_key(|text| text[2..].parse::<usize>().unwrap()));
        assert!(
            texts.iter().all(|text| told.contains(&text)),
            "poster {poster}"
        );
    }
    println!(
        "{members} members heard {} messages each, {} posted, in {:?}",
        first.len(),
        posted.load(Ordering::Relaxed),
        began.elapsed()
    );
}

/// Posts numbers, each once the one before came back; those that came back.
async fn post(
    poster: usize,
    address: String,
    token: String,
    done: &AtomicBool,
    posted: &AtomicUsize,
) -> Vec<String> {
    use futures_util::SinkExt;
    let mut acknowledged = Vec::new();
    let mut next = 0;
    let mut member = Member {
        address,
        token,
        last: None,
        heard: Vec::new(),
    };
    while !done.load(Ordering::Relaxed) {
        let Some(mut stream) = member.connect().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut room = None;
        let mut waits_for = None::<String>;
        while !done.load(Ordering::Relaxed) {
            if let (Some(room), None) = (&room, &waits_for) {
                // Whether the one before was posted when the connection broke is not known: each is a new one.
                let text = format!("{poster} {next}");
                next += 1;
                let post =
                    json!({ "@type": "POST", "Message": { "RoomUuid": room, "Message": text } });
                if stream.send(Message::text(post.to_string())).await.is_err() {
                    break;
                }
                posted.fetch_add(1, Ordering::Relaxed);
                waits_for = Some(text);
            }
            let waiting = tokio::time::timeout(Duration::from_millis(200), stream.next());
            let message = match waiting.await {
                Err(_) => continue,
                Ok(Some(Ok(message))) => message,
                Ok(_) => break,
            };
            let Message::Text(text) = message else {
                continue;
            };
            let frame: Value = serde_json::from_str(&text).unwrap();
            match frame["@type"].as_str() {
                Some("ROOM_UPDATE") => room = frame["Room"]["Uuid"].as_str().map(str::to_owned),
                None => {
                    member.last = Some(frame["Uuid"].as_str().unwrap().to_owned());
                    if waits_for.as_deref() == frame["Message"].as_str() {
                        acknowledged.extend(waits_for.take());
                    }
                }
                Some(_) => {}
            }
        }
    }
    acknowledged
}
