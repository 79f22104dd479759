// No order below a least amount; a note on large ones. Settings: {"least": 500}
/// <reference path="../souk/souk-plugin.d.ts" />

/** @type {import("souk:plugin/checkout@0.1.0").Checkout} */
export const checkout = {
  review(ctx, draft) {
    const { least = 500 } = JSON.parse(ctx.settings || "{}") ?? {};
    if (draft.total < least) {
      throw { code: "order_too_small", message: `Orders begin at ${(least / 100).toFixed(2)} ${ctx.currency}.` };
    }
    return draft.total >= 10000 ? [{ code: "signature", text: "Deliver against signature" }] : [];
  },
};
