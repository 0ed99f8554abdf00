"""Regular expressions that engines compile into automata: those that would keep one busy for good. Pure."""

import re
from math import prod
from typing import Any

PATTERN_LIMIT = 4096
"""Characters of one expression."""
REPETITIONS = 1_000
"""The most that anything may be repeated by a number: engines unroll it into states."""
STATES = 100_000
"""The most that repetitions in each other may come to."""
COUNTED = re.compile(r"\{(\d*)(?:,(\d*))?\}")
NAMES = ("pattern", "regex", "guided_regex")


def problem_of(pattern: str) -> str:
    """What is wrong with an expression, as the end of a sentence; empty where nothing is."""
    if len(pattern) > PATTERN_LIMIT:
        return f"it has {len(pattern)} characters, and {PATTERN_LIMIT} are the most"
    # by digits and not by int(): a number may be as long as the expression
    counts = [max(_number(least), _number(most or "")) for least, most in COUNTED.findall(pattern)]
    if counts and max(counts) > REPETITIONS:
        return f"it repeats something more than {REPETITIONS} times"
    if "){" in pattern and prod(max(count, 1) for count in counts) > STATES:
        return f"repetitions in each other come to more than {STATES}"
    return ""


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 10 and digits else (REPETITIONS + 1 if digits else 0)  # noqa: PLR2004 - fits


def problem_in(value: Any) -> str:
    """The first problem of any expression in a schema, or whatever holds one. Bounded by the body's own depth."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            for name, inner in one.items():
                if name in NAMES and isinstance(inner, str):
                    problem = problem_of(inner)
                    if problem:
                        return problem
            pending += one.values()
            # names of properties can be expressions too
            named = one.get("patternProperties")
            problems = [problem_of(name) for name in named] if isinstance(named, dict) else []
            if any(problems):
                return next(filter(None, problems))
    return ""
