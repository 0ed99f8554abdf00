"""Chat completions and completions: the shapes of OpenAI's API as vLLM answers them."""

import json
import time
from typing import Any

from tests.engine_simulator.generation import DONE

FINGERPRINT = "vllm-0.32.0-51ab00d3"
"""In the last event of a stream that has choices, or, as soon as usage is asked for, in the usage event alone."""
FINGERPRINT_FIELD = b',"system_fingerprint":"%s"' % FINGERPRINT.encode()


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Give the usage block that chat completions and completions share."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens} if cached_tokens else None,
    }


class _Completions:
    """What the two dialects share: an id, a time, and usage."""

    done = DONE
    stream_object = ""
    whole_object = ""

    def __init__(self, request_id: str, model: str, prompt_tokens: int, cached_tokens: int, *, usage: bool) -> None:
        self._base = {"id": request_id, "object": self.whole_object, "created": int(time.time()), "model": model}
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._wants_usage = usage
        start = json.dumps({**self._base, "object": self.stream_object}, separators=(",", ":"))
        self._start = f"data: {start[:-1]}".encode()

    def _usage(self, completion_tokens: int) -> dict[str, Any]:
        return usage(self._prompt_tokens, completion_tokens, self._cached_tokens)

    def _whole(self, choice: dict[str, Any], completion_tokens: int) -> dict[str, Any]:
        usage = self._usage(completion_tokens)
        return {**self._base, "choices": [choice], "system_fingerprint": FINGERPRINT, "usage": usage}

    def _usage_event(self, completion_tokens: int) -> bytes:
        if not self._wants_usage:
            return b""
        block = json.dumps(self._usage(completion_tokens), separators=(",", ":")).encode()
        return b'%s,"choices":[],"usage":%s%s}\n\n' % (self._start, block, FINGERPRINT_FIELD)

    def _last(self, event: bytes) -> bytes:
        """Sign the last event that has choices, where no usage event comes after it."""
        return event if self._wants_usage else event.removesuffix(b"}\n\n") + FINGERPRINT_FIELD + b"}\n\n"


class ChatDialect(_Completions):
    """`/v1/chat/completions`."""

    stream_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, request_id: str, model: str, prompt_tokens: int, cached_tokens: int, *, usage: bool) -> None:
        super().__init__(request_id, model, prompt_tokens, cached_tokens, usage=usage)
        self._before = self._start + b',"choices":[{"index":0,"delta":{"content":"'
        self._after = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'

    def head(self) -> bytes:
        delta = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
        return self._start + b',"choices":[{"index":0,"delta":' + delta

    def token(self, word: str) -> bytes:
        # the vocabulary needs no escapes
        return b"%s%s%s" % (self._before, word.encode(), self._after)

    def tail(self, words: list[str], reason: str) -> bytes:
        choice = b'{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"%s","stop_reason":null}'
        finish = b'%s,"choices":[%s]}\n\n' % (self._start, choice % reason.encode())
        return self._last(finish) + self._usage_event(len(words))

    def whole(self, words: list[str], reason: str) -> Any:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(words),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": [],
            "reasoning": None,
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason, "stop_reason": None}
        return {**self._whole(choice, len(words)), "prompt_logprobs": None}


class TextDialect(_Completions):
    """`/v1/completions`."""

    stream_object = whole_object = "text_completion"

    def __init__(self, request_id: str, model: str, prompt_tokens: int, cached_tokens: int, *, usage: bool) -> None:
        super().__init__(request_id, model, prompt_tokens, cached_tokens, usage=usage)
        self._before = self._start + b',"choices":[{"index":0,"text":"'
        self._after = b'","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'

    def head(self) -> bytes:
        return b""

    def token(self, word: str) -> bytes:
        return b"%s%s%s" % (self._before, word.encode(), self._after)

    def tail(self, words: list[str], reason: str) -> bytes:
        finish = b'","logprobs":null,"finish_reason":"%s","stop_reason":null}]}\n\n' % reason.encode()
        return self._last(self._before + finish) + self._usage_event(len(words))

    def whole(self, words: list[str], reason: str) -> Any:
        choice = {
            "index": 0,
            "text": "".join(words),
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": None,
            "prompt_logprobs": None,
        }
        return self._whole(choice, len(words))
