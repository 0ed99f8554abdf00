"""What a request's first line names: a path, mostly with a query. Pure."""

from urllib.parse import unquote

import httptools


def target_of(url: bytes) -> tuple[str, bytes, bytes]:
    """The path, the path as it was sent, and the query. Raises httptools' errors, which are the parser's."""
    if url.startswith(b"/"):
        raw_path, _, query = url.partition(b"#")[0].partition(b"?")
    else:
        parsed = httptools.parse_url(url) if url != b"*" else None
        raw_path, query = (parsed.path or b"/", parsed.query or b"") if parsed else (url, b"")
    path = raw_path.decode("ascii")
    return (unquote(path) if "%" in path else path), raw_path, query
