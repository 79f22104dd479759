"""No order below a least amount; a note on large ones. Settings: {"least": 500}"""
import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.checkout import Note
from wit_world.imports.types import Refusal


class Checkout(exports.Checkout):
    def review(self, ctx, draft):
        least = (json.loads(ctx.settings or "{}") or {}).get("least", 500)
        if draft.total < least:
            raise Err(Refusal("order_too_small", f"Orders begin at {least / 100:.2f} {ctx.currency}."))
        return [Note("signature", "Deliver against signature")] if draft.total >= 10000 else []
