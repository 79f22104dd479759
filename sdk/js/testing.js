// Short ways to write a call down, for unit tests under Node. A plugin that imports `souk:plugin/host@0.1.0` is tested with
// `node --import ./souk/testing.js --test`: importing this file teaches Node that name, and answers come from `setProduct`
// and `setKv`.
import { register } from "node:module";

const host = (globalThis.soukTestHost ??= { products: new Map(), kv: new Map(), log: [] });

// The double's source travels as a data: URL, because Node loads hooks on a thread of their own.
const double = `
const host = globalThis.soukTestHost;
export const log = (level, text) => { host.log.push([level, text]); };
export const lookupProduct = (sku) => host.products.get(sku) ?? null;
export const kvGet = (key) => host.kv.get(key) ?? null;
export default { log, lookupProduct, kvGet };
`;
const hooks = `
const double = ${JSON.stringify(`data:text/javascript,${encodeURIComponent(double)}`)};
export const resolve = (name, context, next) =>
  name.startsWith("souk:plugin/host") ? { url: double, shortCircuit: true } : next(name, context);
`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);

/** Forgets every product, value and log line. */
export function reset() {
  host.products.clear();
  host.kv.clear();
  host.log.length = 0;
}

/** Lets `lookupProduct` find a product. */
export const setProduct = (found) => void host.products.set(found.sku, found);

/** Lets `kvGet` find a value. */
export const setKv = (key, text) => void host.kv.set(key, new TextEncoder().encode(text));

/** What was logged since the last `reset`: pairs of level and text. */
export const logged = () => [...host.log];

/** A call in pounds at the beginning of time, from nowhere, by no one; `change` is what the test is about. */
export const context = (change = {}) => ({
  nowMs: 0,
  currency: "GBP",
  country: "",
  region: null,
  language: "en-GB",
  segments: [],
  customer: null,
  coupons: [],
  seed: 0,
  settings: "",
  ...change,
});

/** A product in stock, whose title is its SKU. */
export const product = (sku, price, tags = []) => ({
  sku,
  title: sku,
  price,
  compareAt: null,
  tags,
  attributes: [],
  stock: { tag: "in-stock" },
});

/** A line that the shopper added, at the product's price. */
export const line = (id, of, quantity) => ({ id, product: of, quantity, amount: of.price * quantity, addedBy: null });
