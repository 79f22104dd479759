import dataclasses
import unittest

from souk_testing import context, product
from wit_world.imports.types import StockHint_Out

from plugin import Catalog


class TestPlugin(unittest.TestCase):
    def test_a_reduced_product_says_by_how_much(self):
        kettle = dataclasses.replace(product("KETTLE", 4800), compare_at=5600)
        self.assertEqual(Catalog().present(context(), [kettle])[0].badges, ["-14 %"])

    def test_what_is_sold_out_goes_to_the_end(self):
        gone = dataclasses.replace(product("BOWL", 900), stock=StockHint_Out())
        shown = Catalog().present(context(), [gone, product("MUG", 1250)])
        self.assertEqual([p.rank for p in shown], [-1, 0])
