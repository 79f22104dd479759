//! `GET /api/products` and `GET /api/products/{sku}`: the catalogue as this shopper sees it.

use http::{Response, StatusCode};
use serde::Serialize;
use souk_commerce::id::Sku;
use souk_commerce::money::{Currency, Minor};
use souk_commerce::product::StockHint;
use souk_commerce::quote::Fallback;
use souk_commerce::site::Hook;
use souk_sandbox::PresentedProduct;

use super::{Ask, query};
use crate::http::{Body, Exchange, json};
use crate::page_cache::catalogue::Degraded;
use crate::rescue::{Problem, Refusal};
use crate::route::Route;

/// Products on a page if nobody says otherwise: four rows of six.
pub(crate) const PAGE_DEFAULT: usize = 24;
/// Products that a catalogue plugin sees in one call.
const PAGE_MAX: usize = 100;

#[derive(Serialize)]
struct ProductView<'a> {
    sku: &'a Sku,
    title: &'a str,
    description: &'a str,
    tags: &'a [String],
    attributes: &'a [(String, String)],
    image: Option<&'a str>,
    currency: Currency,
    price: Minor,
    compare_at: Option<Minor>,
    price_version: u64,
    stock: StockHint,
    badges: &'a [String],
}

#[derive(Serialize)]
struct PageView<'a> {
    products: Vec<ProductView<'a>>,
    /// Give it as `cursor` for the next page; null at the end.
    next: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    fallbacks: &'a [Fallback],
}

fn view(item: &PresentedProduct, currency: Currency) -> ProductView<'_> {
    let PresentedProduct { listed, title, badges } = item;
    ProductView {
        sku: &listed.product.sku,
        title,
        description: &listed.product.description,
        tags: &listed.product.tags,
        attributes: &listed.product.attributes,
        image: listed.product.image.as_deref(),
        currency,
        price: listed.price.price,
        compare_at: listed.price.compare_at,
        price_version: listed.price_version,
        stock: listed.stock,
        badges,
    }
}

impl Ask<'_> {
    /// A route of the catalogue; there are two.
    pub(crate) async fn catalogue(&mut self, route: &Route) -> Result<Response<Body>, Problem> {
        match route {
            Route::ShowProduct(sku) => self.show_product(sku).await,
            _ => self.list_products().await,
        }
    }

    pub async fn list_products(&mut self) -> Result<Response<Body>, Problem> {
        let (limit, after) = page_asked_for(self.exchange)?;
        // One more than asked for says whether there is a next page.
        let mut page = self.site.page(after.as_ref(), limit + 1);
        let more = page.len() > limit;
        page.truncate(limit);
        if let Some(reads) = &self.reads {
            reads.membership();
            page.iter().for_each(|listed| reads.listed(&listed.product.sku));
        }
        let next = page.last().filter(|_| more).map(|last| hex::encode(last.product.sku.as_str()));
        let presented = self.run(Hook::Catalog, None, |chain, call| chain.present(call, page)).await?;
        let currency = self.settings.currency;
        let products = presented.items.iter().map(|item| view(item, currency)).collect();
        let answer = json(StatusCode::OK, &PageView { products, next, fallbacks: &presented.fallbacks })?;
        Ok(degraded(answer, &presented.fallbacks))
    }

    pub async fn show_product(&mut self, sku: &Sku) -> Result<Response<Body>, Problem> {
        let unknown = || {
            Problem::new(Refusal::UnknownProduct, format!("there is no product {sku:?}"))
                .with("sku", sku.as_str())
        };
        if let Some(reads) = &self.reads {
            reads.listed(sku);
        }
        let listed = self.site.listed(sku).ok_or_else(unknown)?;
        let presented =
            self.run(Hook::Catalog, None, |chain, call| chain.present(call, vec![listed])).await?;
        // What the shop hides from its pages it does not show alone either.
        let item = presented.items.first().ok_or_else(unknown)?;
        let answer = json(StatusCode::OK, &view(item, self.settings.currency))?;
        Ok(degraded(answer, &presented.fallbacks))
    }
}

/// Which page of the catalogue a request is for: how many products, and after which.
pub(crate) fn page_asked_for(exchange: &Exchange) -> Result<(usize, Option<Sku>), Problem> {
    let limit = match query(exchange, "limit") {
        None => PAGE_DEFAULT,
        Some(text) => text.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit)).ok_or_else(|| {
            Problem::new(Refusal::BadQuery, format!("limit must be a number from 1 to {PAGE_MAX}"))
        })?,
    };
    Ok((limit, query(exchange, "cursor").map(|text| parse_cursor(&text)).transpose()?))
}

/// Marks an answer that was made without a plugin that should have had its say.
fn degraded(mut answer: Response<Body>, fallbacks: &[Fallback]) -> Response<Body> {
    if !fallbacks.is_empty() {
        answer.extensions_mut().insert(Degraded);
    }
    answer
}

/// A cursor is the last sku of the page before, in digits that need no escaping.
fn parse_cursor(text: &str) -> Result<Sku, Problem> {
    let sku = hex::decode(text)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|sku| sku.parse().ok());
    sku.ok_or_else(|| Problem::new(Refusal::BadQuery, "cursor must be the `next` of the page before"))
}
