"""Answers GET with the path it was asked for. Standard wasi:http: nothing here is Souk's own."""
from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import (
    Fields,
    IncomingRequest,
    Method_Get,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
)

from answer import answer


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        get = isinstance(request.method(), Method_Get)
        status, headers, text = answer(get, request.path_with_query() or "/")
        response = OutgoingResponse(Fields.from_list([(name, value.encode()) for name, value in headers]))
        response.set_status_code(status)
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as stream:
            stream.blocking_write_and_flush(text.encode())
        OutgoingBody.finish(body, None)
