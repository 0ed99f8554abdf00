"""What reports of use are asked: the words of a query, read and refused. Pure."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from gateway.errors import BadRequest

JSON, CSV = "json", "csv"


def days(given: Mapping[str, str], most: int) -> tuple[date, date]:
    """The first and the last day; where nothing is said `most` days, today the last. Raises BadRequest."""
    last = _day("to", given.get("to")) or datetime.now(UTC).date()
    first = _day("from", given.get("from")) or last - timedelta(days=min(most - 1, (last - date.min).days))
    if first > last:
        raise BadRequest(
            f"from ({first}) is later than to ({last}): both are days, the last one included", param="from"
        )
    return first, last


def _day(name: str, given: str | None) -> date | None:
    if not given:
        return None
    try:
        return datetime.strptime(given, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise BadRequest(f"{name} takes a day in UTC, such as 2026-11-23, not {given!r}", param=name) from None


def wants_csv(given: str | None, accept: str) -> bool:
    """Whether the answer is to be CSV. Raises BadRequest."""
    if given not in {None, "", JSON, CSV}:
        raise BadRequest(f"format takes json or csv, not {given!r}", param="format")
    return given == CSV if given else "text/csv" in accept
