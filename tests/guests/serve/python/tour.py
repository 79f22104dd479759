"""The tour of `souk serve` (`../README.md`), in Python: wasi:http 0.2."""
from urllib.parse import urlsplit

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import outgoing_handler
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import (
    Fields,
    IncomingBody,
    OutgoingBody,
    OutgoingRequest,
    OutgoingResponse,
    ResponseOutparam,
    Scheme_Http,
)

# The most that one blocking write takes.
CHUNK = 4096


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request, response_out):
        path, _, query = (request.path_with_query() or "/").partition("?")
        if path == "/stream":
            reply(response_out, (b"x" * CHUNK for _ in range(256)))
        elif path == "/partial":
            reply(response_out, half())
        elif path == "/echo":
            reply(response_out, chunks(request.consume()))
        elif path == "/trailers":
            body = request.consume()
            reply(response_out, chunks(body), [("trailer", b"x-seen")], lambda: seen(body))
        elif path == "/fetch":
            fetch(response_out, query.removeprefix("url="))
        else:
            reply(response_out, [b"Hello from Python 0.2\n"])


def reply(response_out, parts, headers=(), trailers=lambda: None, status=200):
    response = OutgoingResponse(Fields.from_list(list(headers)))
    response.set_status_code(status)
    body = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    with body.write() as stream:
        for part in parts:
            for i in range(0, len(part), CHUNK):
                stream.blocking_write_and_flush(part[i : i + CHUNK])
    OutgoingBody.finish(body, trailers())


def half():
    yield b"x" * CHUNK
    raise RuntimeError("half-way")


def chunks(body):
    with body.stream() as stream:
        while True:
            try:
                yield stream.blocking_read(65536)
            except Err as ended:
                if isinstance(ended.value, StreamError_Closed):
                    return
                raise


def seen(body):
    """The trailer `x-sent` comes back as `x-seen`."""
    future = IncomingBody.finish(body)
    future.subscribe().block()
    # Option, once; the first result is whether it was asked for before, the second whether the body came whole.
    sent = future.get().value.value
    values = sent.get("x-sent") if sent else []
    return Fields.from_list([("x-seen", value) for value in values])


def fetch(response_out, url):
    parts = urlsplit(url)
    request = OutgoingRequest(Fields.from_list([]))
    request.set_scheme(Scheme_Http())
    request.set_authority(parts.netloc)
    request.set_path_with_query(parts.path or "/")
    try:
        future = outgoing_handler.handle(request, None)
        future.subscribe().block()
        outcome = future.get().value
        if isinstance(outcome, Err):
            raise outcome
        answer = outcome.value
        text = b"".join(chunks(answer.consume()))
        reply(response_out, [b"fetched %d " % answer.status(), text])
    except Err as refused:
        reply(response_out, [f"refused: {refused.value}".encode()], status=502)
