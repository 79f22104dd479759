//! One committed state, looked at for as long as it takes to compute a price from it.

use std::sync::Arc;

use parking_lot::Mutex;
use souk_commerce::id::{CartId, SiteId, Sku};
use souk_commerce::site::ReleaseSet;

use super::cart::CartRow;
use super::engine::Session;
use super::goods::Goods;
use super::order::Known;
use super::readers::Lent;
use super::site::SiteRow;
use super::vault::Vault;
use super::{Store, StoreError, cart, goods, order, release, shopper, site};

/// Everything that it answers is of the same moment, however long it is kept. It holds a reader: keep it briefly, and
/// never while waiting for anything but a processor. Its methods block.
pub(crate) struct View {
    lent: Mutex<Lent<Box<dyn Session>>>,
    vault: Vault,
}

impl View {
    pub(crate) fn known_order(
        &self,
        site: &SiteId,
        key: &str,
        customer: Option<&str>,
        request_hash: &[u8; 32],
    ) -> Result<Known, StoreError> {
        let question = self.vault.question(site, customer, request_hash)?;
        let lent = self.lent.lock();
        let known = match order::known(&**lent.conn(), site, key, &question)? {
            // Of an older version, and not sealed yet.
            Known::Other if question != *request_hash => {
                order::known(&**lent.conn(), site, key, request_hash)?
            }
            known => known,
        };
        drop(lent);
        shopper::open_known(&self.vault, known)
    }

    pub(crate) fn cart(&self, site: &SiteId, cart: CartId) -> Result<Option<CartRow>, StoreError> {
        cart::find(&**self.lent.lock().conn(), site, cart)
    }

    pub(crate) fn site(&self, site: &SiteId) -> Result<Option<SiteRow>, StoreError> {
        site::find(&**self.lent.lock().conn(), site)
    }

    pub(crate) fn releases(&self, site: &SiteId) -> Result<ReleaseSet, StoreError> {
        release::active(&**self.lent.lock().conn(), site)
    }

    pub(crate) fn goods(&self, site: &SiteId, sku: &Sku) -> Result<Option<Goods>, StoreError> {
        goods::find(&**self.lent.lock().conn(), site, sku)
    }
}

impl Store {
    pub(crate) async fn view(&self) -> Result<View, StoreError> {
        let lent = Arc::clone(&self.readers).lend().await?;
        Ok(View { lent: Mutex::new(lent), vault: self.vault.clone() })
    }
}
