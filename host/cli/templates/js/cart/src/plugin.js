// At most so many of one product in a cart. Settings: {"most": 12}
/// <reference path="../souk/souk-plugin.d.ts" />

/** @type {import("souk:plugin/cart@0.1.0").Cart} */
export const cart = {
  review(ctx, _before, change) {
    const { most = 12 } = JSON.parse(ctx.settings || "{}") ?? {};
    return change.tag === "remove" ? [] : [{ tag: "cap", val: most }];
  },
};
