//! What of an order is its shopper's, and stands in the store sealed only; and what becomes of it when he wants it back
//! ([`export`]) or gone ([`erase`]).
//!
//! A shopper's are: the customer's number, the texts of notes, and every label that repeats the number. They are replaced in
//! the order itself, so that whoever forgets to open an order shows what nobody can read. The rest (what was sold for how
//! much, and to which country) is the merchant's books.

mod erase;
mod export;
mod older;

use souk_commerce::id::{CartId, OrderId};
use souk_commerce::order::{Note, Order};
use souk_commerce::quote::Applied;

#[cfg(test)]
pub(super) use erase::Whom;
pub(crate) use erase::{Erased, Erasure};
pub(super) use erase::{is_leaving, told};
pub(crate) use export::After;

use super::checkout::{Detail, Wished};
use super::order::{Draft, Known, Place, Sealed, Standing};
use super::vault::{self, Owner, Subject, Vault};
use super::{Store, StoreError};

/// In place of a label whose key is gone.
const GONE: &str = "[erased]";

fn place(id: OrderId, field: &str) -> String {
    format!("order\0{id}\0{field}")
}

/// Every label of a quote, with its name.
fn labels(order: &mut Order) -> impl Iterator<Item = (String, &mut Applied)> {
    let of_lines = order.quote.lines.iter_mut().enumerate().flat_map(|(line, it)| {
        it.adjustments.iter_mut().enumerate().map(move |(n, it)| (format!("label\0{line}\0{n}"), it))
    });
    let of_cart = order.quote.adjustments.iter_mut().enumerate().map(|(n, it)| (format!("label\0\0{n}"), it));
    of_lines.chain(of_cart)
}

/// An order as it is stored. `subject`: whose it is, if its shopper has a number.
fn seal(vault: &Vault, mut order: Order, subject: Option<&Subject>) -> Result<Order, StoreError> {
    let (id, site) = (order.id, order.site.clone());
    if let Some((subject, customer)) = subject.zip(order.customer.take()) {
        order.customer = Some(subject.seal(&customer, &place(id, "customer")));
        if !customer.is_empty() {
            for (name, applied) in labels(&mut order).filter(|(_, it)| it.label.contains(&customer)) {
                applied.label = subject.seal(&applied.label, &place(id, &name));
            }
        }
    }
    for (n, note) in order.notes.iter_mut().enumerate() {
        let name = place(id, &format!("note\0{n}"));
        note.text = match subject {
            Some(subject) => subject.seal(&note.text, &name),
            None => vault.seal_of_site(&site, &note.text, &name)?,
        };
    }
    Ok(order)
}

/// An order as it was, but for what was erased.
pub(super) fn open(vault: &Vault, mut order: Order) -> Result<Order, StoreError> {
    let (id, site) = (order.id, order.site.clone());
    let opened = |text: &str, field: &str| vault.open_text(&site, text, &place(id, field));
    if let Some(customer) = order.customer.take() {
        order.customer = opened(&customer, "customer")?;
    }
    for (name, applied) in labels(&mut order).filter(|(_, applied)| vault::is_sealed(&applied.label)) {
        applied.label = opened(&applied.label, &name)?.unwrap_or_else(|| GONE.to_owned());
    }
    for (n, note) in std::mem::take(&mut order.notes).into_iter().enumerate() {
        if let Some(text) = opened(&note.text, &format!("note\0{n}"))? {
            order.notes.push(Note { text, ..note });
        }
    }
    Ok(order)
}

/// The same without the person: what stays in the merchant's books.
fn strip(mut order: Order) -> Order {
    order.customer = None;
    order.notes = Vec::new();
    for (_, applied) in labels(&mut order).filter(|(_, applied)| vault::is_sealed(&applied.label)) {
        applied.label = GONE.to_owned();
    }
    // The number of a cart is the right to it, and the shopper's browser has it.
    order.cart = CartId(order.id.0);
    order
}

pub(super) fn open_standing(vault: &Vault, standing: Standing) -> Result<Standing, StoreError> {
    let opened = |order: Box<Order>| open(vault, *order).map(Box::new);
    Ok(match standing {
        Standing::Placed(order) => Standing::Placed(opened(order)?),
        Standing::Pending(order) => Standing::Pending(opened(order)?),
        Standing::Declined(order, why) => Standing::Declined(opened(order)?, why),
    })
}

pub(super) fn open_known(vault: &Vault, known: Known) -> Result<Known, StoreError> {
    match known {
        Known::Same(standing) => open_standing(vault, standing).map(Known::Same),
        known => Ok(known),
    }
}

pub(super) fn open_detail(vault: &Vault, detail: Detail) -> Result<Detail, StoreError> {
    Ok(Detail { order: open(vault, detail.order)?, ..detail })
}

impl Store {
    /// Runs something that asks the keyring. It blocks, and may wait for a disk.
    async fn with_vault<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Vault) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let vault = self.vault.clone();
        match tokio::task::spawn_blocking(move || work(&vault)).await {
            Ok(result) => result,
            Err(e) if e.is_panic() => Err(StoreError::Panicked("a question to the keyring".to_owned())),
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// A draft as it is written down. The shopper's key is on the disk before anything is sealed by it.
    pub(super) async fn seal_draft(&self, draft: Draft) -> Result<Sealed, StoreError> {
        if draft.order.customer.is_none() && draft.order.notes.is_empty() {
            return Ok(Sealed { draft, owner: Owner { subject: None, is_sealed: true } });
        }
        self.with_vault(move |vault| {
            let Draft { order, request_hash, .. } = &draft;
            let customer = order.customer.as_deref();
            let subject = customer.map(|customer| vault.subject(&order.site, customer)).transpose()?;
            let request_hash = match &subject {
                Some(subject) => subject.question(request_hash),
                None => *request_hash,
            };
            let order = seal(vault, order.clone(), subject.as_ref())?;
            let owner = Owner { subject: subject.map(|subject| subject.id), is_sealed: true };
            Ok(Sealed { draft: Draft { order, request_hash, ..draft }, owner })
        })
        .await
    }

    pub(super) async fn open_place(&self, place: Place) -> Result<Place, StoreError> {
        match place {
            Place::Repeated(standing) => {
                self.with_vault(move |vault| open_standing(vault, standing).map(Place::Repeated)).await
            }
            place => Ok(place),
        }
    }

    pub(super) async fn open_wished(&self, wished: Wished) -> Result<Wished, StoreError> {
        match wished {
            Wished::Noted(detail) => {
                let opened = move |vault: &Vault| open_detail(vault, *detail);
                Ok(Wished::Noted(Box::new(self.with_vault(opened).await?)))
            }
            wished => Ok(wished),
        }
    }
}
