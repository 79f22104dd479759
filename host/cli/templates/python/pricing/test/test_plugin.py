import unittest

from souk_testing import context, line, product

from plugin import Pricing

MUG = line(0, product("MUG", 1250, ["bestseller"]), 2)
BOWL = line(1, product("BOWL", 900), 1)


class TestPlugin(unittest.TestCase):
    def test_only_what_carries_the_tag_is_reduced(self):
        said = Pricing().adjust(context(), [MUG, BOWL])
        self.assertEqual([(a.target.value, a.effect.value) for a in said], [(0, -1000)])

    def test_the_settings_say_what_and_how_much(self):
        ctx = context(settings='{"tag": "sale", "off_bp": 500}')
        self.assertEqual(Pricing().adjust(ctx, [MUG]), [])
