// A badge for what is reduced, and what is sold out goes to the end of the page.
/// <reference path="../souk/souk-plugin.d.ts" />

/** @type {import("souk:plugin/catalog@0.1.0").Catalog} */
export const catalog = {
  present(_ctx, products) {
    return products.map((product) => {
      const was = product.compareAt ?? 0;
      const off = was > product.price ? Math.floor(((was - product.price) * 100) / was) : 0;
      return {
        sku: product.sku,
        hidden: false,
        rank: product.stock.tag === "out" ? -1 : 0,
        badges: off > 0 ? [`-${off} %`] : [],
        title: null,
      };
    });
  },
};
