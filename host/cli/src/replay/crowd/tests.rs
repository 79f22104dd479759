//! Faults that were asked for happen, also where a run is shorter than the first pause before them.

use std::sync::Mutex;

use futures_util::future::BoxFuture;
use serde_json::json;

use super::super::shopper::tests::{node, town};
use super::super::{Faults, Rate};
use super::*;

/// Notes what was asked of it.
#[derive(Default)]
struct Asked(Mutex<Vec<String>>);

impl Asked {
    fn note(&self, what: impl Into<String>) -> BoxFuture<'_, anyhow::Result<()>> {
        self.0.lock().expect("nobody panics with it").push(what.into());
        Box::pin(async { Ok(()) })
    }
}

impl Faults for Asked {
    fn kill_and_restart<'a>(&'a self, node: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        self.note(format!("kill {node}"))
    }

    fn kill_region(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        self.note("kill region")
    }

    fn cut(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        self.note("cut")
    }

    fn heal(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        self.note("heal")
    }
}

/// Carts that came of a run of `invoices` with both faults, what was asked of the stage, kills and the cut.
async fn run(invoices: usize) -> (usize, Vec<String>, u64, Option<Duration>) {
    // Every answer is a refusal but the first: a visit of two requests.
    let http = node(|_, path, _| match path {
        "/api/carts" => Some((201, json!({ "cart": "c0" }))),
        _ => Some((422, json!({ "code": "no" }))),
    });
    let town = town(http.await);
    let asked = Arc::new(Asked::default());
    let faults: Arc<dyn Faults> = Arc::<Asked>::clone(&asked);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key").serialize_pem();
    let stage = Stage {
        nodes: town.nodes.clone(),
        region_control: town.nodes[0].admin,
        operator_token: String::new(),
        shopper_signing_key: key.clone(),
        shopper_key: String::new(),
        plugins: vec![],
        faults,
    };
    let options = ReplayOptions {
        file: "none".into(),
        carts: None,
        rate: Rate::Max,
        kill_edge: true,
        kill_region: true,
        cut_region: true,
        refused: None,
        record: false,
        seed: 1,
    };
    let signer = Signer::new(&key, 0).expect("a signer");
    let cut = Duration::from_millis(50);
    let crowd = Crowd { town: Arc::clone(&town), stage: &stage, options: &options, signer, cut };
    let invoice = |number: usize| Invoice {
        number: number.to_string(),
        country: None,
        customer: None,
        lines: vec![("A".parse().expect("a sku"), 1)],
    };
    let (books, _) = crowd.run((0..invoices).map(invoice).collect()).await.expect("a run");
    let said = asked.0.lock().expect("nobody panics with it").clone();
    let tally = town.books.tally();
    (books.len(), said, tally.kills, tally.cut)
}

#[tokio::test]
async fn the_shortest_run_meets_every_fault_that_was_asked_for() {
    for invoices in [1, 2, 7] {
        let (carts, said, kills, cut) = run(invoices).await;
        assert_eq!((carts, kills > 0), (invoices, true), "{said:?}");
        assert!(cut.is_some_and(|lasted| lasted >= Duration::from_millis(50)), "{cut:?}");
        for what in ["kill edge-lon", "kill region", "cut", "heal"] {
            assert!(said.iter().any(|s| s == what), "{what}: {said:?}");
        }
    }
}

#[tokio::test]
async fn without_a_shopper_nothing_breaks() {
    assert_eq!(run(0).await, (0, vec![], 0, None));
}
