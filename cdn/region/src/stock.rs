//! Brings home what was promised and lent, when its time is over.
//!
//! One task of the region. It owns the pace and what is counted of it; what is over, and where its units go, the store
//! decides ([`crate::store::escrow`]).

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::store::Store;
use crate::telemetry::Telemetry;

/// Between two looks. A promise that is over keeps others waiting for so long at most.
const PAUSE: Duration = Duration::from_secs(1);
/// After a store that failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

pub(crate) struct StockKeeper {
    pub(crate) store: Store,
    pub(crate) telemetry: Arc<Telemetry>,
}

impl StockKeeper {
    /// Ends when the token is cancelled; what is over then is ended at the next start.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        loop {
            let pause = match self.store.end_stock(clock::now_ms()).await {
                Ok(ended) => {
                    self.telemetry.stock_ended(&ended);
                    if ended.lapsed > 0 {
                        tracing::warn!(
                            grants = ended.lapsed,
                            "units lent to nodes that have not come back are taken back; whatever was promised of them is over"
                        );
                    }
                    if ended.is_full { Duration::ZERO } else { PAUSE }
                }
                // Closed while it was asked.
                Err(_) if shutdown.is_cancelled() => return,
                Err(error) => {
                    tracing::error!(%error, "stock that was promised or lent could not be brought home");
                    PAUSE_AFTER_FAILURE
                }
            };
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}
