import wit_world
from wit_world import exports
from wit_world.imports.wasi_http_types import Request, Response, Fields
from componentize_py_types import Result, Ok, Err

class Handler(exports.Handler):
    async def handle(self, request: Request) -> Response:
        tx, rx = wit_world.byte_stream()
        path = request.get_path_with_query() or "/"
        import componentize_py_async_support
        async def write():
            with tx:
                if path == "/stream":
                    for _ in range(256):
                        await tx.write_all(b"x" * 4096)
                else:
                    await tx.write_all(b"Hello from Python 0.3\n")
        componentize_py_async_support.spawn(write())
        return Response.new(Fields(), rx, _trailers())[0]

def _trailers():
    return wit_world.result_option_wasi_http_types_fields_wasi_http_types_error_code_future(lambda: Ok(None))[1]
