import assert from "node:assert/strict";
import test from "node:test";

import { context } from "../souk/testing.js";
import { checkout } from "../src/plugin.js";

test("a small order is refused with a reason", () => {
  assert.throws(() => checkout.review(context(), { lines: [], total: 499 }), {
    code: "order_too_small",
    message: "Orders begin at 5.00 GBP.",
  });
});

test("a large order is delivered against signature", () => {
  assert.deepEqual(checkout.review(context(), { lines: [], total: 9999 }), []);
  const notes = checkout.review(context(), { lines: [], total: 10000 });
  assert.deepEqual(notes.map((note) => note.code), ["signature"]);
});
