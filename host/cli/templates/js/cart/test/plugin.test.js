import assert from "node:assert/strict";
import test from "node:test";

import { context } from "../souk/testing.js";
import { cart } from "../src/plugin.js";

test("what is added is capped", () => {
  const said = cart.review(context(), [], { tag: "add", val: ["MUG", 40] });
  assert.deepEqual(said, [{ tag: "cap", val: 12 }]);
});

test("taking out is always allowed", () => {
  assert.deepEqual(cart.review(context(), [], { tag: "remove", val: 0 }), []);
});
