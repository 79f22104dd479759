import json
import unittest

import souk_testing  # finds src/
from answer import answer


class TestPlugin(unittest.TestCase):
    def test_get_is_answered_with_the_path(self):
        status, _, text = answer(True, "/hello/you?a=1")
        self.assertEqual(status, 200)
        self.assertEqual(json.loads(text), {"plugin": "{{name}}", "path": "/hello/you"})

    def test_other_methods_are_not_allowed(self):
        self.assertEqual(answer(False, "/")[0], 405)
