"""`python -m tests.support.echo_server PORT HEADER_KIB HEADER_SECONDS`: the gateway's server around a tiny application.

It answers with the number of header bytes and body bytes it was given, so that a test sees what came through.
"""

import json
import sys
from typing import Any

from gateway.server import serve
from gateway.settings import Settings


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with what arrived of it."""
    if scope["type"] == "lifespan":
        for word in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{word}.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    header = sum(len(name) + len(value) for name, value in scope["headers"])
    answer = json.dumps({"path": scope["path"], "header": header, "body": len(body)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer, "more_body": False})


if __name__ == "__main__":
    port, header_kib, header_seconds = sys.argv[1:]
    settings = Settings(
        admin_key="unused-by-the-server",
        port=int(port),
        max_header_kib=int(header_kib),
        header_seconds=float(header_seconds),
        drain_seconds=1,
    )
    serve(application, settings)
