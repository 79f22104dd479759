// The sample shop: puts the address, the catalogue and the basket together. The address after `#` says what is shown:
// nothing or `/d/<department>` the window, `/p/<sku>` a product, `/basket` the basket (narrow screens), `/order/<id>` a
// placed order, `/cart/<id>` takes over a basket that was begun at another node.

import { api, freshKey, Problem, served } from "./api.js";
import { drawBasket, drawOrder } from "./basket.js";
import { drawCatalogue, drawProduct, problemNotice } from "./catalogue.js";
import { el, fill, money, say } from "./dom.js";

/** More than this and the window needs pages: the sample shop has 200 products. */
const PRODUCTS_MAX = 2_000;
/** A pause in typing after which the node is asked: a quick typist's letters are closer together. */
const TYPING_MS = 120;
/** How often a checkout is tried again by itself while the region is away. */
const CHECKOUT_TRIES_MAX = 20;
const COUNTRIES = "GB AT AU BE BG CA CH CY CZ DE DK EE ES FI FR GR HU IE IL IS IT JP LT LU LV NL NO NZ PL PT RO SE SG SI SK US".split(" ");

const main = document.getElementById("main");
const aside = document.getElementById("basket");
const search = document.getElementById("search");
const country = document.getElementById("country");

const shop = { products: [], bySku: new Map(), currency: "GBP" };
const nothingFound = () => ({ products: [], next: null, loading: false, problem: null });
const view = { department: "", words: "", found: nothingFound(), shown: 0, loading: true, problem: null };
const basket = { cart: null, quote: null, coupons: [], problem: null, busy: false, waiting: null, priceChanged: false, loading: true };

// Storage can be forbidden; the shop then forgets the basket on reload and is otherwise whole.
const memory = {
  get: (name) => {
    try { return localStorage.getItem(name); } catch { return null; }
  },
  set: (name, value) => {
    try { value === null ? localStorage.removeItem(name) : localStorage.setItem(name, value); } catch { /* forgetful, not broken */ }
  },
};

// The node's cookie names the basket, so that another PoP of the same host name finds it too.
const cookie = {
  cart: () => document.cookie.match(/(?:^|; )souk_cart=([0-9a-f]{32})/)?.[1] ?? null,
  forget: () => (document.cookie = "souk_cart=; Path=/; Max-Age=0; SameSite=Lax"),
};

// One change to the basket at a time: a quick finger must not overtake itself.
let queue = Promise.resolve();
function inOrder(work) {
  queue = queue.then(work).catch((error) => failed(error));
  return queue;
}

function failed(error) {
  if (!(error instanceof Problem)) {
    console.error(error);
    error = new Problem(0, { code: "page_error", title: "The page made a mistake", detail: "Reload it; your basket is kept." });
  }
  basket.problem = error;
  document.getElementById("live").textContent = `${error.title}. ${error.detail}`;
  draw.basket();
  // On a narrow screen the basket is another page: there a passing word tells that something is to be read.
  if (aside.offsetParent === null) say(error.detail || error.title);
  else aside.querySelector(".notice")?.scrollIntoView({ block: "nearest" });
}

const draw = {
  basket() {
    const pieces = (basket.quote?.lines ?? []).reduce((sum, l) => sum + l.quantity, 0);
    const link = document.querySelector(".basket-link");
    document.getElementById("basket-count").textContent = String(pieces);
    const total = basket.quote && pieces > 0 ? `, ${money(basket.quote.total, basket.quote.currency)}` : "";
    link.setAttribute("aria-label", `Basket: ${pieces} ${pieces === 1 ? "piece" : "pieces"}${total}`);
    drawBasket(aside, shop, basket, act);
  },
  main() {
    const [, kind, name] = location.hash.replace(/^#/, "").split("/").map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
    document.body.dataset.view = kind || "window";
    if (kind === "p") return productPage(name);
    if (kind === "order") return orderPage(name);
    if (kind === "cart" && /^[0-9a-f]{32}$/.test(name ?? "")) return takeOver(name);
    view.department = kind === "d" ? (name ?? "") : "";
    document.title = "Tarn & Tansy";
    drawCatalogue(main, shop, view, act);
  },
};

// ---- the catalogue ----------------------------------------------------------------------------------------------

async function loadProducts() {
  view.loading = true;
  view.problem = null;
  draw.main();
  try {
    let cursor;
    const products = [];
    do {
      const page = await api.products(cursor);
      for (const p of page.products) products.push(p);
      shop.currency = page.products[0]?.currency ?? shop.currency;
      cursor = page.next;
    } while (cursor && products.length < PRODUCTS_MAX);
    shop.products = products;
    shop.bySku = new Map(products.map((p) => [p.sku, p]));
  } catch (problem) {
    view.problem = problem;
  }
  view.loading = false;
  if (!document.body.dataset.view.match(/^(p|order)$/)) draw.main();
  draw.basket();
}

let searches = 0;
/** Asks the node for what has been typed, or for the page after what was found. An answer that was overtaken is not shown. */
async function lookUp(words, cursor) {
  const turn = ++searches;
  const show = () => {
    if (!/^#\/(p|order|cart)\//.test(location.hash)) draw.main();
  };
  view.found.loading = true;
  view.found.problem = null;
  show();
  const found = cursor ? view.found : nothingFound();
  try {
    const page = await api.search(words, cursor);
    if (turn !== searches) return;
    const known = new Set(found.products.map((p) => p.sku));
    found.products = [...found.products, ...page.products.filter((p) => !known.has(p.sku))];
    found.next = page.next;
    shop.currency = page.products[0]?.currency ?? shop.currency;
  } catch (problem) {
    if (turn !== searches) return;
    // Punctuation only: nothing has that name.
    if (problem.code !== "bad_query") found.problem = problem;
  }
  found.loading = false;
  view.found = found;
  show();
}

function forgetSearch() {
  searches += 1;
  search.value = view.words = "";
  view.found = nothingFound();
}

let pages = 0;
async function showPage(load, show) {
  const page = ++pages;
  window.scrollTo(0, 0);
  try {
    const value = await load();
    if (page !== pages) return;
    show(value);
    const title = main.querySelector("[data-page-title]");
    document.title = `${title?.textContent ?? ""} · Tarn & Tansy`;
    title?.focus();
  } catch (problem) {
    if (page === pages) fill(main, el("p", { class: "back" }, el("a", { href: "#/" }, "← All products")), problemNotice(problem));
  }
}

const productPage = (sku) => showPage(async () => shop.bySku.get(sku) ?? api.product(sku), (p) => drawProduct(main, shop, p.product ?? p, act));
const orderPage = (id) => showPage(() => api.order(id), (order) => drawOrder(main, shop, order));

function takeOver(id) {
  remember(id);
  location.replace("#/basket");
  inOrder(refresh).then(() => say("Your basket is here."));
}

// ---- the basket -------------------------------------------------------------------------------------------------

function remember(id) {
  basket.cart = id;
  memory.set("cart", id);
  if (id === null) cookie.forget();
}

/** The next thing that is added begins a new basket. */
function forget() {
  remember(null);
  basket.quote = null;
  basket.coupons = [];
}

async function cartId() {
  if (!basket.cart) remember((await api.newCart(country.value)).cart);
  return basket.cart;
}

async function refresh() {
  if (basket.cart) {
    try {
      const [cart, quote] = await Promise.all([api.cart(basket.cart), api.quote(basket.cart)]);
      if (cart.order) throw new Problem(409, { code: "cart_sealed" });
      basket.coupons = cart.coupons ?? [];
      basket.quote = quote;
      if (cart.country && COUNTRIES.includes(cart.country)) country.value = cart.country;
    } catch (error) {
      // A basket that became an order, or that nobody knows any more: begin a new one.
      if (error.code !== "cart_sealed" && error.code !== "unknown_cart") {
        basket.loading = false;
        throw error;
      }
      forget();
    }
  }
  basket.loading = false;
  draw.basket();
}

/** Runs one change, then shows the basket as the node now prices it. */
function change(work, done) {
  return inOrder(async () => {
    basket.problem = null;
    basket.priceChanged = false;
    let cart;
    try {
      cart = await work(await cartId());
    } catch (error) {
      if (error.code !== "cart_sealed" && error.code !== "unknown_cart") throw error;
      forget();
      cart = await work(await cartId());
    } finally {
      await refresh();
    }
    if (done) say(done(cart));
  });
}

const act = {
  reload: loadProducts,
  more(shown) {
    view.shown = shown;
    draw.main();
  },
  clearSearch() {
    forgetSearch();
    draw.main();
  },
  searchAgain: () => lookUp(view.words),
  searchOn: () => lookUp(view.words, view.found.next),
  add(product, quantity, button) {
    button?.classList.add("done");
    setTimeout(() => button?.classList.remove("done"), 900);
    return change((id) => api.add(id, product.sku, quantity), (cart) => {
      const now = cart.lines.find((l) => l.line === product.sku)?.quantity ?? 0;
      // The shop's rules may take less than was asked for.
      if (cart.limited) return `Only ${now} of ${product.title} fit into one order.`;
      return now > 1 ? `${now} of ${product.title} are in your basket.` : `${product.title} is in your basket.`;
    });
  },
  set: (line, quantity) => change((id) => (quantity < 1 ? api.remove(id, line) : api.set(id, line, quantity))),
  remove: (line, title) => change((id) => api.remove(id, line), () => `${title} was taken out.`),
  coupon: (code) => change((id) => api.coupon(id, code), () => {
    const unused = basket.quote.unused_coupons ?? [];
    return !unused.includes(code) ? `Coupon ${code} is applied.` : `Coupon ${code} is kept; it changes nothing yet.`;
  }),
  dropCoupon: (code) => change((id) => api.dropCoupon(id, code), () => `Coupon ${code} was taken out.`),
  dismiss() {
    basket.problem = null;
    draw.basket();
  },
  order: () => inOrder(placeOrder),
  stopWaiting() {
    clearInterval(basket.waiting?.timer);
    basket.waiting = null;
    draw.basket();
  },
};

// ---- the checkout -----------------------------------------------------------------------------------------------

/** One key for one intent: the same basket at the same total. It outlives a reload, so that a retry cannot order twice. */
function orderKey(cart, total) {
  const kept = (memory.get("order-key") ?? "").split(" ");
  if (kept[0] === cart && kept[1] === String(total)) return kept[2];
  const key = freshKey();
  memory.set("order-key", `${cart} ${total} ${key}`);
  return key;
}

async function placeOrder(tries = 1) {
  const { cart, quote } = basket;
  if (!cart || !quote) return;
  basket.problem = null;
  basket.busy = true;
  draw.basket();
  try {
    const order = await api.checkout(cart, quote.total, orderKey(cart, quote.total));
    ordered(order.order ?? order.id);
  } catch (error) {
    if (error.code === "price_changed" && error.body.quote) {
      const now = error.body.quote;
      basket.quote = { ...quote, ...now };
      basket.priceChanged = true;
      error.title = "The total has changed";
      error.detail = `It is ${money(now.total, now.currency)} now; you saw ${money(quote.total, quote.currency)}. Nothing has been ordered yet: have a look, then order again.`;
      throw error;
    }
    if (error.code === "cart_sealed" && error.body.order) return ordered(error.body.order);
    if (error.code === "unknown_cart") forget();
    if ((error.status === 503 || error.status === 0) && tries < CHECKOUT_TRIES_MAX) return wait(tries, error.retryAfter ?? 3);
    throw error;
  } finally {
    basket.busy = false;
    draw.basket();
  }
}

function ordered(id) {
  forget();
  memory.set("order-key", null);
  basket.waiting = null;
  say("Your order is placed.");
  location.hash = `#/order/${id}`;
}

function wait(tries, seconds) {
  clearInterval(basket.waiting?.timer);
  const waiting = { tries, seconds: Math.max(1, Math.min(30, seconds)) };
  basket.waiting = waiting;
  waiting.timer = setInterval(() => {
    waiting.seconds -= 1;
    if (waiting.seconds > 0) return draw.basket();
    clearInterval(waiting.timer);
    if (basket.waiting === waiting) {
      basket.waiting = null;
      inOrder(() => placeOrder(tries + 1));
    }
  }, 1_000);
}

// ---- the beginning ----------------------------------------------------------------------------------------------

const names = new Intl.DisplayNames([document.documentElement.lang], { type: "region" });
fill(country, COUNTRIES.map((code) => el("option", { value: code }, names.of(code))));
country.value = memory.get("country") ?? "GB";
country.addEventListener("change", () => {
  memory.set("country", country.value);
  if (basket.cart) change((id) => api.country(id, country.value), () => `Delivered to ${names.of(country.value)}.`);
});

let typing;
search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    if (search.value.trim() === view.words.trim()) return;
    if (search.value.trim() === "") forgetSearch();
    view.words = search.value;
    view.shown = 0;
    if (/^#\/(p|order|basket)/.test(location.hash)) location.hash = "#/";
    if (view.words.trim() === "") draw.main();
    else lookUp(view.words);
  }, TYPING_MS);
});

served.onchange = () => {
  const line = document.getElementById("served");
  line.hidden = false;
  fill(line, "Served by node ", el("b", {}, served.node));
};

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", () => {
  view.shown = 0;
  draw.main();
  if (location.hash === "#/basket") document.getElementById("basket-title")?.focus();
});

basket.cart = cookie.cart() ?? memory.get("cart");
draw.main();
draw.basket();
loadProducts();
inOrder(refresh);
