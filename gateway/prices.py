"""What use costs. Pure.

Money is counted in whole billionths of a unit, so that sums and budgets are exact; whether the unit is a euro, a dollar
or a credit is for the operator to say (HOSTLER_COST_UNIT).
"""

from typing import Annotated

import msgspec

BILLION = 1_000_000_000
TOKENS = 1_000_000
"""What prices of tokens are for."""
NANO_A_TOKEN = BILLION // TOKENS
HOUR_MS = 3_600_000
KWH_MJ = 3_600_000_000
"""Millijoules of a kilowatt hour."""
WH_MJ = 3_600_000
MOST = 10**15
"""Billionths that one request, or one look at the GPUs, costs at most: a million units. Sums of it fit into SQLite."""

Rate = Annotated[float, msgspec.Meta(ge=0, le=BILLION)]


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an endpoint's use costs, in units."""

    input: Rate = 0
    """A million tokens of prompts."""
    cached_input: Rate | None = None
    """A million of those that the engine had cached; None: as much as any others."""
    output: Rate = 0
    """A million tokens of answers."""
    gpu_hour: Rate = 0
    """An hour of one whole GPU, while a worker is awake on it."""

    def of_tokens(self, prompt: int, cached: int, generated: int) -> int:
        """Billionths for so many tokens; `cached` ones are part of the prompt."""
        known = self.input if self.cached_input is None else self.cached_input
        cost = self.input * max(0, prompt - cached) + known * cached + self.output * generated
        return min(round(cost * NANO_A_TOKEN), MOST)

    def of_estimate(self, prompt: int, generated: int) -> int:
        """Billionths for so many tokens at the most, whatever of the prompt will turn out to be cached."""
        dearest = self.input if self.cached_input is None else max(self.input, self.cached_input)
        return min(round((dearest * prompt + self.output * generated) * NANO_A_TOKEN), MOST)

    def of_gpu(self, milliseconds: float) -> int:
        """Billionths for so much time of one whole GPU."""
        return min(round(self.gpu_hour * milliseconds / HOUR_MS * BILLION), MOST)


def of_energy(millijoules: float, kwh_price: float) -> int:
    """Billionths for so much energy, at units a kilowatt hour."""
    return min(round(kwh_price * millijoules / KWH_MJ * BILLION), MOST)


def units(billionths: int) -> float:
    """The same as people write it."""
    return billionths / BILLION


def billionths(given: float) -> int:
    """The same as it is counted."""
    return round(given * BILLION)
