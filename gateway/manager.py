"""Client of the worker manager: its routes as methods, over its Unix socket. Control traffic only."""

from pathlib import Path
from typing import TypeVar

import httpx
import msgspec

from gateway.errors import ManagerUnavailable, sentences
from worker_manager.contract import (
    Accepted,
    DesiredSet,
    Download,
    DownloadSpec,
    LogTail,
    ObservedSet,
    Refusal,
)

CALL_SECONDS = 15.0
"""Limit of every call but the long poll, whose limit is its own wait and a little more."""

Answer = TypeVar("Answer")


class ManagerRefused(Exception):
    """The manager answered no; `refusal` says why."""

    def __init__(self, status: int, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.status = status
        self.refusal = refusal

    def sentences(self) -> str:
        """What the manager says and advises, as one or two sentences."""
        return sentences(self.refusal.message, self.refusal.hint)


class ManagerClient:
    """Speaks to one manager. Every method raises ManagerUnavailable if it can't be reached, ManagerRefused on a no."""

    def __init__(self, socket: Path) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://manager", timeout=CALL_SECONDS
        )

    async def observed(self, after: int, wait: float) -> ObservedSet:
        """What the manager sees, at once if its version is not `after`, else when it changes or `wait` is over."""
        query = {"after": str(after), "wait": f"{wait:g}"}
        return await self._call("GET", "/observed", ObservedSet, query=query, seconds=wait + CALL_SECONDS)

    async def set_desired(self, desired: DesiredSet) -> Accepted:
        """Send the whole desired set. ManagerRefused with status 409: the manager has taken a newer one."""
        return await self._call("PUT", "/desired", Accepted, body=desired)

    async def log(self, worker: str, lines: int) -> LogTail:
        """The last lines of a worker's log."""
        return await self._call("GET", f"/workers/{worker}/log", LogTail, query={"lines": str(lines)})

    async def download(self, spec: DownloadSpec) -> Download:
        """Start a download, or find the one that is running."""
        return await self._call("POST", "/downloads", Download, body=spec)

    async def downloads(self) -> list[Download]:
        """Every download the manager knows."""
        return await self._call("GET", "/downloads", list[Download])

    async def cancel_download(self, download_id: str) -> Download:
        """Cancel a download; what was fetched stays for a later try."""
        return await self._call("DELETE", f"/downloads/{download_id}", Download)

    async def _call(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        *,
        body: msgspec.Struct | None = None,
        query: dict[str, str] | None = None,
        seconds: float = CALL_SECONDS,
    ) -> Answer:
        content = msgspec.json.encode(body) if body is not None else None
        try:
            response = await self._client.request(
                method,
                path,
                content=content,
                params=query,
                headers={"content-type": "application/json"},
                timeout=httpx.Timeout(seconds, connect=CALL_SECONDS),
            )
        except httpx.HTTPError as problem:
            raise ManagerUnavailable(
                f"The worker manager does not answer ({type(problem).__name__}): is it running? See `docker compose "
                "ps` or run/logs/worker_manager.log",
                retry_after=5,
            ) from problem
        if response.is_error:
            raise ManagerRefused(response.status_code, _refusal(response.content))
        return msgspec.json.decode(response.content, type=answer)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()


class _ErrorBody(msgspec.Struct):
    error: Refusal


def _refusal(content: bytes) -> Refusal:
    try:
        return msgspec.json.decode(content, type=_ErrorBody).error
    except msgspec.MsgspecError:
        return Refusal(kind="unknown", message="The worker manager refused and did not say why")
