"""Ten per cent off every product with a tag. Settings: {"tag": "bestseller", "off_bp": 1000}"""
import json

from wit_world import exports
from wit_world.exports.pricing import Adjustment, Effect_Percent, Target_Line


class Pricing(exports.Pricing):
    def adjust(self, ctx, lines):
        settings = json.loads(ctx.settings or "{}") or {}
        tag = settings.get("tag", "bestseller")
        off_bp = settings.get("off_bp", 1000)
        return [
            Adjustment(Target_Line(line.id), Effect_Percent(-off_bp), "{{code}}", "{{title}}")
            for line in lines
            if tag in line.product.tags
        ]
