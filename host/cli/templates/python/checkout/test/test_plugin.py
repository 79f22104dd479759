import unittest

from souk_testing import context
from componentize_py_types import Err
from wit_world.exports.checkout import OrderDraft

from plugin import Checkout


class TestPlugin(unittest.TestCase):
    def test_a_small_order_is_refused_with_a_reason(self):
        with self.assertRaises(Err) as refused:
            Checkout().review(context(), OrderDraft([], 499))
        self.assertEqual(refused.exception.value.code, "order_too_small")
        self.assertEqual(refused.exception.value.message, "Orders begin at 5.00 GBP.")

    def test_a_large_order_is_delivered_against_signature(self):
        self.assertEqual(Checkout().review(context(), OrderDraft([], 9999)), [])
        notes = Checkout().review(context(), OrderDraft([], 10000))
        self.assertEqual([note.code for note in notes], ["signature"])
