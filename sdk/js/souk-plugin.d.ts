// Generated from sdk/wit; do not edit. One ambient module per interface of the contract.
//
// 64-bit integers are numbers (money stays below 2^53 minor units), an absent value is null, and a function that may refuse
// returns its answer or throws a Refusal.

declare module "souk:plugin/types@0.1.0" {
  /** An amount in the minor unit of the call's currency (pence, cents, yen). */
  export type Minor = number;

  /** What a decision may depend on beside its subject. Every field is fixed before the call. */
  export interface Context {
    /** Milliseconds since 1970-01-01T00:00:00Z, frozen for the whole request. */
    nowMs: number;
    /** ISO 4217, e.g. `GBP`. One currency per call. */
    currency: string;
    /** ISO 3166-1 alpha-2 of where the cart is to be delivered, e.g. `FR`; empty when not known. */
    country: string;
    /** ISO 3166-2 subdivision, where known. */
    region: string | null;
    /** BCP 47, e.g. `en-GB`; empty when not known. */
    language: string;
    /** Segments of a shopper who signed in, vouched for by the merchant's token; never taken from the request. */
    segments: string[];
    /** The shopper's customer number, from the same token. */
    customer: string | null;
    /** Coupon codes that the shopper entered, upper case, sorted. */
    coupons: string[];
    /** Fixed per cart (or per listing): the only source of chance a plugin has. */
    seed: number;
    /** The release's settings, JSON, exactly as the merchant deployed them. */
    settings: string;
  }

  /** What is known at the edge about stock. Never a promise: the region decides at checkout. */
  export type StockHint =
    | { tag: "unknown" }
    | { tag: "out" }
    | { tag: "low"; val: number }
    | { tag: "in-stock" };

  export interface Product {
    sku: string;
    title: string;
    price: Minor;
    compareAt: Minor | null;
    tags: string[];
    attributes: [string, string][];
    stock: StockHint;
  }

  /** One line of a cart, as the plugins before this one left it. */
  export interface Line {
    /** Names the line within this call only. */
    id: number;
    product: Product;
    quantity: number;
    /** `price` times `quantity` after the adjustments of the plugins before this one. */
    amount: Minor;
    /** Which plugin added the line (a gift, a bundle part); none for a line that the shopper added. */
    addedBy: string | null;
  }

  /** A plugin's "no", for the shopper to read. */
  export interface Refusal {
    /** Stable, machine-readable, `[a-z0-9_]{1,64}`. */
    code: string;
    /** One sentence, at most 500 bytes. */
    message: string;
  }
}

/** What a hook plugin may ask of its host. Every answer is recorded for replay and priced in one budget per call. */
declare module "souk:plugin/host@0.1.0" {
  import type { Product } from "souk:plugin/types@0.1.0";

  export type Level = "debug" | "info" | "warn" | "error";

  /** A line for the merchant's log. Longer than 1 KiB is cut; more than 16 KiB in one call ends the call. */
  export function log(level: Level, text: string): void;
  /** A product of the same site, or none. */
  export function lookupProduct(sku: string): Product | null;
  /** A value of the site's edge data, or none. */
  export function kvGet(key: string): Uint8Array | null;
}

/** Decorates a page of products: hides, ranks, badges, relabels. It cannot invent a product. */
declare module "souk:plugin/catalog@0.1.0" {
  import type { Context, Product, Refusal } from "souk:plugin/types@0.1.0";

  export interface Presentation {
    sku: string;
    /** Leave the product out of this page. */
    hidden: boolean;
    /** Higher comes first; equal ranks keep the merchant's order. 0 where nothing is said. */
    rank: number;
    /** Short labels to show with the product ("New", "-20 %"), at most 8 of 40 bytes. */
    badges: string[];
    /** Another title for this shopper. */
    title: string | null;
  }

  /** What a plugin exports under the name `catalog`. */
  export interface Catalog {
    /** Products without a presentation are shown as they are. */
    present(ctx: Context, products: Product[]): Presentation[];
  }
}

/** Changes prices by adjustments. Totals are the host's work, so that they add up and can be explained. */
declare module "souk:plugin/pricing@0.1.0" {
  import type { Context, Line, Minor, Refusal } from "souk:plugin/types@0.1.0";

  export type Target =
    /** The `id` of a line of this call. */
    | { tag: "line"; val: number }
    /** The whole cart, after all lines. */
    | { tag: "cart" };

  export type Effect =
    /** Basis points of the running amount: -1000 is ten per cent off. */
    | { tag: "percent"; val: number }
    /** Added to the running amount: -250 is 2.50 off in a currency with two decimals. */
    | { tag: "amount"; val: Minor }
    /** Replaces the price of one unit; lines only. */
    | { tag: "unit-price"; val: Minor };

  export interface Adjustment {
    target: Target;
    effect: Effect;
    /** Stable, machine-readable, `[a-z0-9_.-]{1,64}`. */
    code: string;
    /** For the shopper, at most 120 bytes. */
    label: string;
  }

  /** What a plugin exports under the name `pricing`. */
  export interface Pricing {
    /** Applied in the order given. The price guard checks the result and drops all of it if a rule is broken. */
    adjust(ctx: Context, lines: Line[]): Adjustment[];
  }
}

/** Reviews a change to a cart before it is accepted. */
declare module "souk:plugin/cart@0.1.0" {
  import type { Context, Line, Refusal } from "souk:plugin/types@0.1.0";

  export type Change =
    | { tag: "add"; val: [string, number] }
    /** Line id and new quantity. */
    | { tag: "set"; val: [number, number] }
    | { tag: "remove"; val: number };

  export type CartOp =
    /** Accept the change, but with at most this quantity on its line afterwards. */
    | { tag: "cap"; val: number }
    /** Put a line of this plugin's own into the cart (sku, quantity); quantity 0 takes it out. */
    | { tag: "put"; val: [string, number] }
    /** Take out a line of `before`. */
    | { tag: "remove"; val: number };

  /** What a plugin exports under the name `cart`. */
  export interface Cart {
    /** An empty list accepts the change as it is. A refusal leaves the cart untouched. */
    review(ctx: Context, before: Line[], change: Change): CartOp[];
  }
}

/** The last look at an order before it is placed. */
declare module "souk:plugin/checkout@0.1.0" {
  import type { Context, Line, Minor, Refusal } from "souk:plugin/types@0.1.0";

  export interface OrderDraft {
    lines: Line[];
    total: Minor;
  }

  export interface Note {
    code: string;
    text: string;
  }

  /** What a plugin exports under the name `checkout`. */
  export interface Checkout {
    /** Notes are kept with the order. A refusal stops the checkout and loses nothing. */
    review(ctx: Context, draft: OrderDraft): Note[];
  }
}
