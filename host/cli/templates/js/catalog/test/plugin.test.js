import assert from "node:assert/strict";
import test from "node:test";

import { context, product } from "../souk/testing.js";
import { catalog } from "../src/plugin.js";

test("a reduced product says by how much", () => {
  const kettle = { ...product("KETTLE", 4800), compareAt: 5600 };
  assert.deepEqual(catalog.present(context(), [kettle])[0].badges, ["-14 %"]);
});

test("what is sold out goes to the end", () => {
  const gone = { ...product("BOWL", 900), stock: { tag: "out" } };
  const ranks = catalog.present(context(), [gone, product("MUG", 1250)]).map((p) => p.rank);
  assert.deepEqual(ranks, [-1, 0]);
});
