"""Loads a page and uploads 200,000 bytes over HTTP/3 with aioquic; prints what came as JSON.

Called by `http3.rs`: http3_client.py CA_FILE PAGE_URL UPLOAD_URL
"""

import asyncio
import json
import ssl
import sys
from urllib.parse import urlparse

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.h3 = H3Connection(self._quic)
        self.answers = {}

    def quic_event_received(self, event):
        for event in self.h3.handle_event(event):
            if isinstance(event, (HeadersReceived, DataReceived)):
                answer, done = self.answers[event.stream_id]
                if isinstance(event, HeadersReceived):
                    answer.setdefault("status", dict(event.headers).get(b":status", b"").decode())
                else:
                    answer["body"] += event.data
                if event.stream_ended and not done.done():
                    done.set_result(answer)

    async def ask(self, method, url, body=b""):
        url = urlparse(url)
        stream = self._quic.get_next_available_stream_id()
        self.answers[stream] = ({"body": b""}, asyncio.get_running_loop().create_future())
        head = [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", url.netloc.encode()),
            (b":path", url.path.encode()),
        ]
        self.h3.send_headers(stream, head, end_stream=not body)
        if body:
            self.h3.send_data(stream, body, end_stream=True)
        self.transmit()
        answer = await asyncio.wait_for(self.answers[stream][1], 60)
        return {"status": answer["status"], "body": answer["body"].decode()}


async def main(ca_file, page, upload):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_REQUIRED)
    configuration.load_verify_locations(ca_file)
    configuration.server_name = "localhost"
    url = urlparse(page)
    async with connect("127.0.0.1", url.port, configuration=configuration, create_protocol=Client) as client:
        said = {
            "page": await client.ask(b"GET", page),
            "upload": await client.ask(b"POST", upload, b"x" * 200_000),
            "alpn": client._quic.tls.alpn_negotiated,
        }
    print(json.dumps(said))


asyncio.run(main(*sys.argv[1:]))
