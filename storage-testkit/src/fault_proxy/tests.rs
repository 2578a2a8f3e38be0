//! Each fault, between a peer that asks and one that answers each byte with the next.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);
/// Long enough that what was going to come has come.
const A_WHILE: Duration = Duration::from_millis(100);

/// A server that answers each byte by one more than it, and counts what it got.
async fn answering() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let got = Arc::new(AtomicUsize::new(0));
    let count = got.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                while let Ok(byte) = socket.read_u8().await {
                    count.fetch_add(1, Ordering::SeqCst);
                    if socket.write_u8(byte.wrapping_add(1)).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, got)
}

async fn connected() -> (FaultProxy, TcpStream, Arc<AtomicUsize>) {
    let (upstream, got) = answering().await;
    let proxy = FaultProxy::start(upstream, 1).await.unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut client).await.unwrap(), 8);
    (proxy, client, got)
}

async fn ask(client: &mut TcpStream) -> std::io::Result<u8> {
    client.write_u8(7).await?;
    timeout(SOON, client.read_u8()).await.unwrap()
}

#[tokio::test]
async fn a_cut_is_an_end_and_a_reset_is_a_reset() {
    let (proxy, mut client, _) = connected().await;
    proxy.apply(Fault::Cut, Scope::All);
    let ended = timeout(SOON, client.read_u8()).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    let (proxy, mut client, _) = connected().await;
    proxy.apply(Fault::Reset, Scope::One);
    let ended = timeout(SOON, client.read_u8()).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.counts(), BTreeMap::from([("reset", 1)]));
}

#[tokio::test]
async fn half_open_swallows_and_a_heal_resets() {
    let (proxy, mut client, got) = connected().await;
    proxy.apply(Fault::HalfOpen, Scope::All);
    client.write_u8(7).await.unwrap();
    assert!(timeout(A_WHILE, client.read_u8()).await.is_err());
    assert_eq!(got.load(Ordering::SeqCst), 1);
    proxy.heal();
    let ended = timeout(SOON, client.read_u8()).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // A new one is as good as ever.
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut client).await.unwrap(), 8);
}

#[tokio::test]
async fn one_direction_can_be_lost() {
    let (proxy, mut client, got) = connected().await;
    proxy.apply(Fault::Drop(Direction::Down), Scope::All);
    client.write_u8(7).await.unwrap();
    assert!(timeout(A_WHILE, client.read_u8()).await.is_err());
    assert_eq!(
        got.load(Ordering::SeqCst),
        2,
        "it went up, and its answer was lost"
    );
}

#[tokio::test]
async fn a_pause_delays_and_loses_nothing() {
    let (proxy, mut client, _) = connected().await;
    proxy.apply(Fault::Pause, Scope::All);
    client.write_u8(1).await.unwrap();
    assert!(timeout(A_WHILE, client.read_u8()).await.is_err());
    proxy.heal();
    assert_eq!(timeout(SOON, client.read_u8()).await.unwrap().unwrap(), 2);
}

#[tokio::test]
async fn a_cut_behind_a_request_lets_it_be_carried_out() {
    let (proxy, mut client, got) = connected().await;
    proxy.apply(Fault::CutAfterRequest, Scope::All);
    assert!(ask(&mut client).await.is_err());
    let arrived = async {
        while got.load(Ordering::SeqCst) < 2 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, arrived).await.unwrap();
}

#[tokio::test]
async fn a_cut_before_an_answer_loses_it() {
    let (proxy, mut client, got) = connected().await;
    proxy.apply(Fault::CutBeforeAnswer, Scope::All);
    assert!(ask(&mut client).await.is_err());
    assert_eq!(got.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn delay_and_throttle_take_time() {
    let (proxy, mut client, _) = connected().await;
    let by = Duration::from_millis(40);
    let jitter = Duration::ZERO;
    proxy.apply(Fault::Delay { by, jitter }, Scope::All);
    let began = Instant::now();
    ask(&mut client).await.unwrap();
    assert!(began.elapsed() >= 2 * by);
    proxy.heal();
    proxy.apply(
        Fault::Throttle {
            bytes_per_second: 20,
        },
        Scope::All,
    );
    let began = Instant::now();
    for _ in 0..3 {
        ask(&mut client).await.unwrap();
    }
    assert!(began.elapsed() >= 2 * Duration::from_millis(50));
}

#[tokio::test]
async fn refused_for_a_while_and_then_taken() {
    let (proxy, _client, _) = connected().await;
    let during = Duration::from_millis(150);
    proxy.apply(Fault::Refuse { during }, Scope::All);
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(ask(&mut refused).await.is_err());
    sleep(during).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut client).await.unwrap(), 8);
}

#[tokio::test]
async fn the_upstream_can_change() {
    let (proxy, _client, _) = connected().await;
    let (other, got) = answering().await;
    proxy.set_upstream(other);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    ask(&mut client).await.unwrap();
    assert_eq!(got.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn dropping_it_ends_its_connections() {
    let (proxy, mut client, _) = connected().await;
    let address = proxy.address();
    assert_eq!(proxy.open(), 1);
    drop(proxy);
    assert!(timeout(SOON, client.read_u8()).await.unwrap().is_err());
    assert!(TcpStream::connect(address).await.is_err());
}

#[test]
fn a_seed_makes_one_plan_and_all_kinds_come() {
    let plan =
        |seed| FaultPlan::from_seed(seed, Duration::from_secs(1), Duration::from_millis(100));
    assert_eq!(plan(5), plan(5));
    assert_ne!(plan(5), plan(6));
    let mut kinds = BTreeMap::new();
    for seed in 0..200 {
        for (_, step) in plan(seed).steps {
            if let Step::Make(fault, _) = step {
                *kinds.entry(fault.kind()).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(kinds.len(), 11, "{kinds:?}");
}
