import sys
from wit_world import exports
from componentize_py_types import Ok, Err
from wit_world.imports.types import (IncomingRequest, ResponseOutparam, OutgoingResponse, Fields, OutgoingBody)

class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        path = request.path_with_query() or "/"
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain")]))
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        stream = body.write()
        if path == "/stream":
            for _ in range(256):
                stream.blocking_write_and_flush(b"x" * 4096)
        else:
            stream.blocking_write_and_flush(b"Hello from Python\n")
        stream.__exit__(None, None, None)
        OutgoingBody.finish(body, None)
