"""At most so many of one product in a cart. Settings: {"most": 12}"""
import json

from wit_world import exports
from wit_world.exports.cart import CartOp_Cap, Change_Remove


class Cart(exports.Cart):
    def review(self, ctx, before, change):
        most = (json.loads(ctx.settings or "{}") or {}).get("most", 12)
        return [] if isinstance(change, Change_Remove) else [CartOp_Cap(most)]
