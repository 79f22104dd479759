// The shopper's API of the node that served this page. Every refusal becomes a `Problem` (RFC 9457).

/** Longest wait for an answer. A node answers from its own disk; only a checkout waits for the region. */
const ANSWER_MS_MAX = 15_000;

export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body.detail || body.title || `The shop answered ${status}.`);
    this.status = status;
    this.code = body.code || `http_${status}`;
    this.title = body.title || "That did not work";
    this.detail = body.detail || "";
    this.body = body;
    this.retryAfter = retryAfter;
  }
}

/** Which node answered last, "pop/id". */
export const served = { node: null, stale: false, onchange: () => {} };

async function request(method, path, body, headers = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      credentials: "same-origin",
      headers: { accept: "application/json", ...(body ? { "content-type": "application/json" } : {}), ...headers },
      body: body ? JSON.stringify(body) : undefined,
      signal: AbortSignal.timeout(ANSWER_MS_MAX),
    });
  } catch (error) {
    const detail =
      error.name === "TimeoutError"
        ? "The node did not answer in time. What you did may or may not have arrived; the basket shows which."
        : "Your connection to the shop seems to be down. Your basket is kept.";
    throw new Problem(0, { code: "no_connection", title: "The shop cannot be reached", detail });
  }
  const node = response.headers.get("x-souk-node");
  if (node && node !== served.node) {
    served.node = node;
    served.onchange();
  }
  // The node has an older copy of the basket than this shopper has seen, and cannot ask for the newer one just now.
  if (/^\/api\/carts\//.test(path)) served.stale = response.headers.has("x-souk-stale");
  const text = await response.text();
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    if (response.ok) throw new Problem(502, { code: "bad_answer", title: "The shop's answer could not be read" });
  }
  if (response.ok) return value;
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  throw new Problem(response.status, value ?? {}, Number.isFinite(seconds) ? seconds : undefined);
}

const at = encodeURIComponent;

export const api = {
  products: (cursor) => request("GET", `/api/products?limit=100${cursor ? `&cursor=${at(cursor)}` : ""}`),
  search: (words, cursor) => request("GET", `/api/products?q=${at(words)}${cursor ? `&cursor=${at(cursor)}` : ""}`),
  product: (sku) => request("GET", `/api/products/${at(sku)}`),
  newCart: (country) => request("POST", "/api/carts", { country }),
  cart: (id) => request("GET", `/api/carts/${at(id)}`),
  country: (id, country) => request("PATCH", `/api/carts/${at(id)}`, { country }),
  add: (id, sku, quantity) => request("POST", `/api/carts/${at(id)}/lines`, { sku, quantity }),
  set: (id, line, quantity) => request("PATCH", `/api/carts/${at(id)}/lines/${at(line)}`, { quantity }),
  remove: (id, line) => request("DELETE", `/api/carts/${at(id)}/lines/${at(line)}`),
  coupon: (id, code) => request("PUT", `/api/carts/${at(id)}/coupons/${at(code)}`),
  dropCoupon: (id, code) => request("DELETE", `/api/carts/${at(id)}/coupons/${at(code)}`),
  quote: (id) => request("GET", `/api/carts/${at(id)}/quote`),
  checkout: (id, total, key) => request("POST", "/api/checkouts", { cart: id, total }, { "idempotency-key": key }),
  order: (id) => request("GET", `/api/orders/${at(id)}`),
};

/** A name that nobody else uses: 128 random bits. */
export function freshKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
}
