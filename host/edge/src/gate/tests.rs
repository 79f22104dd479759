//! Counting, and who goes.

use std::net::Ipv4Addr;

use futures_util::FutureExt as _;

use super::*;

fn gate(limits: GateLimits) -> Arc<Gate> {
    Gate::new(limits)
}

fn limits() -> GateLimits {
    GateLimits { connections_max: 3, connections_per_address_max: 2, requests_in_flight_max: 3 }
}

fn peer(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
}

#[test]
fn an_address_has_its_part_and_has_it_again_afterwards() {
    let gate = gate(limits());
    let (one, _two) = (gate.admit(peer(1)).expect("room"), gate.admit(peer(1)).expect("room"));
    assert!(gate.admit(peer(1)).is_none());
    assert!(gate.admit(peer(2)).is_some(), "another address is not meant");
    drop(one);
    assert!(gate.admit(peer(1)).is_some());
    assert_eq!(gate.addresses.lock().len(), 1, "who has gone is forgotten");
}

#[tokio::test(start_paused = true)]
async fn the_longest_idle_connection_goes_for_a_new_one_and_no_busy_one_does() {
    let gate = gate(limits());
    let mut open = Vec::new();
    for last in 1..=3 {
        let tie = gate.admit(peer(last)).expect("room");
        open.push((tie, gate.place().await));
    }
    // Nobody is idle: whoever comes waits, and nobody goes.
    assert!(tokio::time::timeout(PLACE_EVERY * 3, gate.place()).await.is_err());
    assert!(open.iter().all(|(tie, _)| !tie.shed.load(Ordering::Relaxed)));

    let start = Instant::now();
    assert!(!open[2].0.idle(start + Duration::from_secs(1)));
    assert!(!open[1].0.idle(start + Duration::from_secs(2)));
    let mut waiting = Box::pin(gate.place());
    assert!(waiting.as_mut().now_or_never().is_none());
    assert!(open[2].0.idle(start), "the longest idle one is told");
    assert!(!open[1].0.idle(start) && !open[0].0.shed.load(Ordering::Relaxed));
    drop(open.pop());
    let place = waiting.await;

    // One that has work again by then stays, and the next one goes.
    open[1].0.busy();
    assert!(!open[0].0.idle(Instant::now()));
    drop(tokio::time::timeout(PLACE_EVERY / 2, gate.place()).await);
    assert!(open[0].0.idle(start) && !open[1].0.shed.load(Ordering::Relaxed));
    drop(place);
}

#[test]
fn work_beyond_the_limit_is_told_to_come_back() {
    let gate = gate(limits());
    let tie = gate.admit(peer(1)).expect("room");
    let work: Vec<_> = (0..3).map(|_| tie.begin().expect("room")).collect();
    let problem = tie.begin().expect_err("too much");
    assert_eq!(problem.refusal, Refusal::Overloaded);
    let response = problem.into_response();
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].as_bytes()), (503, &b"1"[..]));
    assert!(!tie.is_free());
    drop(work);
    assert!(tie.is_free() && tie.begin().is_ok());
}

#[test]
fn one_connection_has_no_more_work_than_its_own_part() {
    let gate = gate(GateLimits { requests_in_flight_max: 10_000, ..limits() });
    let tie = gate.admit(peer(1)).expect("room");
    let work: Vec<_> = (0..WORK_PER_CONNECTION_MAX).map(|_| tie.begin().expect("room")).collect();
    assert!(tie.begin().is_err());
    assert!(gate.admit(peer(2)).expect("room").begin().is_ok(), "another connection is not meant");
    drop(work);
}

#[test]
fn a_refusal_is_for_its_own_request() {
    let gate = gate(limits());
    let tie = gate.admit(peer(1)).expect("room");
    let (one, two) = (tie.begin().expect("room"), tie.begin().expect("room"));
    tie.refuse(2, Fault::Fragment);
    tie.refuse(3, Fault::BadHead);
    assert!(one.refusal().is_none());
    let problem = two.refusal().expect("refused");
    assert_eq!(problem.refusal, Refusal::MalformedRequest);
    assert!(tie.begin().expect("room").refusal().is_none(), "the first refusal counts");
}

#[test]
fn whoever_was_turned_away_is_answered_before_the_next_is_at_hand() {
    let gate = gate(limits());
    let (tie, other) = (gate.admit(peer(1)).expect("room"), gate.admit(peer(2)).expect("room"));
    let work: Vec<_> = (0..3).map(|_| other.begin().expect("room")).collect();
    assert!(tie.begin().is_err());
    drop(work);
    assert!(!tie.is_ready_after(1), "the refusal is to be written still");
    drop(tie.begin().expect("room"));
    assert!(tie.is_ready_after(2));
}
