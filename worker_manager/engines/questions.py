"""The smallest questions an engine can be asked, by what its model is made for, and their answers. Pure."""

import math
from typing import Any

Answer = str | tuple[float, ...]
"""Generated text, or the numbers of an embedding or of a classification."""

GENERATING = "/v1/completions"
POOLING = ("/v1/embeddings", "/pooling", "/classify")
ROUTES = (GENERATING, *POOLING)
NOT_THIS_KIND = frozenset({400, 404, 405, 501})
"""How vLLM answers on a route that the model's kind does not serve."""


def question(route: str, served_name: str, text: str, tokens: int = 1) -> dict[str, Any]:
    """The body to POST to `route`: at most `tokens` are generated, greedily."""
    if route == GENERATING:
        return {"model": served_name, "prompt": text, "max_tokens": tokens, "temperature": 0}
    return {"model": served_name, "input": text}


def answer(route: str, body: Any) -> Answer:
    """What the engine said. Raises ValueError where the body does not have the route's shape or holds no numbers."""
    try:
        if route == GENERATING:
            return str(body["choices"][0]["text"])
        first = body["data"][0]
        numbers = _flat(first.get("embedding", first.get("probs", first.get("data"))))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"an answer of {route} has another shape") from error
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"an answer of {route} holds no numbers")
    return numbers


def _flat(value: Any) -> tuple[float, ...]:
    """All the numbers in nested lists."""
    if isinstance(value, list):
        return tuple(number for part in value for number in _flat(part))
    return (float(value),)
