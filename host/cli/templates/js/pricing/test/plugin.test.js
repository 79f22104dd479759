import assert from "node:assert/strict";
import test from "node:test";

import { context, line, product } from "../souk/testing.js";
import { pricing } from "../src/plugin.js";

const mug = line(0, product("MUG", 1250, ["bestseller"]), 2);
const bowl = line(1, product("BOWL", 900), 1);

test("only what carries the tag is reduced", () => {
  const said = pricing.adjust(context(), [mug, bowl]);
  assert.deepEqual(said.map((a) => [a.target, a.effect]), [
    [{ tag: "line", val: 0 }, { tag: "percent", val: -1000 }],
  ]);
});

test("the settings say what and how much", () => {
  const ctx = context({ settings: '{"tag": "sale", "off_bp": 500}' });
  assert.deepEqual(pricing.adjust(ctx, [mug]), []);
});
