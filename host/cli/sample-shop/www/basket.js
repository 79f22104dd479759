// The basket beside (or instead of) the window: the node's quote, with every adjustment and who made it.

import { el, fill, money } from "./dom.js";
import { served } from "./api.js";
import { picture, problemNotice, tint } from "./catalogue.js";

/** From this age of the region's last word on, the shopper is told. */
const STALE_MS_SHOWN = 5_000;

const GIFT = /~(.+)$/;

function adjustment(applied, currency) {
  return el(
    "li",
    { class: "adjustment" },
    el("span", {}, applied.label || applied.code, " ", el("span", { class: "by", title: `${applied.plugin}, release ${applied.release}, rule ${applied.code}` }, applied.plugin)),
    el("span", { class: applied.amount < 0 ? "amount off" : "amount" }, money(applied.amount, currency)),
  );
}

function stepper(line, act) {
  const change = (to) => () => act.set(line.line, to);
  return el(
    "div",
    { class: "stepper", role: "group", "aria-label": `Quantity of ${line.title}` },
    el("button", { type: "button", "aria-label": `One fewer of ${line.title}`, "data-focus": `less-${line.line}`, onclick: change(line.quantity - 1) }, "−"),
    el("output", {}, String(line.quantity)),
    el("button", { type: "button", "aria-label": `One more of ${line.title}`, "data-focus": `more-${line.line}`, onclick: change(line.quantity + 1) }, "+"),
  );
}

function lineRow(line, shop, act) {
  const gift = line.line.match(GIFT);
  // A present is not in the window, so its picture is the parcel.
  const product = shop.bySku.get(line.line.replace(GIFT, "")) ?? { sku: line.line };
  const reduced = line.total < line.amount;
  return el(
    "li",
    { class: "line" },
    el("div", { class: `thumb ${tint(product.sku)}` }, picture(product, 56)),
    el(
      "div",
      { class: "line-body" },
      el(
        "div",
        { class: "line-top" },
        el("p", { class: "line-title" }, line.title, gift && el("span", { class: "gift" }, `added by ${gift[1]}`),
          line.quantity > 1 && !gift && el("small", {}, `${money(line.unit_price, shop.currency)} each`)),
        el("p", { class: "line-total" }, reduced && el("s", {}, el("span", { class: "visually-hidden" }, "before "), money(line.amount, shop.currency)), " ", money(line.total, shop.currency)),
      ),
      line.adjustments.length > 0 && el("ul", { class: "adjustments", "aria-label": `Adjustments of ${line.title}` }, line.adjustments.map((a) => adjustment(a, shop.currency))),
      el(
        "div",
        { class: "line-tools" },
        gift ? el("span", { class: "muted" }, `${line.quantity} × free`) : stepper(line, act),
        !gift && el("button", { type: "button", class: "link", "aria-label": `Remove ${line.title}`, "data-focus": `remove-${line.line}`, onclick: () => act.remove(line.line, line.title) }, "Remove"),
      ),
    ),
  );
}

function coupons(state, act) {
  const input = el("input", { id: "coupon", name: "coupon", autocomplete: "off", autocapitalize: "characters", spellcheck: false, maxLength: 40, placeholder: "WELCOME10", "data-focus": "coupon" });
  return el(
    "form",
    {
      class: "coupon",
      onsubmit: (event) => {
        event.preventDefault();
        const code = input.value.trim().toUpperCase();
        if (code) act.coupon(code);
      },
    },
    el("label", { for: "coupon" }, "Coupon"),
    el("div", { class: "coupon-row" }, input, el("button", { type: "submit", class: "quiet" }, "Apply")),
    state.coupons.length > 0 &&
      el("ul", { class: "chips", "aria-label": "Your coupons" }, state.coupons.map((c) =>
        el("li", {}, el("code", {}, c), el("button", { type: "button", "aria-label": `Take coupon ${c} out`, "data-focus": `coupon-${c}`, onclick: () => act.dropCoupon(c) }, "×")))),
  );
}

function notices(state, quote, act) {
  return [
    state.problem && problemNotice(state.problem, el("button", { type: "button", class: "link", onclick: act.dismiss }, "Dismiss")),
    state.waiting &&
      el(
        "div",
        { class: "notice wait", role: "status" },
        el("p", {}, el("strong", {}, "The order desk cannot be reached just now")),
        el("p", {}, "Your basket is kept safely on this node and its prices still hold. We place the order as soon as the line is back; it cannot be placed twice."),
        el("p", { class: "actions" }, el("span", { class: "muted" }, `Next try in ${state.waiting.seconds} s (try ${state.waiting.tries})`), el("button", { type: "button", class: "link", "data-focus": "stop-waiting", onclick: act.stopWaiting }, "Stop trying")),
      ),
    served.stale && !state.waiting &&
      el("div", { class: "notice info" }, el("p", {}, "You changed this basket at another place, and this node cannot ask for the newest state just now. What is missing here is not lost.")),
    !served.stale && quote?.stale_ms > STALE_MS_SHOWN && !state.waiting &&
      el("div", { class: "notice info" }, el("p", {}, `This node last heard from the shop's region ${Math.round(quote.stale_ms / 1000)} s ago. You can go on shopping; an order may have to wait.`)),
    (quote?.fallbacks ?? []).map((f) =>
      el("div", { class: "notice info" }, el("p", {}, el("strong", {}, `The rule “${f.plugin}” fell back`), ` (${f.reason}). Prices without it are shown.`))),
    (quote?.unavailable ?? []).map((line) =>
      el("div", { class: "notice info" }, el("p", {}, `${line} is no longer for sale and is not in the total. `, el("button", { type: "button", class: "link", onclick: () => act.remove(line, line) }, "Take it out")))),
  ];
}

/** Draws the basket. `state` is { quote, coupons, problem, busy, waiting, priceChanged }. */
export function drawBasket(aside, shop, state, act) {
  const { quote } = state;
  const lines = quote?.lines ?? [];
  const saved = lines.reduce((sum, l) => sum + l.amount - l.total, 0);
  const head = el("h2", { id: "basket-title", tabIndex: -1, "data-fallback-focus": "" }, "Your basket");
  if (lines.length === 0) {
    fill(aside, head, notices(state, quote, act),
      el("div", { class: "empty" }, el("img", { src: "/img/basket.svg", alt: "", width: 110, height: 110 }), el("p", {}, state.loading ? "Looking for your basket…" : "Nothing in it yet."), el("a", { class: "narrow-only", href: "#/" }, "To the products")));
    return;
  }
  fill(
    aside,
    head,
    notices(state, quote, act),
    el("ul", { class: "lines", "data-scroll": "" }, lines.map((l) => lineRow(l, shop, act))),
    coupons(state, act),
    el(
      "dl",
      { class: "totals" },
      el("dt", {}, "Subtotal"), el("dd", {}, money(quote.subtotal, quote.currency)),
      quote.adjustments.map((a) => [
        el("dt", {}, a.label || a.code, " ", el("span", { class: "by", title: `${a.plugin}, release ${a.release}, rule ${a.code}` }, a.plugin)),
        el("dd", { class: a.amount < 0 ? "off" : "" }, money(a.amount, quote.currency)),
      ]),
      el("dt", { class: "total" }, "Total"), el("dd", { class: "total" }, money(quote.total, quote.currency)),
    ),
    saved > 0 && el("p", { class: "saved" }, `You save ${money(saved, quote.currency)} on these lines.`),
    el(
      "button",
      { type: "button", class: "primary wide", disabled: Boolean(state.busy || state.waiting), "data-focus": "order", onclick: act.order },
      state.busy ? "Placing your order…" : state.priceChanged ? `Order at the new total, ${money(quote.total, quote.currency)}` : `Order, ${money(quote.total, quote.currency)}`,
    ),
    el("p", { class: "served" }, "Priced by node ", el("b", {}, quote.pop ? `${quote.pop}/${quote.node}` : "unknown"), ` at price version ${quote.price_version}`),
  );
}

/** Draws the confirmation of an order. */
export function drawOrder(main, shop, order) {
  const quote = order.quote ?? {};
  const currency = quote.currency ?? shop.currency;
  fill(
    main,
    el(
      "section",
      { class: "order" },
      el("p", { class: "tick", "aria-hidden": "true" }, "✓"),
      el("h1", { tabIndex: -1, "data-page-title": "" }, "Thank you. Your order is placed."),
      el("p", {}, "Order number ", el("code", {}, order.order ?? order.id)),
      el("ul", { class: "lines plain" }, (quote.lines ?? []).map((l) => el("li", {}, el("span", {}, `${l.quantity} × ${l.title}`), el("span", {}, money(l.total, currency))))),
      el(
        "dl",
        { class: "totals" },
        el("dt", {}, "Subtotal"), el("dd", {}, money(quote.subtotal ?? 0, currency)),
        (quote.adjustments ?? []).map((a) => [el("dt", {}, a.label || a.code), el("dd", {}, money(a.amount, currency))]),
        el("dt", { class: "total" }, "Total"), el("dd", { class: "total" }, money(quote.total ?? 0, currency)),
      ),
      (order.notes ?? []).map((n) => el("p", { class: "notice info" }, n.text)),
      el("p", {}, el("a", { class: "primary", href: "#/" }, "Go on shopping")),
    ),
  );
}
