//! How a cart becomes an order.
//!
//! The region believes nothing that it can compute: it takes the cart as it has applied it, its own prices and its own
//! copy of the plugins, and compares the total with the one that the shopper saw. Pricing runs on a view of one moment,
//! outside the writer; the writer then proves that nothing under it has moved, takes the stock and writes the
//! order in one transaction ([`crate::store::order`]). Where a provider takes the money, that transaction writes a
//! reservation, and the answer is what [`crate::saga`] makes of it, or that it is not known yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use souk_commerce::call::{CheckoutRequest, Response};
use souk_commerce::cart::LineKey;
use souk_commerce::id::{OrderId, PluginName, SiteId, Sku};
use souk_commerce::order::{Note, Order, OrderState};
use souk_commerce::product::Listed;
use souk_commerce::site::{Hook, SiteSettings};
use souk_sandbox::account::Ended;
use souk_sandbox::scribe::Scribe;
use souk_sandbox::{Call, Chain, Level, Share, SiteData, StopKind, Stopped, Task, Unpriced};

use crate::chains::{Chains, LoadError};
use crate::clock;
use crate::journal::Journal;
use crate::pair::held::{ANSWER_WAIT_MAX, Held, NotHeld, STANDBY_AWAY};
use crate::saga::machine::UNAVAILABLE;
use crate::saga::provider::Terms;
use crate::saga::worker::Payments;
use crate::store::goods::GoodsVersions;
use crate::store::order::{Basis, Draft, Known, Payment, Place, Standing};
use crate::store::{Store, StoreError, View, cart};
use crate::telemetry::Telemetry;

/// A merchant who changes prices all the time makes checkouts compute again; after this many the shopper tries later.
const ATTEMPTS_MAX: usize = 4;
/// Longest idempotency key: a UUID is 36 characters.
pub(crate) const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// How far a node's frozen "now" may lie from ours for us to price with it. A rule that begins at noon must not be decided
/// twice for one shopper; a node with a wrong clock must not choose the rules.
const NODE_NOW_SKEW_MS_MAX: u64 = 60_000;
/// When a node may ask again for what has not arrived yet.
pub(crate) const RETRY_AFTER_MS: u64 = 500;

/// When to ask again for a cart that another checkout holds: most payments are known by then.
const UNDER_WAY_RETRY_MS: u64 = 2_000;

/// Why a checkout has no answer about the order itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckoutError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a plugin of this site cannot be loaded: {0}")]
    Load(#[from] LoadError),
    #[error("pricing panicked")]
    Panicked,
}

impl CheckoutError {
    /// What the node may tell. The details stay in our log.
    pub(crate) fn to_response(&self) -> Response {
        match self {
            Self::Store(error) if error.is_transient() => Response::NotYet { retry_after_ms: RETRY_AFTER_MS },
            Self::Store(_) | Self::Panicked => Response::Failed {
                code: "region_failed".to_owned(),
                message: "The region could not finish the order. Nothing was ordered.".to_owned(),
            },
            Self::Load(_) => Response::Failed {
                code: "plugin_missing".to_owned(),
                message: "A plugin of this shop cannot be run at the region. Nothing was ordered.".to_owned(),
            },
        }
    }
}

#[derive(Clone)]
pub(crate) struct Checkouts {
    pub(crate) store: Store,
    pub(crate) chains: Arc<Chains>,
    /// Whose carts are priced when: the plugins of one shop must not keep the others' orders waiting.
    pub(crate) share: Share,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) journal: Journal,
    pub(crate) payments: Payments,
    /// What the standby holds.
    pub(crate) held: Arc<Held>,
    /// How long to wait for the node's outbox.
    pub(crate) wait_max: Duration,
    /// How long to wait for the payment.
    pub(crate) payment_wait_max: Duration,
}

impl Checkouts {
    /// Makes an order of a cart, or says why not. Dropped half-way it may still place the order; asked again with the same
    /// key it then gives that order.
    pub(crate) async fn check_out(&self, node: u32, request: CheckoutRequest) -> Response {
        let (site, cart) = (request.site.clone(), request.cart);
        let decided = match self.decide(node, request).await {
            Ok(response) => self.once_safe(response).await,
            Err(error) => Err(error),
        };
        let response = match decided {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(node, %site, ?cart, %error, "a checkout failed");
                error.to_response()
            }
        };
        self.telemetry.checkout(outcome_name(&response));
        response
    }

    /// What was decided, as soon as it is the standby's too; or that this is not known. The same key then gives the same order.
    async fn once_safe(&self, response: Response) -> Result<Response, CheckoutError> {
        // Of these nothing is on the disk.
        if !matches!(
            response,
            Response::Placed(_)
                | Response::Pending(_)
                | Response::Declined { .. }
                | Response::CartSealed { .. }
        ) {
            return Ok(response);
        }
        match self.held.demand(&self.store, ANSWER_WAIT_MAX).await {
            Ok(()) => Ok(response),
            Err(NotHeld::Away) => Ok(Response::Failed {
                code: STANDBY_AWAY.to_owned(),
                message: "The region cannot say yet that the order is safe. Ask again with the same key."
                    .to_owned(),
            }),
            Err(NotHeld::Store(error)) => Err(error.into()),
        }
    }

    async fn decide(&self, node: u32, request: CheckoutRequest) -> Result<Response, CheckoutError> {
        let key = &request.idempotency_key;
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            return Ok(Response::Failed {
                code: "idempotency_key_invalid".to_owned(),
                message: format!("An idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes."),
            });
        }
        if let Some((epoch, seq)) = request.after {
            let reached = self.store.marks().reached(node, epoch.0, seq);
            if tokio::time::timeout(self.wait_max, reached).await.is_err() {
                return Ok(Response::NotYet { retry_after_ms: RETRY_AFTER_MS });
            }
        }
        let request = Arc::new(request);
        for attempt in 1..=ATTEMPTS_MAX {
            let releases = self.store.releases(request.site.clone()).await?;
            let chain = self.chains.chain(&releases).await?;
            let pricing = Pricing {
                view: Arc::new(self.store.view().await?),
                chain,
                release_version: releases.version,
                request: Arc::clone(&request),
                journal: self.journal.clone(),
                is_last_attempt: attempt == ATTEMPTS_MAX,
            };
            let Ok(turn) = self.share.enter(&request.site, Task::Hook(Hook::Checkout)).await else {
                return Ok(Response::NotYet { retry_after_ms: RETRY_AFTER_MS });
            };
            // Not in the lane: this thread waits for the database too, and it serves nobody else.
            let priced = tokio::task::spawn_blocking(move || turn.run_here(|| pricing.run())).await;
            let draft = match priced.map_err(|_| CheckoutError::Panicked)?? {
                Priced::Ready(draft) => *draft,
                Priced::Known(standing) => return self.paid(standing).await,
                Priced::Answer(response) => return Ok(*response),
                Priced::Again => continue,
            };
            let order = draft.order.clone();
            let place = match self.terms(&order, &request) {
                Ok(None) => self.store.place(draft).await?,
                Ok(Some(payment)) => self.store.reserve(draft, payment, clock::now_ms()).await?,
                Err(response) => return Ok(*response),
            };
            match place {
                Place::Placed => return Ok(Response::Placed(order)),
                Place::Reserved => {
                    self.payments.ring();
                    return self.paid(Standing::Pending(Box::new(order))).await;
                }
                Place::Repeated(standing) => return self.paid(standing).await,
                Place::KeyReused => return Ok(Response::KeyReused),
                Place::CartSealed(order) => return Ok(Response::CartSealed { order }),
                Place::UnderWay => return Ok(Response::NotYet { retry_after_ms: UNDER_WAY_RETRY_MS }),
                Place::OutOfStock { sku, available } => {
                    return Ok(Response::OutOfStock {
                        sku,
                        available: u32::try_from(available).unwrap_or(u32::MAX),
                    });
                }
                Place::Moved => self.telemetry.checkout_repriced.inc(),
            };
        }
        Ok(Response::NotYet { retry_after_ms: RETRY_AFTER_MS })
    }
}

impl Checkouts {
    /// How an order is to be paid; none: by invoice, or there is nothing to pay.
    fn terms(&self, order: &Order, request: &CheckoutRequest) -> Result<Option<Payment>, Box<Response>> {
        let Some(Terms { capture, .. }) = self.payments.providers().of(&order.site) else { return Ok(None) };
        if order.quote.total.0 <= 0 {
            return Ok(None);
        }
        match &request.payment {
            Some(method) => Ok(Some(Payment { method: method.clone(), capture: *capture })),
            None => Err(Box::new(Response::Refused {
                code: "payment_required".to_owned(),
                message: "This shop takes the payment with the order: say what it is to be paid with."
                    .to_owned(),
            })),
        }
    }

    /// The answer to a checkout that stands so, after a bounded wait if it is not decided.
    async fn paid(&self, standing: Standing) -> Result<Response, CheckoutError> {
        let standing = match standing {
            Standing::Pending(order) => {
                let settled = self.payments.settled(order.id, self.payment_wait_max).await;
                match settled {
                    Ok(standing) => standing.unwrap_or(Standing::Pending(order)),
                    // The reservation stands, whoever can read it now or not.
                    Err(error) => {
                        tracing::warn!(%error, "how a payment stands could not be read");
                        Standing::Pending(order)
                    }
                }
            }
            decided => decided,
        };
        Ok(match standing {
            Standing::Placed(order) => Response::Placed(*order),
            Standing::Pending(order) => Response::Pending(Order { state: OrderState::Pending, ..*order }),
            Standing::Declined(_, why) if why == UNAVAILABLE => Response::Failed {
                code: UNAVAILABLE.to_owned(),
                message: "The payment could not be asked for. Nothing was ordered, and nothing was charged."
                    .to_owned(),
            },
            Standing::Declined(_, code) => Response::Declined { code },
        })
    }
}

fn outcome_name(response: &Response) -> &'static str {
    match response {
        Response::Placed(_) => "placed",
        Response::Pending(_) => "pending",
        Response::Declined { .. } => "declined",
        Response::PriceChanged(_) => "price_changed",
        Response::OutOfStock { .. } => "out_of_stock",
        Response::Refused { .. } => "refused",
        Response::KeyReused => "key_reused",
        Response::CartEmpty => "cart_empty",
        Response::CartSealed { .. } => "cart_sealed",
        Response::NotFound => "not_found",
        Response::NotYet { .. } => "not_yet",
        _ => "failed",
    }
}

enum Priced {
    Ready(Box<Draft>),
    /// The same question was asked before.
    Known(Standing),
    Answer(Box<Response>),
    /// The releases changed between loading the chain and opening the view, or a plugin was skipped that may not be the
    /// next time.
    Again,
}

impl Priced {
    fn answer(response: Response) -> Self {
        Self::Answer(Box::new(response))
    }
}

/// One computation of a price, on one moment of the store. Blocks: it reads, and it runs plugins.
struct Pricing {
    view: Arc<View>,
    chain: Arc<Chain>,
    release_version: u64,
    request: Arc<CheckoutRequest>,
    journal: Journal,
    is_last_attempt: bool,
}

impl Pricing {
    fn run(self) -> Result<Priced, CheckoutError> {
        let request = &*self.request;
        let customer = request.customer.as_deref();
        let (key, hash) = (&request.idempotency_key, &request.request_hash);
        match self.view.known_order(&request.site, key, customer, hash)? {
            Known::Same(standing) => return Ok(Priced::Known(standing)),
            Known::Other => return Ok(Priced::answer(Response::KeyReused)),
            Known::Unused => {}
        }
        let (Some(site), Some(row)) =
            (self.view.site(&request.site)?, self.view.cart(&request.site, request.cart)?)
        else {
            return Ok(Priced::answer(Response::NotFound));
        };
        if let Some(order) = row.order {
            return Ok(Priced::answer(Response::CartSealed { order }));
        }
        if row.pending.is_some() {
            return Ok(Priced::answer(Response::NotYet { retry_after_ms: UNDER_WAY_RETRY_MS }));
        }
        if self.view.releases(&request.site)?.version != self.release_version {
            return Ok(Priced::Again);
        }
        let cart = cart::decode(&row.state)?;
        let lines = cart.lines();
        if lines.is_empty() {
            return Ok(Priced::answer(Response::CartEmpty));
        }
        let settings = Arc::new(site.settings);
        let now_ms = now_for(request.now_ms, clock::now_ms());
        let scribe = Scribe::new(request.site.clone(), None, now_ms, request.customer.as_deref());
        let shelf = Arc::new(Shelf {
            view: Mutex::new(Some(Arc::clone(&self.view))),
            settings: Arc::clone(&settings),
            seen: Mutex::default(),
            asked: Mutex::default(),
            failed: Mutex::default(),
            scribe,
            journal: self.journal.clone(),
        });
        let _closing = Closing(&shelf);
        let mut listed = Vec::with_capacity(lines.len());
        for (line, quantity) in lines {
            match shelf.look_up(&line.sku)? {
                Some(found) => listed.push((line, quantity, found)),
                // An order without a line that the shopper asked for would be another order.
                None => return Ok(Priced::answer(Response::OutOfStock { sku: line.sku, available: 0 })),
            }
        }
        let data: Arc<dyn SiteData> = Arc::clone(&shelf) as Arc<dyn SiteData>;
        let call = Call {
            now_ms,
            currency: settings.currency,
            country: request.country.clone().or_else(|| cart.country().cloned()),
            region: None,
            language: request.language.clone(),
            segments: request.segments.clone(),
            customer: request.customer.clone(),
            coupons: cart.coupons(),
            seed: request.cart.seed(),
            data: &data,
        };
        let basis = |shelf: &Shelf| Basis {
            cart: row.digest,
            site_version: site.version,
            release_version: self.release_version,
            goods: shelf.seen.lock().clone(),
        };
        let computed = self.compute(&call, &settings, listed);
        // A lookup that failed looks like a missing product to a plugin: what it then said is worth nothing.
        if let Some(error) = shelf.failed.lock().take() {
            return Err(error.into());
        }
        match computed {
            Computed::Accepted(order) => Ok(Priced::Ready(Box::new(Draft {
                order: *order,
                idempotency_key: request.idempotency_key.clone(),
                request_hash: request.request_hash,
                basis: basis(&shelf),
            }))),
            Computed::Answer(response) => Ok(Priced::Answer(response)),
            Computed::Unsure => Ok(Priced::Again),
        }
    }

    fn compute(
        &self,
        call: &Call<'_>,
        settings: &SiteSettings,
        lines: Vec<(LineKey, u32, Listed)>,
    ) -> Computed {
        let request = &*self.request;
        let quote = match self.chain.price(call, &settings.guard, lines.clone()) {
            Ok(quote) => quote,
            Err(Unpriced::Stopped(stopped)) => return Computed::Answer(Box::new(stopped_response(stopped))),
            Err(Unpriced::Overflow(error)) => {
                let message = format!("The cart cannot be sold: {error}.");
                return Computed::Answer(Box::new(Response::Failed {
                    code: "amount_overflow".to_owned(),
                    message,
                }));
            }
        };
        if quote.total != request.quoted_total {
            // A plugin that was skipped here (a deadline missed on a busy machine) may be why: that is worth another try.
            return if quote.fallbacks.is_empty() || self.is_last_attempt {
                Computed::Answer(Box::new(Response::PriceChanged(quote)))
            } else {
                Computed::Unsure
            };
        }
        let notes = match self.chain.review_order(call, &quote, &lines) {
            Ok(notes) => notes,
            Err(stopped) => return Computed::Answer(Box::new(stopped_response(stopped))),
        };
        let notes =
            notes.into_iter().map(|note| Note { plugin: note.plugin, code: note.code, text: note.text });
        Computed::Accepted(Box::new(Order {
            id: OrderId(rand::random()),
            site: request.site.clone(),
            cart: request.cart,
            state: OrderState::Placed,
            country: quote.country.clone(),
            quote,
            notes: notes.collect(),
            placed_ms: clock::now_ms(),
            customer: request.customer.clone(),
        }))
    }
}

enum Computed {
    Accepted(Box<Order>),
    Answer(Box<Response>),
    Unsure,
}

fn stopped_response(stopped: Stopped) -> Response {
    let Stopped { plugin, release, hook, kind } = stopped;
    match kind {
        StopKind::Refused { code, message } => Response::Refused { code, message },
        StopKind::FailClosed { reason } => {
            tracing::warn!(%plugin, release, %hook, reason, "a fail-closed plugin stopped a checkout");
            Response::Failed {
                code: "plugin_failed".to_owned(),
                message: format!(
                    "The shop's rule {plugin} could not be checked ({reason}). Nothing was ordered."
                ),
            }
        }
    }
}

/// The time to price with: the node's, if it can be believed, so that both sides decide with the same.
fn now_for(node_ms: u64, ours_ms: u64) -> u64 {
    if node_ms.abs_diff(ours_ms) <= NODE_NOW_SKEW_MS_MAX { node_ms } else { ours_ms }
}

/// What plugins may look up, and the list of what was looked at: an order rests on all of it.
///
/// It outlives the price: a call that is recorded runs again with it, when the view, and with it the store's reader, has
/// long been given back. Then it answers what it has answered before, and nothing else.
struct Shelf {
    /// None: closed.
    view: Mutex<Option<Arc<View>>>,
    asked: Mutex<BTreeMap<Sku, Option<Listed>>>,
    settings: Arc<SiteSettings>,
    seen: Mutex<BTreeMap<Sku, GoodsVersions>>,
    failed: Mutex<Option<StoreError>>,
    scribe: Scribe,
    journal: Journal,
}

impl Shelf {
    fn site(&self) -> &SiteId {
        &self.settings.site
    }

    fn look_up(&self, sku: &Sku) -> Result<Option<Listed>, StoreError> {
        if let Some(answer) = self.asked.lock().get(sku) {
            return Ok(answer.clone());
        }
        let Some(view) = self.view.lock().clone() else { return Ok(None) };
        let goods = view.goods(self.site(), sku)?;
        let versions = goods.as_ref().map_or_else(GoodsVersions::default, |goods| GoodsVersions {
            product: goods.product_version,
            price: goods.price_version,
        });
        self.seen.lock().insert(sku.clone(), versions);
        let answer = goods.and_then(|goods| {
            Some(Listed {
                price: goods.price?,
                price_version: goods.price_version,
                // Not part of what an order rests on: stock moves with each order, and is decided by taking it.
                stock: goods.hint,
                product: Arc::new(goods.product),
            })
        });
        self.asked.lock().insert(sku.clone(), answer.clone());
        Ok(answer)
    }
}

/// Closes a shelf when the price is made, also out of a panic.
struct Closing<'a>(&'a Shelf);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        drop(self.0.view.lock().take());
    }
}

impl SiteData for Shelf {
    fn product(&self, sku: &str) -> Option<Listed> {
        let sku: Sku = sku.parse().ok()?;
        self.look_up(&sku).unwrap_or_else(|error| {
            self.failed.lock().get_or_insert(error);
            None
        })
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        self.settings.kv.get(key).map(|value| value.clone().into_bytes())
    }

    fn log(&self, plugin: &PluginName, level: Level, text: &str) {
        let site = self.site();
        let text = &*self.scribe.line(level, text);
        match level {
            Level::Debug => tracing::debug!(target: "plugin", %site, %plugin, text),
            Level::Info => tracing::info!(target: "plugin", %site, %plugin, text),
            Level::Warn => tracing::warn!(target: "plugin", %site, %plugin, text),
            Level::Error => tracing::error!(target: "plugin", %site, %plugin, text),
        }
    }

    fn ended(&self, ended: &Ended<'_>) {
        let mut entries = Vec::new();
        self.scribe.ended(ended, |entry| entries.push(entry));
        self.journal.write(entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_clock_is_believed_within_reason() {
        let ours = 1_000_000;
        assert_eq!(now_for(ours - NODE_NOW_SKEW_MS_MAX, ours), ours - NODE_NOW_SKEW_MS_MAX);
        assert_eq!(now_for(ours + NODE_NOW_SKEW_MS_MAX + 1, ours), ours);
        assert_eq!(now_for(0, u64::MAX), u64::MAX);
    }
}
