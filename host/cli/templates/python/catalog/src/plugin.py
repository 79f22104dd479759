"""A badge for what is reduced, and what is sold out goes to the end of the page."""
from wit_world import exports
from wit_world.exports.catalog import Presentation
from wit_world.imports.types import StockHint_Out


class Catalog(exports.Catalog):
    def present(self, ctx, products):
        return [present(product) for product in products]


def present(product):
    was = product.compare_at or 0
    off = (was - product.price) * 100 // was if was > product.price else 0
    rank = -1 if isinstance(product.stock, StockHint_Out) else 0
    return Presentation(product.sku, False, rank, [f"-{off} %"] if off > 0 else [], None)
