"""The prefix cache: 16-token blocks, chained by hash, the least recently used dropped first."""

from collections import OrderedDict

BLOCK_TOKENS = 16


class PrefixCache:
    """Which prompt blocks are in memory, with vLLM's two counters in tokens."""

    def __init__(self, capacity_blocks: int, *, enabled: bool = True) -> None:
        self._capacity = max(1, capacity_blocks)
        self._enabled = enabled
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self.queries = 0
        self.hits = 0

    def take(self, prompt: bytes, bytes_per_token: int) -> int:
        """Look the prompt up and remember it; the number of its tokens that were cached.

        As in vLLM the last token is always computed, so a hit never covers the whole prompt.
        """
        step = BLOCK_TOKENS * bytes_per_token
        tokens = max(1, -(-len(prompt) // bytes_per_token))
        self.queries += tokens
        if not self._enabled:
            return 0
        cached, chain, missed = 0, 0, False
        blocks = self._blocks
        for start in range(0, len(prompt) - step + 1, step):
            chain = hash((chain, prompt[start : start + step]))
            if chain in blocks:
                blocks.move_to_end(chain)
                cached += 0 if missed else BLOCK_TOKENS
            else:
                missed = True
                blocks[chain] = None
        while len(blocks) > self._capacity:
            blocks.popitem(last=False)
        if cached >= tokens:
            cached -= BLOCK_TOKENS
        self.hits += cached
        return cached

    def reset(self) -> None:
        """Forget every block; the counters go on."""
        self._blocks.clear()
