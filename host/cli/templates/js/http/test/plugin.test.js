import assert from "node:assert/strict";
import test from "node:test";

import { answer } from "../src/plugin.js";

test("GET is answered with the path", async () => {
  const response = await answer(new Request("http://shop.example/hello/you"));
  assert.equal(response.status, 200);
  assert.deepEqual(await response.json(), { plugin: "{{name}}", path: "/hello/you" });
});

test("other methods are not allowed", async () => {
  const response = await answer(new Request("http://shop.example/", { method: "POST" }));
  assert.equal(response.status, 405);
});
