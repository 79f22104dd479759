//! `GET /api/products`, with `q=` for what holds these words, and `GET /api/products/{sku}`: the catalogue as this shopper sees it.

use http::{Response, StatusCode};
use serde::Serialize;
use souk_commerce::id::Sku;
use souk_commerce::money::{Currency, Minor};
use souk_commerce::product::{Listed, StockHint};
use souk_commerce::quote::Fallback;
use souk_commerce::site::Hook;
use souk_sandbox::PresentedProduct;
use souk_search::{Position, Query};

use super::{Ask, query};
use crate::http::{Body, Exchange, json};
use crate::page_cache::catalogue::Degraded;
use crate::rescue::{Problem, Refusal};
use crate::route::Route;
use crate::search::Found;

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
        let PageAsked { limit, of } = page_asked_for(self.exchange)?;
        let Page { listed: page, next, is_behind } = match of {
            Wanted::All { after } => self.page_of_all(after.as_ref(), limit),
            Wanted::Matches { query, after } => self.page_of_matches(query, after, limit).await?,
        };
        if let Some(reads) = &self.reads {
            page.iter().for_each(|listed| reads.listed(&listed.product.sku));
        }
        let presented = self.run(Hook::Catalog, None, |chain, call| chain.present(call, page)).await?;
        let currency = self.settings.currency;
        let products = presented.items.iter().map(|item| view(item, currency)).collect();
        let mut answer = json(StatusCode::OK, &PageView { products, next, fallbacks: &presented.fallbacks })?;
        if is_behind {
            // Right for now, and not to be kept.
            answer.extensions_mut().insert(Degraded);
        }
        Ok(degraded(answer, &presented.fallbacks))
    }

    fn page_of_all(&self, after: Option<&Sku>, limit: usize) -> Page {
        if let Some(reads) = &self.reads {
            reads.membership();
        }
        // One more than asked for says whether there is a next page.
        let mut listed = self.site.page(after, limit + 1);
        let more = listed.len() > limit;
        listed.truncate(limit);
        let next = listed.last().filter(|_| more).map(|last| hex::encode(last.product.sku.as_str()));
        Page { listed, next, is_behind: false }
    }

    async fn page_of_matches(
        &mut self,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Page, Problem> {
        if let Some(reads) = &self.reads {
            reads.searched(&query);
        }
        let found = self.node.searches.find(self.site, query, after, limit);
        let Found { listed, next, is_behind } = self.exchange.timed("search", found).await?;
        Ok(Page { listed, next: next.map(Position::cursor), is_behind })
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

/// Products on their way to the plugins.
struct Page {
    listed: Vec<Listed>,
    next: Option<String>,
    /// Something may be missing that has only just changed.
    is_behind: bool,
}

/// Which page of the catalogue a request is for.
pub(crate) struct PageAsked {
    pub(crate) limit: usize,
    pub(crate) of: Wanted,
}

/// In which order, and after what.
pub(crate) enum Wanted {
    All { after: Option<Sku> },
    Matches { query: Query, after: Option<Position> },
}

pub(crate) fn page_asked_for(exchange: &Exchange) -> Result<PageAsked, Problem> {
    let limit = match query(exchange, "limit")? {
        None => PAGE_DEFAULT,
        Some(text) => text.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit)).ok_or_else(|| {
            Problem::new(Refusal::BadQuery, format!("limit must be a number from 1 to {PAGE_MAX}"))
        })?,
    };
    let cursor = query(exchange, "cursor")?;
    let of = match query(exchange, "q")? {
        None => Wanted::All { after: cursor.map(|text| parse_cursor(&text)).transpose()? },
        Some(typed) => {
            let query =
                Query::parse(&typed).map_err(|error| Problem::new(Refusal::BadQuery, error.to_string()))?;
            let position = |text: String| Position::from_cursor(&text).ok_or_else(bad_cursor);
            Wanted::Matches { query, after: cursor.map(position).transpose()? }
        }
    };
    Ok(PageAsked { limit, of })
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
    sku.ok_or_else(bad_cursor)
}

fn bad_cursor() -> Problem {
    Problem::new(Refusal::BadQuery, "cursor must be the `next` of the page before, with the same q")
}
