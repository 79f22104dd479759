//! What a region on PostgreSQL takes in, beside the least that a database can be asked to do for it.
//!
//! `cargo test --release -p souk-region --lib a_bare_loop -- --ignored --nocapture` on a quiet machine.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use super::server::Server;
use super::*;

const NODES: u32 = 8;
/// Operations of one batch, each about another cart: what a node sends on when sixty shoppers add a line at once.
const BATCH: usize = 64;
/// Lines of a cart before there is another, as in the data (median 9, p95 62).
const LINES: usize = 20;
const BATCHES: usize = 3 * LINES;
const ROUNDS: u32 = 3;

/// What one node does in one round.
struct Work {
    /// Batches of operations.
    sent: Vec<Vec<Vec<u8>>>,
    /// The carts that each batch leaves, as they are stored.
    left: Vec<Vec<(CartId, Vec<u8>)>>,
}

fn work(node: u32, round: u32, clock: &mut u64) -> Work {
    let (mut sent, mut left) = (Vec::new(), Vec::new());
    let mut carts = Vec::new();
    for batch in 0..BATCHES {
        if batch.is_multiple_of(LINES) {
            let id = |n: usize| {
                CartId((u128::from(node * ROUNDS + round) << 64 | (batch * BATCH + n) as u128).to_be_bytes())
            };
            carts = (0..BATCH).map(|n| (id(n), Cart::new())).collect::<Vec<_>>();
        }
        let (mut ops, mut rows) = (Vec::new(), Vec::new());
        for (cart, state) in &mut carts {
            *clock += 1;
            let mut edit = state.edit(NodeId(node), Epoch(1), Hlc(*clock));
            let line = LineKey::of(sku(&format!("SKU-{}", batch % LINES)));
            edit.add(Entry::Line(line), 1).unwrap();
            let delta = edit.finish();
            state.apply(&delta);
            ops.push(Operation::Cart { site: site(), cart: *cart, at_ms: *clock, delta }.to_bytes());
            rows.push((*cart, state.to_bytes()));
        }
        sent.push(ops);
        left.push(rows);
    }
    Work { sent, left }
}

/// The same rows, written by one statement a batch in a transaction of each node's own, under its mark.
async fn bare(client: &Client, node: u32, first: u64, batches: Vec<Vec<(CartId, Vec<u8>)>>) {
    let lock = client.prepare("SELECT hwm FROM bare_cursor WHERE node = $1 FOR UPDATE").await.unwrap();
    let put = "INSERT INTO bare_cart (site, cart, state, digest, updated_ms)
               SELECT $1, * FROM unnest($2::bytea[], $3::bytea[], $4::bytea[], $5::int8[])
               ON CONFLICT (site, cart) DO UPDATE
               SET state = excluded.state, digest = excluded.digest, updated_ms = excluded.updated_ms";
    let put = client.prepare(put).await.unwrap();
    let advance = client.prepare("UPDATE bare_cursor SET hwm = $2 WHERE node = $1").await.unwrap();
    let (node, mut hwm) = (i64::from(node), i64::try_from(first).unwrap());
    for rows in batches {
        hwm += i64::try_from(rows.len()).unwrap();
        let carts: Vec<&[u8]> = rows.iter().map(|(cart, _)| &cart.0[..]).collect();
        let digests: Vec<_> = rows.iter().map(|(_, state)| Digest::of(state).0).collect();
        let digests: Vec<&[u8]> = digests.iter().map(|digest| &digest[..]).collect();
        let states: Vec<&[u8]> = rows.iter().map(|(_, state)| &state[..]).collect();
        let times = vec![1_i64; rows.len()];
        client.batch_execute("BEGIN").await.unwrap();
        client.query_one(&lock, &[&node]).await.unwrap();
        client.execute(&put, &[&site().as_str(), &carts, &states, &digests, &times]).await.unwrap();
        client.execute(&advance, &[&node, &hwm]).await.unwrap();
        client.batch_execute("COMMIT").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, for a quiet machine and a release build"]
#[allow(clippy::print_stdout, reason = "a figure for whoever asked")]
async fn applying_beside_a_bare_loop() {
    let Some(server) = Server::own() else { return };
    let home = Home::of(&server);
    let store = shop(&home).await;
    let Home::Postgres(database) = &home else { unreachable!("a server's") };
    let (folder, port) = &database.hosts[0];
    let told = format!("host={folder} port={port} user={} dbname={}", database.user, database.database);
    let mut clients = Vec::new();
    for node in 1..=NODES {
        enrol(&store, node, 1).await;
        let (client, connection) = tokio_postgres::connect(&told, NoTls).await.unwrap();
        tokio::spawn(connection);
        clients.push(Arc::new(client));
    }
    clients[0]
        .batch_execute(
            "CREATE TABLE bare_cart (site TEXT, cart BYTEA, state BYTEA NOT NULL, digest BYTEA NOT NULL,
                                     updated_ms BIGINT NOT NULL, PRIMARY KEY (site, cart));
             CREATE TABLE bare_cursor (node BIGINT PRIMARY KEY, hwm BIGINT NOT NULL);
             INSERT INTO bare_cursor SELECT n, 0 FROM generate_series(1, 8) n",
        )
        .await
        .unwrap();
    let mut clock = 1;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let work: Vec<_> = (1..=NODES).map(|node| work(node, round, &mut clock)).collect();
        let operations = NODES as usize * BATCHES * BATCH;
        let first = u64::from(round) * (BATCHES * BATCH) as u64;
        let mut took = [Duration::ZERO; 2];
        let mut tasks = tokio::task::JoinSet::new();
        let began = Instant::now();
        for (node, Work { sent, .. }) in (1..).zip(&work) {
            let (store, sent) = (store.clone(), sent.clone());
            tasks.spawn(async move {
                let mut seq = first + 1;
                for ops in sent {
                    let count = ops.len() as u64;
                    let outcome = store.apply_batch(node, 1, seq, ops).await.unwrap();
                    seq += count;
                    assert_eq!(outcome, applied(seq - 1, count, 0));
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        took[0] = began.elapsed();
        let began = Instant::now();
        for ((node, client), Work { left, .. }) in (1..).zip(&clients).zip(work) {
            let client = Arc::clone(client);
            tasks.spawn(async move { bare(&client, node, first, left).await });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        took[1] = began.elapsed();
        let [ours, bare] = took.map(|took| operations as f64 / took.as_secs_f64());
        println!("round {round}: region {ours:.0} operations/s, bare loop {bare:.0}, {:.2} x", ours / bare);
        ratios.push(ours / bare);
    }
    ratios.sort_by(f64::total_cmp);
    println!("{NODES} nodes, batches of {BATCH}: median {:.2} x a bare loop", ratios[ratios.len() / 2]);
}
