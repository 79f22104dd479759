//! Finishes the erasures that somebody began and did not end.
//!
//! A region does that for its own when it starts. Where several processes share a database, one that died may not start again,
//! and until somebody destroys the key the shopper can order nothing: so each of them looks for what is left.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::store::audit::Actor;
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;

/// How often it is looked for: one question that an index answers with nothing.
const EVERY: Duration = Duration::from_secs(60);
/// An erasure as old as this is nobody's any more. Between its two halves lies the destruction of a key, which waits for as long as
/// somebody copies the keyring: that is a small file, and copied within seconds.
const AGE_MS_MIN: u64 = 60_000;

pub(crate) struct Unended {
    pub(crate) store: Store,
    pub(crate) telemetry: Arc<Telemetry>,
}

impl Unended {
    /// Runs until shutdown. What it has not come to is done in the next round, or at the next start.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let ending = async {
            loop {
                // The first one is the start's.
                tokio::time::sleep(EVERY).await;
                if let Err(error) = self.round(clock::now_ms()).await {
                    tracing::warn!(%error, "erasures that were cut short stay so for now: their shoppers cannot order");
                }
            }
        };
        shutdown.run_until_cancelled(ending).await;
    }

    async fn round(&self, now_ms: u64) -> Result<(), StoreError> {
        let actor = Actor { name: "region".to_owned(), peer: String::new() };
        let keys = self.store.end_erasures(now_ms.saturating_sub(AGE_MS_MIN), actor).await?;
        if keys > 0 {
            self.telemetry.erasures_resumed.inc_by(keys as u64);
            tracing::warn!(keys, "erasures that another process left half done are finished");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{Begun, home::Home};

    #[tokio::test]
    async fn a_shopper_whose_erasure_was_cut_short_can_order_again_without_a_start() {
        let home = Home::chosen();
        let begun = Begun::new(&home).await;
        let (store, telemetry) = (begun.store.clone(), Arc::new(Telemetry::new()));
        let unended = Unended { store, telemetry: Arc::clone(&telemetry) };
        unended.round(begun.erased_ms + AGE_MS_MIN).await.unwrap();
        assert!(!begun.can_order().await, "whoever has begun it may still be at it");
        unended.round(begun.erased_ms + AGE_MS_MIN + 1).await.unwrap();
        assert!(begun.can_order().await);
        assert_eq!(telemetry.erasures_resumed.get(), 1);
        unended.round(begun.erased_ms + 2 * AGE_MS_MIN).await.unwrap();
        assert_eq!(telemetry.erasures_resumed.get(), 1, "once");
    }
}
