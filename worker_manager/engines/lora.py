"""vLLM's routes for LoRA adapters that come and go while it runs (entrypoints/serve/lora in vLLM 0.32).

They exist only with `VLLM_ALLOW_RUNTIME_LORA_UPDATING`, on a socket that only gateway and manager reach, and the
gateway forwards none of them.
"""

import re
from collections.abc import Mapping
from typing import Any

import httpx

LIST_SECONDS = 5.0
LOAD_SECONDS = 120.0
"""Some GB may have to be read from a slow disk."""
UNLOAD_SECONDS = 30.0
WRAPPED = re.compile(
    r"Call to \w+ method failed: Worker failed with error '(.*)', please check the stack trace.*", re.DOTALL
)
WORDS_MAX = 600
"""Characters of what an engine says that are passed on."""


class LoraError(Exception):
    """The engine did not do it; the message is in its own words where it had some."""


async def adapters(client: httpx.AsyncClient, served_name: str) -> dict[str, str]:
    """The adapters an engine has, each with the folder it was loaded from. Raises LoraError."""
    answer = await _call(client, "GET", "/v1/models", LIST_SECONDS)
    data = answer.get("data")
    cards = data if isinstance(data, list) else []
    return {
        str(card.get("id")): str(card.get("root"))
        for card in cards
        if isinstance(card, dict) and card.get("parent") is not None and card.get("id") != served_name
    }


async def load(client: httpx.AsyncClient, name: str, folder: str) -> None:
    """Have it load an adapter under a name that it does not know. Raises LoraError."""
    try:
        await _call(client, "POST", "/v1/load_lora_adapter", LOAD_SECONDS, {"lora_name": name, "lora_path": folder})
    except LoraError as error:
        raise LoraError(_cause(str(error)).replace(folder, "its folder")) from error


def _cause(said: str) -> str:
    """What went wrong, without the words in which vLLM's processes pass it on to each other."""
    found = WRAPPED.fullmatch(said)
    return found[1] if found is not None else said


async def unload(client: httpx.AsyncClient, name: str) -> None:
    """Have it forget an adapter; one it does not have is no error. Raises LoraError."""
    try:
        await _call(client, "POST", "/v1/unload_lora_adapter", UNLOAD_SECONDS, {"lora_name": name})
    except LoraError as error:
        if f"The lora adapter '{name}' cannot be found" not in str(error):
            raise


async def unload_all(client: httpx.AsyncClient, served_name: str) -> None:
    """Have it forget all adapters. Raises LoraError."""
    for name in await adapters(client, served_name):
        await unload(client, name)


async def _call(
    client: httpx.AsyncClient, method: str, path: str, seconds: float, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The answer's object; empty where it is none. Raises LoraError."""
    try:
        answer = await client.request(method, path, json=body, timeout=seconds)
    except httpx.TimeoutException as error:
        raise LoraError(f"the engine did not answer within {seconds:g} s") from error
    except (httpx.HTTPError, OSError) as error:
        raise LoraError(f"the engine broke off ({type(error).__name__})") from error
    found = _object(answer)
    if answer.is_success:
        return found
    error_ = found.get("error")
    said = error_.get("message") if isinstance(error_, dict) else None
    if not isinstance(said, str):
        said = f"the engine answers {answer.status_code} on {path}"
    raise LoraError(said[:WORDS_MAX])


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:  # success is told in plain text
        return {}
    return found if isinstance(found, dict) else {}
