//! Who gets a place, without sockets.

use tokio::sync::oneshot;

use super::*;

const A: &str = "192.0.2.1";
const B: &str = "192.0.2.2";

fn handshakes(max: usize, connections: usize) -> Arc<Handshakes> {
    Handshakes::new(max, &Connections::new(connections, 1), 0)
}

async fn enter(handshakes: &Arc<Handshakes>, address: &str) -> Result<Place, NoConnection> {
    let entering = handshakes.enter(address.parse().unwrap());
    let entered = tokio::time::timeout(Duration::from_secs(60), entering).await;
    entered.expect("nobody waits for ever")
}

/// A connection of which nothing comes; tells when it had to go.
async fn silent(handshakes: &Arc<Handshakes>, address: &str) -> oneshot::Receiver<()> {
    let place = enter(handshakes, address).await.unwrap();
    let (gone, is_gone) = oneshot::channel();
    tokio::spawn(async move {
        let told = place
            .unless_asked_to_leave(std::future::pending::<()>())
            .await;
        assert!(told.is_none());
        drop(place);
        let _ = gone.send(());
    });
    is_gone
}

/// The same, at work: what its peer is waited for never lasts.
fn at_work(place: &Place) {
    place.seat().read(true);
}

#[tokio::test]
async fn the_oldest_silent_one_makes_room() {
    let handshakes = handshakes(3, 100);
    let first = silent(&handshakes, A).await;
    let mut second = silent(&handshakes, A).await;
    let busy = enter(&handshakes, A).await.unwrap();
    at_work(&busy);
    let newcomer = enter(&handshakes, A).await.unwrap();
    first.await.unwrap();
    assert!(second.try_recv().is_err(), "one is enough");
    drop((busy, newcomer));
}

#[tokio::test]
async fn the_address_with_the_most_makes_room_for_another_even_if_it_is_at_work() {
    let handshakes = handshakes(3, 100);
    let mut places = Vec::new();
    for _ in 0..2 {
        let place = enter(&handshakes, A).await.unwrap();
        at_work(&place);
        places.push(place);
    }
    let of_b = enter(&handshakes, B).await.unwrap();
    at_work(&of_b);
    let oldest = places.remove(0);
    let leaving = tokio::spawn(async move {
        let told = oldest
            .unless_asked_to_leave(std::future::pending::<()>())
            .await;
        told.is_none()
    });
    let third = enter(&handshakes, "2001:db8::1").await.unwrap();
    assert!(leaving.await.unwrap());
    drop((places, of_b, third));
}

#[tokio::test]
async fn who_spoke_meanwhile_stays() {
    let handshakes = handshakes(2, 100);
    let speaks = enter(&handshakes, A).await.unwrap();
    let seat = speaks.seat().clone();
    let (end, ended) = oneshot::channel::<()>();
    let stays = tokio::spawn(async move {
        // Silent until it is asked to leave; only then something is there from the peer.
        let (mut ended, mut was_polled) = (Box::pin(ended), false);
        let work = std::future::poll_fn(|cx| {
            if std::mem::replace(&mut was_polled, true) {
                seat.read(true);
            }
            ended.as_mut().poll(cx)
        });
        speaks.unless_asked_to_leave(work).await.is_some()
    });
    let silent = silent(&handshakes, A).await;
    let newcomer = enter(&handshakes, A).await.unwrap();
    // So the next one had to.
    silent.await.unwrap();
    end.send(()).unwrap();
    assert!(stays.await.unwrap());
    drop(newcomer);
}

#[tokio::test]
async fn places_come_back() {
    let handshakes = handshakes(1, 100);
    let place = enter(&handshakes, A).await.unwrap();
    at_work(&place);
    let waiting = handshakes.clone();
    let next = tokio::spawn(async move { enter(&waiting, A).await.map(drop) });
    tokio::task::yield_now().await;
    drop(place);
    next.await.unwrap().unwrap();
    let state = handshakes.state.lock().unwrap();
    assert!(state.seats.is_empty() && state.of_address.is_empty());
    drop(state);
    assert_eq!(handshakes.connections.open(), 0);
}

#[tokio::test]
async fn a_session_gives_its_place_back_and_keeps_its_connection() {
    let handshakes = handshakes(8, 4);
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let place = enter(&handshakes, A).await.unwrap();
        place.settle();
        sessions.push(place);
    }
    assert_eq!(handshakes.connections.open(), 4);
    assert_eq!(enter(&handshakes, B).await.unwrap_err(), NoConnection);
    sessions.pop();
    drop(enter(&handshakes, B).await.unwrap());
}

#[tokio::test]
async fn where_connections_are_the_bound_a_silent_one_makes_room_too() {
    let handshakes = handshakes(8, 4);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let place = enter(&handshakes, A).await.unwrap();
        place.settle();
        sessions.push(place);
    }
    let silent = silent(&handshakes, A).await;
    // Refused as long as the other may still say something.
    let entered = loop {
        match enter(&handshakes, A).await {
            Ok(place) => break place,
            Err(NoConnection) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    };
    silent.await.unwrap();
    drop((entered, sessions));
}

#[test]
fn no_listener_can_take_all_connections() {
    let connections = Connections::new(100, 2);
    let first: Vec<_> = std::iter::from_fn(|| connections.take(0)).collect();
    assert_eq!(first.len(), 100 - 12);
    let second: Vec<_> = std::iter::from_fn(|| connections.take(1)).collect();
    assert_eq!((second.len(), connections.open()), (12, 100));
    drop(first);
    let more: Vec<_> = std::iter::from_fn(|| connections.take(1)).collect();
    assert_eq!(more.len(), 100 - 12 - 12);
}
