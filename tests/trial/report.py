"""What a trial says: requests by outcome, waits, swaps, faults, peaks, and every broken promise."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tests.trial.answers import CUT_SHORT, LEFT, REFUSED, RIGHT, WRONG
from tests.trial.asking import Asked
from tests.trial.cast import CARD_MIB, MODELS
from tests.trial.faults import Injection
from tests.trial.promises import brief

OUTCOMES = (RIGHT, REFUSED, CUT_SHORT, LEFT, WRONG)
ALL = "all"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model's requests; waits in seconds."""

    model: str
    requests: int
    outcomes: dict[str, int]
    codes: dict[str, int]
    p50: float
    p99: float
    worst: float


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault: how often it was put in, found, and met nobody; seconds until it was found."""

    injected: int
    found: int
    moot: int
    longest: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole trial."""

    seed: int
    minutes: float
    took_seconds: int
    looks: int
    requests: list[Row]
    swaps: dict[str, int]
    faults: dict[str, Faults]
    injected: list[dict[str, Any]]
    peak_promised_mib: dict[str, int]
    peak_used_mib: dict[str, int]
    longest_load_seconds: float
    bound_seconds: dict[int, int]
    longest_unserved: dict[str, Any]
    checks: list[str]
    broken: dict[str, list[str]]

    def text(self) -> str:
        """The table for a terminal."""
        lines = [
            f"trial of {self.minutes:g} min, seed {self.seed}, {self.took_seconds} s in all, {self.looks} looks",
            "",
            _line(("model", *OUTCOMES, "p50 s", "p99 s", "worst s")),
        ]
        lines += [_row(row) for row in self.requests]
        codes = ", ".join(f"{number} {code}" for code, number in self.requests[-1].codes.items())
        lines += ["", f"errors: {codes or 'none'}"]
        lines += ["swaps: " + ", ".join(f"{number} {what}" for what, number in self.swaps.items())]
        lines += ["", _line(("fault", "injected", "found", "met nobody", "slowest s"))]
        lines += [
            _line((kind, one.injected, one.found, one.moot, f"{one.longest:.1f}")) for kind, one in self.faults.items()
        ]
        peaks = f"promised {_peaks(self.peak_promised_mib)}, used {_peaks(self.peak_used_mib)}"
        lines += ["", f"peaks of {CARD_MIB} MiB: {peaks}"]
        lines += [self._unserved(), ""]
        lines += [f"{'BROKEN' if name in self.broken else 'held  '}  {name}{self._why(name)}" for name in self.checks]
        return "\n".join(lines)

    def _why(self, name: str) -> str:
        return brief(self.broken[name]) if name in self.broken else ""

    def _unserved(self) -> str:
        bounds = f"bounds {self.bound_seconds[0]} s alone to {max(self.bound_seconds.values())} s behind all others"
        longest = self.longest_unserved
        if not longest:
            return f"nobody was unserved at any look; {bounds}"
        who = f"{longest['endpoint']}, {longest['seconds']:.0f} s behind {longest['ahead']}"
        return f"longest unserved: {who} (faults included); {bounds}; longest load {self.longest_load_seconds} s"


def requests_by_model(asked: Sequence[Asked]) -> list[Row]:
    """A row for each model and one for all."""
    by_name: Mapping[str, list[Asked]] = {
        model.name: [one for one in asked if one.request.model == model.name] for model in MODELS
    }
    return [_summed(name, found) for name, found in {**by_name, ALL: list(asked)}.items()]


def faults_by_kind(faults: Iterable[Injection]) -> dict[str, Faults]:
    """A line for each kind."""
    found: dict[str, list[Injection]] = {}
    for one in faults:
        found.setdefault(one.kind, []).append(one)
    return {
        kind: Faults(
            injected=sum(not one.moot for one in ones),
            found=sum(not one.moot and one.found_at is not None for one in ones),
            moot=sum(bool(one.moot) for one in ones),
            longest=max((one.found_at - one.at for one in ones if not one.moot and one.found_at), default=0.0),
        )
        for kind, ones in sorted(found.items())
    }


def _summed(name: str, asked: Sequence[Asked]) -> Row:
    outcomes = Counter(one.judgement.outcome for one in asked)
    waits = sorted(one.wait for one in asked if one.wait is not None)
    return Row(
        model=name,
        requests=len(asked),
        outcomes={outcome: outcomes[outcome] for outcome in OUTCOMES},
        codes=dict(Counter(one.judgement.code for one in asked if one.judgement.code).most_common()),
        p50=_percentile(waits, 0.5),
        p99=_percentile(waits, 0.99),
        worst=waits[-1] if waits else 0.0,
    )


def _percentile(waits: Sequence[float], part: float) -> float:
    return waits[max(0, math.ceil(part * len(waits)) - 1)] if waits else 0.0


def _row(row: Row) -> str:
    waits = (f"{seconds:.2f}" for seconds in (row.p50, row.p99, row.worst))
    return _line((row.model, *(row.outcomes[outcome] for outcome in OUTCOMES), *waits))


def _line(cells: Sequence[object]) -> str:
    first, *rest = map(str, cells)
    return f"{first:<20}" + "".join(f"{cell:>11}" for cell in rest)


def _peaks(mib: Mapping[str, int]) -> str:
    return " and ".join(str(found) for found in mib.values()) or "none"
