//! Keys that a client chooses: many of them cost what they cost, and no more memory than there is.

use souk_cache::{Lookup, PassReason, Stored};

use super::{NOW, at, cache, get, head, limits, miss, put};

/// As many as the issue asks for. Keys are hashed with a seed that no client knows, so that none can be chosen to collide;
/// what a test can hold is that the tables stay within their bounds and every look-up is answered.
const KEYS: usize = 100_000;

#[tokio::test]
async fn a_hundred_thousand_keys_are_bounded_and_answered() {
    let cache = cache();
    for number in 0..KEYS {
        let asked = get(&format!("/{number:x}"), &[]);
        if number % 2 == 0 {
            put(&cache, NOW, &asked, &[("cache-control", "max-age=60")], "x").await;
        } else {
            let permit = miss(&cache, NOW, &asked).await;
            let stored = permit.store(&head(200, &[("cache-control", "private")]), &asked, at(NOW));
            assert!(matches!(stored, Stored::Pass(PassReason::Private)));
        }
    }
    let size = cache.size();
    assert!(size.bytes <= limits().memory_bytes_max, "{size:?}");
    assert!(size.keys > 0, "{size:?}");
    assert_eq!((cache.waiting(), cache.filling_bytes()), (0, 0));
    // The newest are found: the flood has not made the tables useless.
    let last = get(&format!("/{:x}", KEYS - 2), &[]);
    assert!(matches!(cache.look_up(NOW, &last).await, Lookup::Hit(_)));
    let last = get(&format!("/{:x}", KEYS - 1), &[]);
    assert!(matches!(cache.look_up(NOW, &last).await, Lookup::Pass(PassReason::Remembered)));
}
