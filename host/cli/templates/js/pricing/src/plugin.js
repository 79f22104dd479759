// Ten per cent off every product with a tag. Settings: {"tag": "bestseller", "off_bp": 1000}
/// <reference path="../souk/souk-plugin.d.ts" />

/** @type {import("souk:plugin/pricing@0.1.0").Pricing} */
export const pricing = {
  adjust(ctx, lines) {
    const { tag = "bestseller", off_bp = 1000 } = JSON.parse(ctx.settings || "{}") ?? {};
    return lines
      .filter((line) => line.product.tags.includes(tag))
      .map((line) => ({
        target: { tag: "line", val: line.id },
        effect: { tag: "percent", val: -off_bp },
        code: "{{code}}",
        label: "{{title}}",
      }));
  },
};
