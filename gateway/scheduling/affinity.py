"""Which worker has already read the beginning of a prompt, and how much of it: bookkeeping for prefix caches. Pure.

An engine keeps the keys and values of the prompts it has served, in blocks, each found by a hash of everything before
it (vLLM's automatic prefix caching, SGLang's RadixAttention). A request is answered sooner where its beginning is
cached. The gateway cannot see those caches; like SGLang's router (`cache_aware`), vllm-router and llm-d's prefix
scorer it remembers what it has sent where, and takes that for what is cached.

A prompt becomes a trail of points: chained hashes of its raw bytes at the places of a fixed grid, so two prompts share
exactly the points of their common beginning. The grid is coarse (an eighth of the way so far, at least 512 bytes), so
that 32 KiB are 32 points; behind the last coarse point come finer ones, 256 and then 64 bytes apart. The next turn of a
conversation extends the JSON of the one before, so it passes the point where that one ended.
"""

LIMIT = 64 * 1024
"""Bytes of a prompt that are looked at; a longer one is known by these."""
CLOSING = 4
"""Bytes at the end that the next turn of a conversation does not repeat: the closing of the JSON array."""
POINTS = 8192
"""Points of one generation that are remembered of a worker, some 4 to 16 MiB of prompts: more than its cache holds."""
STEPS = (256, 64)


def _grid() -> tuple[int, ...]:
    """Where the coarse points lie, in bytes, beginning with 0."""
    places = [0]
    while places[-1] < LIMIT:
        last = places[-1]
        places.append(last + max(512, (1 << last.bit_length()) // 16))
    return tuple(places)


GRID = _grid()


class Trail:
    """The points of one prompt."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._end = min(len(prefix), LIMIT) - CLOSING
        self.is_cut = len(prefix) >= LIMIT
        """Whether there may be more of the prompt than is looked at."""
        self._blocks: list[int] = []
        self._fine: dict[int, int] = {}
        point, start = 0, 0
        for stop in GRID[1:]:
            if stop > self._end:
                break
            point = hash((point, prefix[start:stop]))
            self._blocks.append(point)
            start = stop
        self._known: list[int] | None = None

    def points(self) -> list[int]:
        """All points, from the first to the last; empty for a prompt that is too short to have one."""
        if self._known is None:
            self._known = self._blocks.copy()
            position, point = self._base(len(self._blocks))
            for step in STEPS:
                while position + step <= self._end:
                    point = self._finer(position, step, point)
                    position += step
                    self._known.append(point)
        return self._known

    def blocks_in(self, memory: "Memory") -> int:
        """How many of the coarse points a worker has seen. They form a chain, so halving finds the last one."""
        blocks = self._blocks
        if not blocks or blocks[0] not in memory:
            return 0
        low, high = 1, len(blocks)
        while low < high:
            middle = (low + high + 1) // 2
            if blocks[middle - 1] in memory:
                low = middle
            else:
                high = middle - 1
        return low

    def depth_in(self, memory: "Memory", blocks: int) -> tuple[int, int]:
        """Bytes of the prompt that a worker has seen, and the point up to which; `blocks` is what `blocks_in` said."""
        position, point = self._base(blocks)
        end = self._end
        for step in STEPS:
            while position + step <= end:
                following = self._fine.get(position + step) or self._finer(position, step, point)
                if following not in memory:
                    break
                position, point = position + step, following
        return position, point

    def _base(self, blocks: int) -> tuple[int, int]:
        return (GRID[blocks], self._blocks[blocks - 1]) if blocks else (0, 0)

    def _finer(self, position: int, step: int, point: int) -> int:
        """The point one step on, kept for the next worker."""
        stop = position + step
        found = self._fine[stop] = hash((point, self._prefix[position:stop]))
        return found


class Memory:
    """The points of the prompts that one life of one worker has been sent; the oldest half is dropped now and then.

    Points are put in as whole trails, so whoever finds a point finds those before it: in one of two generations.
    """

    def __init__(self) -> None:
        self._young: dict[int, bool] = {}
        self._old: dict[int, bool] = {}

    def __contains__(self, point: int) -> bool:
        return point in self._young or point in self._old

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def is_end(self, point: int) -> bool:
        """Whether just one prompt has ended here and none has gone on: who comes by continues that conversation.

        Where several have ended or gone on (a system prompt that many share), another beginning is just one more.
        """
        young = self._young.get(point)
        return self._old.get(point, False) if young is None else young

    def remember(self, points: list[int]) -> None:
        """Take in the trail of a prompt that was sent there; at least one point."""
        last = points[-1]
        ended_here = last not in self
        self._young.update(dict.fromkeys(points, False))
        self._young[last] = ended_here
        if len(self._young) >= POINTS:
            self._old, self._young = self._young, {}
