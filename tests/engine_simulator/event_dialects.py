"""Responses and Anthropic messages: the two APIs whose streams are named events and have no `[DONE]`."""

import json
import time
from typing import Any


def event(name: str, value: dict[str, Any]) -> bytes:
    """One named server-sent event."""
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


class ResponsesDialect:
    """`/v1/responses`."""

    done = b""

    def __init__(self, request_id: str, model: str, prompt_tokens: int, cached_tokens: int) -> None:
        self._id = request_id
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._created = int(time.time())
        self._sequence = -1

    def head(self) -> bytes:
        message = self._message([], "in_progress") | {"content": []}
        return b"".join(
            [
                self._event("response.created", response=self.response("in_progress", None)),
                self._event("response.in_progress", response=self.response("in_progress", None)),
                self._event("response.output_item.added", output_index=0, item=message),
                self._event("response.content_part.added", **self._place(), part=self._part([])),
            ]
        )

    def token(self, word: str) -> bytes:
        return self._event("response.output_text.delta", **self._place(), delta=word, logprobs=[])

    def tail(self, words: list[str], reason: str) -> bytes:
        finished = self.whole(words, reason)
        return b"".join(
            [
                self._event("response.output_text.done", **self._place(), text="".join(words), logprobs=[]),
                self._event("response.content_part.done", **self._place(), part=self._part(words)),
                self._event("response.output_item.done", output_index=0, item=self._message(words, "completed")),
                self._event(f"response.{finished['status']}", response=finished),
            ]
        )

    def whole(self, words: list[str], reason: str) -> Any:
        return self.response("incomplete" if reason == "length" else "completed", words)

    def response(self, status: str, words: list[str] | None) -> dict[str, Any]:
        """Give the response object in some state; `words` is None as long as nothing is final."""
        usage = {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cached_tokens": self._cached_tokens},
            "output_tokens": len(words or ()),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt_tokens + len(words or ()),
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "metadata": None,
            "model": self._model,
            "output": [] if words is None else [self._message(words, "completed")],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": None if words is None else usage,
        }

    def _event(self, name: str, **fields: Any) -> bytes:
        self._sequence += 1
        return event(name, {"type": name, "sequence_number": self._sequence, **fields})

    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._id}", "output_index": 0, "content_index": 0}

    def _part(self, words: list[str]) -> dict[str, Any]:
        return {"type": "output_text", "text": "".join(words), "annotations": [], "logprobs": []}

    def _message(self, words: list[str], status: str) -> dict[str, Any]:
        content = [self._part(words)]
        return {"id": f"msg_{self._id}", "type": "message", "role": "assistant", "status": status, "content": content}


class MessagesDialect:
    """`/v1/messages`, Anthropic's API."""

    def __init__(self, request_id: str, model: str, prompt_tokens: int) -> None:
        self.done = event("message_stop", {"type": "message_stop"})
        self._id = request_id
        self._model = model
        self._prompt_tokens = prompt_tokens

    def head(self) -> bytes:
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        message = self._message([], None)
        return event("message_start", {"type": "message_start", "message": message}) + event(
            "content_block_start", block
        )

    def token(self, word: str) -> bytes:
        delta = {"type": "text_delta", "text": word}
        return event("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta})

    def tail(self, words: list[str], reason: str) -> bytes:
        usage = {"input_tokens": self._prompt_tokens, "output_tokens": len(words)}
        delta = {"stop_reason": _stop_reason(reason), "stop_sequence": None}
        return event("content_block_stop", {"type": "content_block_stop", "index": 0}) + event(
            "message_delta", {"type": "message_delta", "delta": delta, "usage": usage}
        )

    def whole(self, words: list[str], reason: str) -> Any:
        return self._message([{"type": "text", "text": "".join(words)}], _stop_reason(reason), len(words))

    def _message(self, content: list[Any], stop_reason: str | None, output_tokens: int = 0) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self._model,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {"input_tokens": self._prompt_tokens, "output_tokens": output_tokens},
        }


def _stop_reason(reason: str) -> str:
    return "max_tokens" if reason == "length" else "end_turn"
