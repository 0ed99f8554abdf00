"""One answer, from its prefill to its last byte, in one of the dialects, with whatever fault was ordered."""

from typing import Any, Protocol

from tests.engine_simulator.engine import Engine
from tests.engine_simulator.http import Connection

CONGESTED_RETRY_SECONDS = 0.01
HELD_RETRY_SECONDS = 0.02
GARBAGE = b"\x00\xff<html>not what you asked for</html>"
NOT_HTTP = b"\x00\x01\x02 this is not HTTP\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Dialect(Protocol):
    """How an answer looks on the wire."""

    done: bytes
    """The very last event of a stream."""

    def head(self) -> bytes:
        """Events before the first token."""
        ...

    def token(self, word: str) -> bytes:
        """Events for one token."""
        ...

    def tail(self, words: list[str], reason: str) -> bytes:
        """Events after the last token, up to and without `done`."""
        ...

    def whole(self, words: list[str], reason: str) -> Any:
        """Give the answer to a request that does not stream, as a JSON value."""
        ...


class Generation:
    """An answer in the making; owns its connection until the last byte."""

    def __init__(
        self,
        engine: Engine,
        connection: Connection,
        dialect: Dialect,
        words: list[str],
        reason: str,
        *,
        prompt: bytes,
        prompt_tokens: int,
        cached_tokens: int,
        stream: bool,
    ) -> None:
        self.tokens = prompt_tokens
        self._engine = engine
        self._connection = connection
        self._dialect = dialect
        self._words = words
        self._reason = reason
        self._prompt = prompt
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._stream = stream
        self._sent = 0
        self._arrived = self._first_due = 0.0
        self._interval = 0.0
        self._over = False
        self._fault = ""
        self._halt_at = len(words) + 1

    def begin(self, now: float) -> None:
        """Start the prefill; the connection is told of a client's leaving from here on."""
        simulation = self._engine.simulation
        self._plan_fault()
        self._arrived = now
        self._interval = 1.0 / simulation.tokens_per_second if simulation.tokens_per_second > 0 else 0.0
        uncached = self._prompt_tokens - self._cached_tokens
        self._first_due = now + simulation.ttft_seconds + uncached / simulation.prefill_tokens_per_second
        if simulation.faults.hang_with_green_health:
            return
        due = self._first_due
        if not self._stream:
            due += (min(self._halt_at, len(self._words)) - 1) * self._interval
        following: float | None = due
        if due <= now:
            following = self.step(now)
        if following is not None:
            self._engine.pacer.add(self, following)

    def step(self, now: float) -> float | None:
        """Send what is due; see `pacer.Paced`."""
        if self._over:
            return None
        if not self._stream:
            return self._answer_whole(now)
        if self._connection.congested:
            return now + CONGESTED_RETRY_SECONDS
        count = len(self._words)
        due = count if not self._interval else min(count, 1 + int((now - self._first_due) / self._interval + 1e-6))
        if due >= self._halt_at:
            self._send_up_to(self._halt_at, now)
            self._halt(now)
            return None
        if due >= count and self._is_held():
            due, following = count - 1, now + HELD_RETRY_SECONDS
        else:
            following = self._first_due + due * self._interval
        if due >= count:
            events = self._events_up_to(count, now) + self._last_events(self._reason)
            self._finish(self._reason, now)
            self._connection.end_stream(events)
            return None
        self._send_up_to(due, now)
        return following

    def end(self, reason: str) -> None:
        """End the answer early, with what there is."""
        if self._over:
            return
        self._finish(reason, self._arrived)
        if self._stream:
            self._connection.end_stream(self._last_events(reason))
        else:
            self._connection.answer_json(self._dialect.whole([], reason))

    def client_gone(self) -> None:
        """Count as aborted, now."""
        self._finish("abort", self._arrived)

    def _is_held(self) -> bool:
        return any(word.encode() in self._prompt for word in self._engine.simulation.hold)

    def _plan_fault(self) -> None:
        faults = self._engine.simulation.faults
        total = len(self._words)
        if faults.crash_after_requests is not None and self._engine.started > faults.crash_after_requests:
            self._fault, self._halt_at = "crash", max(1, total // 2)
        elif self._stream and faults.cut_stream_after is not None:
            self._fault, self._halt_at = "cut", faults.cut_stream_after
        elif self._stream and faults.stall_stream_after is not None:
            self._fault, self._halt_at = "stall", faults.stall_stream_after
        elif faults.garbage_answer:
            self._fault, self._halt_at = "protocol" if faults.garbage_answer == "protocol" else "garbage", 0
        elif faults.end_stream_without_done:
            self._dialect.done = b""

    def _events_up_to(self, count: int, now: float) -> bytes:
        events = [self._dialect.head()] if self._sent == 0 else []
        if self._sent == 0 and count:
            self._engine.metrics.first_token.observe(now - self._arrived)
        events += map(self._dialect.token, self._words[self._sent : count])
        self.tokens += count - self._sent
        self._sent = count
        return b"".join(events)

    def _send_up_to(self, count: int, now: float) -> None:
        if count > self._sent:
            self._connection.send(self._events_up_to(count, now))

    def _last_events(self, reason: str) -> bytes:
        return self._dialect.tail(self._words[: self._sent], reason) + self._dialect.done

    def _answer_whole(self, now: float) -> float | None:
        if self._is_held():
            return now + HELD_RETRY_SECONDS
        if self._fault:
            self._halt(now)
            return None
        self._sent = len(self._words)
        self._engine.metrics.first_token.observe(self._first_due - self._arrived)
        self._finish(self._reason, now)
        self._connection.answer_json(self._dialect.whole(self._words, self._reason))
        return None

    def _halt(self, now: float) -> None:
        if self._fault == "crash":
            self._engine.crash("RuntimeError: CUDA error: an illegal memory access was encountered")
        elif self._fault == "cut":
            self._finish("cut", now)
            self._connection.cut()
        elif self._fault == "protocol":
            self._finish("garbage", now)
            self._connection.send_raw(NOT_HTTP)
            self._connection.cut()
        elif self._fault == "garbage":
            self._finish("garbage", now)
            if self._stream:
                self._connection.end_stream(GARBAGE)
            else:
                self._connection.answer(GARBAGE)

    def _finish(self, reason: str, now: float) -> None:
        if self._over:
            return
        self._over = True
        metrics = self._engine.metrics
        if self._sent or reason != "abort":  # vLLM counts a prompt with its first token
            metrics.prompt_tokens += self._prompt_tokens
        metrics.generation_tokens += self._sent
        if self._sent > 1:
            metrics.between_tokens.observe(self._interval, self._sent - 1)
        metrics.whole.observe(now - self._arrived)
        self._engine.release(self, reason)
