// The shop window: departments, search, product cards and the page of one product.

import { el, fill, money } from "./dom.js";

/** How many cards are drawn at once; the rest comes with "Show more". */
const CARDS_AT_ONCE = 24;

const DEPARTMENTS = [
  ["", "Everything"],
  ["tea-and-coffee", "Tea & coffee"],
  ["kitchen", "Kitchen"],
  ["table", "Table"],
  ["light", "Light"],
  ["textiles", "Textiles"],
  ["bath", "Bath"],
  ["paper", "Paper"],
  ["garden", "Garden"],
  ["play", "Play"],
  ["pantry", "Pantry"],
];
const PICTURES = new Set(
  ("apron bar basket bear blanket board bottle bowl brush can candle card clock cushion cutlery dice glass jar kettle " +
    "kite knife lamp mug notebook pan pen plate pot puzzle seeds soap spoon teapot tin towel trowel").split(" "),
);
const HIDDEN_ATTRIBUTES = new Set(["picture"]);

const attribute = (product, name) => (product.attributes ?? []).find(([n]) => n === name)?.[1];

export function picture(product, size) {
  const name = attribute(product, "picture");
  const src = product.image || `/img/${PICTURES.has(name) ? name : "parcel"}.svg`;
  return el("img", { src, alt: "", width: size, height: size, loading: "lazy", decoding: "async" });
}

/** One of six tile colours, the same for the same product every time. */
export function tint(sku) {
  let sum = 0;
  for (const c of sku) sum = (sum * 31 + c.charCodeAt(0)) % 6_007;
  return `tint-${sum % 6}`;
}

function stock(product) {
  const hint = product.stock;
  if (hint === "out") return { out: true, text: "Sold out", kind: "out" };
  if (hint && typeof hint === "object" && "low" in hint) return { text: `Only ${hint.low} left`, kind: "low" };
  return null;
}

function price(product, currency) {
  const reduced = product.compare_at && product.compare_at > product.price;
  return el(
    "p",
    { class: "price" },
    reduced && el("s", {}, el("span", { class: "visually-hidden" }, "Before: "), money(product.compare_at, currency)),
    reduced && el("span", { class: "visually-hidden" }, " now: "),
    el("strong", { class: reduced ? "reduced" : "" }, money(product.price, currency)),
  );
}

const badges = (product) =>
  (product.badges ?? []).length > 0 &&
  el("ul", { class: "badges", "aria-label": "Marks" }, product.badges.map((b) => el("li", {}, b)));

function card(product, currency, add) {
  const left = stock(product);
  return el(
    "li",
    { class: "card" },
    el(
      "a",
      { class: `tile ${tint(product.sku)}`, href: `#/p/${encodeURIComponent(product.sku)}`, "data-focus": `p-${product.sku}` },
      picture(product, 200),
      el("span", { class: "visually-hidden" }, product.title),
    ),
    badges(product),
    el("h3", {}, el("a", { href: `#/p/${encodeURIComponent(product.sku)}`, tabIndex: -1 }, product.title)),
    left && el("p", { class: `stock ${left.kind}` }, left.text),
    el(
      "div",
      { class: "buy" },
      price(product, currency),
      el(
        "button",
        {
          class: "add",
          type: "button",
          disabled: Boolean(left?.out),
          "aria-label": `Add ${product.title} to the basket`,
          "data-focus": `add-${product.sku}`,
          onclick: (event) => add(product, 1, event.currentTarget),
        },
        left?.out ? "Sold out" : "Add",
      ),
    ),
  );
}

/**
 * Draws the window. `view` is { department, words, found, shown, loading, problem }: with words, `found` is what the node has found so
 * far, the best first, over all departments. `act` are the app's answers to the shopper.
 */
export function drawCatalogue(main, shop, view, act) {
  const searching = view.words.trim() !== "";
  const inDepartment = (p) => !view.department || (p.tags ?? []).includes(view.department);
  const found = searching ? view.found.products : shop.products.filter(inDepartment);
  const shown = searching ? found : found.slice(0, view.shown || CARDS_AT_ONCE);
  const title = DEPARTMENTS.find(([key]) => key === view.department)?.[1] ?? "Everything";
  const more = searching && view.found.next !== null;
  const count = `${found.length}${more ? " or more" : ""} ${found.length === 1 && !more ? "thing" : "things"}`;
  const waiting = searching ? view.found.loading : view.loading;
  const problem = searching ? view.found.problem : view.problem;
  fill(
    main,
    !view.department &&
      !searching &&
      el(
        "section",
        { class: "hero" },
        el("div", {}, el("p", { class: "eyebrow" }, "Winter letter, 2026"), el("h1", {}, "Light a candle, put the kettle on."), el("p", {}, "Two hundred things for home, table and garden, chosen because they last. Take three of a kind and the price comes down by itself; from £75 a small tin of honey drops is on us.")),
        el("div", { class: "hero-art", "aria-hidden": "true" }, ["kettle", "candle", "blanket"].map((n) => el("img", { src: `/img/${n}.svg`, alt: "", width: 150, height: 150 }))),
      ),
    el(
      "nav",
      { class: "departments", "aria-label": "Departments" },
      el("ul", {}, DEPARTMENTS.map(([key, name]) =>
        el("li", {}, el("a", { href: key ? `#/d/${key}` : "#/", "aria-current": key === view.department && !searching ? "page" : undefined, "data-focus": `d-${key}`, onclick: act.clearSearch }, name)))),
    ),
    el("div", { class: "results" },
      el(view.department || searching ? "h1" : "h2", {}, searching ? `“${view.words.trim()}”` : title),
      el("p", { class: "muted", role: "status" }, waiting && found.length === 0 ? (searching ? "Looking…" : "Fetching the catalogue…") : count)),
    problem && problemNotice(problem, el("button", { type: "button", class: "quiet", onclick: searching ? act.searchAgain : act.reload }, "Try again")),
    !waiting && !problem && found.length === 0 &&
      el("div", { class: "empty" }, el("img", { src: "/img/basket.svg", alt: "", width: 120, height: 120 }), el("p", {}, "Nothing here has that name."), el("a", { href: "#/", onclick: act.clearSearch }, "Show everything")),
    !searching && view.loading && shop.products.length === 0
      ? el("ul", { class: "grid", "aria-hidden": "true" }, Array.from({ length: 8 }, () => el("li", { class: "card ghost" })))
      : el("ul", { class: "grid" }, shown.map((p) => card(p, shop.currency, act.add))),
    more &&
      el("p", { class: "more" }, el("button", { type: "button", class: "quiet", "data-focus": "more", disabled: view.found.loading, onclick: act.searchOn }, "Show more")),
    found.length > shown.length &&
      el("p", { class: "more" }, el("button", { type: "button", class: "quiet", "data-focus": "more", onclick: () => act.more(shown.length + CARDS_AT_ONCE) }, `Show more (${found.length - shown.length} left)`)),
  );
}

/** Draws the page of one product. */
export function drawProduct(main, shop, product, act) {
  const left = stock(product);
  const quantity = el("input", { id: "quantity", type: "number", min: 1, max: 1000, step: 1, value: 1, inputMode: "numeric" });
  const details = (product.attributes ?? []).filter(([name]) => !HIDDEN_ATTRIBUTES.has(name));
  const submit = (event) => {
    event.preventDefault();
    const wanted = Number.parseInt(quantity.value, 10);
    if (Number.isInteger(wanted) && wanted > 0) act.add(product, wanted, event.submitter);
    else quantity.focus();
  };
  fill(
    main,
    el("p", { class: "back" }, el("a", { href: "#/" }, "← All products")),
    el(
      "article",
      { class: "product" },
      el("div", { class: `tile big ${tint(product.sku)}` }, picture(product, 420)),
      el(
        "div",
        {},
        badges(product),
        el("h1", { tabIndex: -1, "data-page-title": "" }, product.title),
        price(product, product.currency ?? shop.currency),
        el("p", { class: "description" }, product.description),
        left && el("p", { class: `stock ${left.kind}` }, left.text),
        el(
          "form",
          { class: "product-buy", onsubmit: submit },
          el("label", { for: "quantity" }, "Quantity"),
          quantity,
          el("button", { class: "primary", type: "submit", disabled: Boolean(left?.out) }, left?.out ? "Sold out" : "Add to basket"),
        ),
        el("dl", { class: "facts" }, details.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]), el("dt", {}, "article"), el("dd", {}, product.sku)),
      ),
    ),
  );
}

/** A refusal in the shopper's words, with its code for whoever has to look into it. */
export function problemNotice(problem, ...actions) {
  return el(
    "div",
    { class: "notice error", role: "alert" },
    el("p", {}, el("strong", {}, problem.title)),
    problem.detail && el("p", {}, problem.detail),
    el("p", { class: "code" }, "Code: ", el("code", {}, problem.code)),
    actions.length > 0 && el("p", { class: "actions" }, actions),
  );
}
