//! Keeps the store's words of products as new as the products, beside whoever imports them.
//!
//! Wakes up with the catalogue log and takes one step after the other; between two of them anybody may write. Several processes
//! over one database do the same, and whoever comes second finds nothing to do. What a step is, the store knows.

use std::time::Duration;

use souk_replication::Log;
use tokio_util::sync::CancellationToken;

use crate::store::Store;
use crate::telemetry::Telemetry;

/// After a step that failed: another process has the database, or it is away.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// Runs until shutdown. What it has not come to is done at the next start.
pub(crate) async fn keep(store: Store, telemetry: std::sync::Arc<Telemetry>, shutdown: CancellationToken) {
    let mut heads = store.log_heads();
    let keeping = async {
        loop {
            let head = heads.borrow_and_update().get(Log::Catalog);
            match store.index_products().await {
                Ok(indexed) => {
                    telemetry.search_indexed(indexed.version);
                    if !indexed.is_current {
                        continue;
                    }
                }
                Err(error) => {
                    if !error.is_transient() {
                        tracing::warn!(%error, "what products say is not taken in yet: searches at the region miss it");
                    }
                    tokio::time::sleep(FAILED_PAUSE).await;
                    continue;
                }
            }
            while heads.borrow_and_update().get(Log::Catalog) == head {
                if heads.changed().await.is_err() {
                    return;
                }
            }
        }
    };
    shutdown.run_until_cancelled(keeping).await;
}
