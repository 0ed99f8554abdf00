"""`GET /openapi.json`: what this gateway answers, for clients that are generated and for tests. Open to everybody."""

import functools

from litestar import Controller, Response, get

from gateway.openapi.document import document

built = functools.cache(document)
"""Made when it is first asked for: neither the start nor the memory of a gateway that nobody asks pays for it."""


class DocumentRoutes(Controller):
    """It tells what the project's own pages tell, and nothing of this machine."""

    @get("/openapi.json", sync_to_thread=True)
    def whole(self) -> Response[bytes]:
        """The document."""
        return Response(built(), media_type="application/json")
