"""One measurement as the load is told it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where to, what, how much, and whose CPU time to read meanwhile. Times in seconds."""

    host: str
    port: int
    key: str
    connections: int
    seconds: float
    """Length of the counted interval."""
    warm: float
    """Before it; for streams after the last one has begun."""
    events: int = 0
    """Events of each stream; 0: JSON answers."""
    rate: int = 0
    """Events a second of each stream; 0: as fast as they are taken."""
    fresh: bool = False
    """A new connection for each request."""
    prompt_bytes: int = 200
    tools: int = 0
    """Functions in each request that the model may call."""
    tls: bool = False
    """Through TLS; whose certificate it is, is not asked."""
    usage: bool = False
    """Streams ask for the usage event."""
    strict: bool = True
    """Answers must be the engine's byte for byte; else only the tokens are counted."""
    patience: float = 20
    """For a connection, and for the first bytes of all streams."""
    patience_at_end: float = 20
    """For the end of all streams after the interval."""
    watch: dict[str, list[int]] = field(default_factory=dict)
    """Process ids by name; `gateway` is the one under test."""

    @property
    def address(self) -> str:
        """For the Host header."""
        return f"{self.host}:{self.port}"
