import unittest

from souk_testing import context
from wit_world.exports.cart import CartOp_Cap, Change_Add, Change_Remove

from plugin import Cart


class TestPlugin(unittest.TestCase):
    def test_what_is_added_is_capped(self):
        self.assertEqual(Cart().review(context(), [], Change_Add(("MUG", 40))), [CartOp_Cap(12)])

    def test_taking_out_is_always_allowed(self):
        self.assertEqual(Cart().review(context(), [], Change_Remove(0)), [])
