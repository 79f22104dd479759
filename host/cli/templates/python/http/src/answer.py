"""What is answered, without a word of HTTP's machinery, so that a unit test can ask."""
import json


def answer(get, path_with_query):
    if not get:
        return 405, [("allow", "GET")], "only GET is answered here\n"
    path = path_with_query.split("?")[0]
    return 200, [("content-type", "application/json")], json.dumps({"plugin": "{{name}}", "path": path})
