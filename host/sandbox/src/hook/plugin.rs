//! A loaded plugin, and the four typed calls.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use souk_commerce::id::{Digest, Sku};
use souk_commerce::money::Minor;
use souk_commerce::product::Listed;
use souk_commerce::quote::Adjustment;
use souk_commerce::site::Hook;
use wasmtime::Store;
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{Component, ComponentNamedList, Instance, InstancePre, Lift, Lower};

use super::bindings::exports::souk::plugin::{cart, catalog, checkout, pricing};
use super::bindings::souk::plugin::types;
use super::engine::HookEngine;
use super::guest::Guest;
use super::view::Words;
use super::{CartOp, Invocation, LineView, Requested, answer};
use crate::fault::{Complaint, Fault, Refused, bounded, classify};
use crate::record::{Answer, LineOf, Subject};
use crate::ticker::Credit;

/// A hook plugin, compiled and linked. Every call gets an instance of its own. A clone shares the code.
#[derive(Clone)]
pub struct HookPlugin {
    engine: HookEngine,
    digest: Digest,
    hooks: Vec<Hook>,
    pre: InstancePre<Guest>,
    credit: Arc<Credit>,
    catalog: Option<catalog::GuestIndices>,
    pricing: Option<pricing::GuestIndices>,
    cart: Option<cart::GuestIndices>,
    checkout: Option<checkout::GuestIndices>,
}

/// How a product is to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presentation {
    pub sku: Sku,
    #[serde(default)]
    pub hidden: bool,
    /// Higher comes first.
    #[serde(default)]
    pub rank: i32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub badges: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

impl HookPlugin {
    pub(super) fn link(
        engine: HookEngine,
        digest: Digest,
        pre: InstancePre<Guest>,
        hooks: &[Hook],
    ) -> Result<Self, Refused> {
        let mut complaints = Vec::new();
        for &hook in hooks {
            if let Err(detail) = check_export(&pre, hook) {
                complaints.push(Complaint::new("export_type", &detail));
            }
        }
        if !complaints.is_empty() {
            return Err(Refused { complaints });
        }
        let index = |error: wasmtime::Error| Refused::because("export_type", format!("{error:#}"));
        let has = |hook| hooks.contains(&hook);
        Ok(Self {
            engine,
            digest,
            hooks: hooks.to_vec(),
            catalog: has(Hook::Catalog)
                .then(|| catalog::GuestIndices::new(&pre))
                .transpose()
                .map_err(index)?,
            pricing: has(Hook::Pricing)
                .then(|| pricing::GuestIndices::new(&pre))
                .transpose()
                .map_err(index)?,
            cart: has(Hook::Cart).then(|| cart::GuestIndices::new(&pre)).transpose().map_err(index)?,
            checkout: has(Hook::Checkout)
                .then(|| checkout::GuestIndices::new(&pre))
                .transpose()
                .map_err(index)?,
            pre,
            credit: Arc::default(),
        })
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Machine code in memory.
    pub fn code_bytes(&self) -> usize {
        let image = self.pre.component().image_range();
        image.end.addr() - image.start.addr()
    }

    /// The hooks that the component exports.
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    pub fn engine(&self) -> &HookEngine {
        &self.engine
    }

    pub(crate) fn component(&self) -> &Component {
        self.pre.component()
    }

    pub fn present(
        &self,
        invocation: &Invocation<'_>,
        products: &[Listed],
    ) -> Result<Vec<Presentation>, Fault> {
        let answer = self.present_once(invocation, products);
        self.offer(invocation, || Subject::Catalog(products.to_vec()), answer)
    }

    fn present_once(
        &self,
        invocation: &Invocation<'_>,
        products: &[Listed],
    ) -> Result<Vec<Presentation>, Fault> {
        let indices = exported(&self.catalog, Hook::Catalog)?;
        let words = Words::of(invocation, products.iter());
        let context = words.context(invocation);
        let params = words.products(products.iter());
        let answer = self.run(invocation, |store, instance| {
            indices.load(&mut *store, instance)?.call_present(store, context, &params)
        })?;
        answer::presentations(answer.map_err(answer::refusal)?, products)
    }

    pub fn adjust(
        &self,
        invocation: &Invocation<'_>,
        lines: &[LineView<'_>],
    ) -> Result<Vec<Adjustment>, Fault> {
        let answer = self.adjust_once(invocation, lines);
        self.offer(invocation, || Subject::Pricing(LineOf::all(lines)), answer)
    }

    fn adjust_once(
        &self,
        invocation: &Invocation<'_>,
        lines: &[LineView<'_>],
    ) -> Result<Vec<Adjustment>, Fault> {
        let indices = exported(&self.pricing, Hook::Pricing)?;
        let words = Words::of(invocation, lines.iter().map(|line| line.listed));
        let context = words.context(invocation);
        let params = words.lines(lines);
        let answer = self.run(invocation, |store, instance| {
            indices.load(&mut *store, instance)?.call_adjust(store, context, &params)
        })?;
        answer::adjustments(answer.map_err(answer::refusal)?, lines.len())
    }

    /// `change` must name lines of `before`; one that does not is accepted without a call, having no subject.
    pub fn review_change(
        &self,
        invocation: &Invocation<'_>,
        before: &[LineView<'_>],
        change: &Requested,
    ) -> Result<Vec<CartOp>, Fault> {
        let answer = self.review_change_once(invocation, before, change);
        self.offer(invocation, || Subject::Cart(LineOf::all(before), change.clone()), answer)
    }

    fn review_change_once(
        &self,
        invocation: &Invocation<'_>,
        before: &[LineView<'_>],
        change: &Requested,
    ) -> Result<Vec<CartOp>, Fault> {
        let indices = exported(&self.cart, Hook::Cart)?;
        let line_id = |key| before.iter().zip(0..).find(|(line, _)| line.key == key).map(|(_, id)| id);
        let change = match change {
            Requested::Add { sku, quantity } => cart::Change::Add((sku.as_str(), *quantity)),
            Requested::Set { line, quantity } => match line_id(line) {
                Some(id) => cart::Change::Set((id, *quantity)),
                None => return Ok(Vec::new()),
            },
            Requested::Remove { line } => match line_id(line) {
                Some(id) => cart::Change::Remove(id),
                None => return Ok(Vec::new()),
            },
        };
        let words = Words::of(invocation, before.iter().map(|line| line.listed));
        let context = words.context(invocation);
        let params = words.lines(before);
        let answer = self.run(invocation, |store, instance| {
            indices.load(&mut *store, instance)?.call_review(store, context, &params, change)
        })?;
        answer::cart_ops(answer.map_err(answer::refusal)?, before)
    }

    /// Code and text of each note.
    pub fn review_order(
        &self,
        invocation: &Invocation<'_>,
        lines: &[LineView<'_>],
        total: Minor,
    ) -> Result<Vec<(String, String)>, Fault> {
        let answer = self.review_order_once(invocation, lines, total);
        self.offer(invocation, || Subject::Checkout(LineOf::all(lines), total), answer)
    }

    fn review_order_once(
        &self,
        invocation: &Invocation<'_>,
        lines: &[LineView<'_>],
        total: Minor,
    ) -> Result<Vec<(String, String)>, Fault> {
        let indices = exported(&self.checkout, Hook::Checkout)?;
        let words = Words::of(invocation, lines.iter().map(|line| line.listed));
        let context = words.context(invocation);
        let params = words.lines(lines);
        let draft = checkout::OrderDraft { lines: &params, total: total.0 };
        let answer = self.run(invocation, |store, instance| {
            indices.load(&mut *store, instance)?.call_review(store, context, draft)
        })?;
        answer::notes(answer.map_err(answer::refusal)?)
    }

    /// Lets the call be recorded, where its chain records. The answer passes through unchanged.
    fn offer<R>(
        &self,
        invocation: &Invocation<'_>,
        subject: impl FnOnce() -> Subject,
        answer: Result<R, Fault>,
    ) -> Result<R, Fault>
    where
        R: Answer,
    {
        if let Some(tape) = invocation.tape {
            tape.offer(self, invocation, subject, &answer);
        }
        answer
    }

    /// One store, one instance, one call; then all of it is dropped, whatever happened. A panic of the host's own
    /// code ends this call only.
    fn run<R>(
        &self,
        invocation: &Invocation<'_>,
        call: impl FnOnce(&mut Store<Guest>, &Instance) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let _ticking = self.engine.ticking();
            let mut store = self.engine.store(invocation, self.credit.toll());
            let result = match self.pre.instantiate(&mut store) {
                Ok(instance) => call(&mut store, &instance)
                    .map_err(|error| classify(&error, store.data().space.refused())),
                // A failure to instantiate that is neither a trap nor a limit says nothing about the guest.
                Err(error) => Err(match classify(&error, store.data().space.refused()) {
                    Fault::BadValue(text) => Fault::Internal(text),
                    fault => fault,
                }),
            };
            if self.engine.is_metered() {
                let left = store.get_fuel().expect("a metered engine consumes fuel");
                invocation.instructions.set(Some(crate::metered::FUEL.saturating_sub(left)));
            }
            invocation.host_calls_used.set(invocation.allowance.host_calls - store.data().host_calls_left());
            self.credit.settle(store.data().deadline.toll());
            result
        }));
        outcome.unwrap_or_else(|panic| Err(Fault::Internal(describe(&*panic))))
    }
}

fn exported<T>(indices: &Option<T>, hook: Hook) -> Result<&T, Fault> {
    indices.as_ref().ok_or_else(|| Fault::Internal(format!("the plugin has no {hook} hook")))
}

fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message");
    bounded(text, 200)
}

/// Compares the signature of an exported hook with the contract, without running anything of the guest.
fn check_export(pre: &InstancePre<Guest>, hook: Hook) -> Result<(), String> {
    match hook {
        Hook::Catalog => signature::<
            (types::Context<'_>, &[types::ProductParam<'_>]),
            (Result<Vec<catalog::Presentation>, types::Refusal>,),
        >(pre, hook, "present"),
        Hook::Pricing => signature::<
            (types::Context<'_>, &[types::Line<'_>]),
            (Result<Vec<pricing::Adjustment>, types::Refusal>,),
        >(pre, hook, "adjust"),
        Hook::Cart => signature::<
            (types::Context<'_>, &[types::Line<'_>], cart::Change<'_>),
            (Result<Vec<cart::CartOp>, types::Refusal>,),
        >(pre, hook, "review"),
        Hook::Checkout => signature::<
            (types::Context<'_>, checkout::OrderDraft<'_>),
            (Result<Vec<checkout::Note>, types::Refusal>,),
        >(pre, hook, "review"),
    }
}

fn signature<Params, Return>(pre: &InstancePre<Guest>, hook: Hook, function: &str) -> Result<(), String>
where
    Params: ComponentNamedList + Lower,
    Return: ComponentNamedList + Lift,
{
    let found =
        find(pre, hook, function).ok_or_else(|| format!("souk:plugin/{hook} has no function {function}"))?;
    found
        .typecheck::<Params, Return>(&pre.instance_type())
        .map_err(|error| format!("souk:plugin/{hook}: {function} is not as in the contract: {error:#}"))
}

fn find(pre: &InstancePre<Guest>, hook: Hook, function: &str) -> Option<ComponentFunc> {
    let component = pre.component();
    let (_, interface) =
        component.get_export(None, format!("souk:plugin/{hook}@{}", crate::admit::CONTRACT))?;
    match component.get_export(Some(&interface), function)? {
        (ComponentItem::ComponentFunc(found), _) => Some(found),
        _ => None,
    }
}
