"""Print the tables of docs/performance.md, *Choosing a worker*: `python -m tests.choices [--real]`."""

import sys
from typing import Any

from tests.choices import served, synthetic
from tests.choices.workload import Outcome, Shape

CACHE_BLOCKS = 100_000
"""Of all caches together: they hold everything."""
SHAPES = {
    "32 users, 12 system prompts, 4 workers": (Shape(), 4),
    "the same with 8 users": (Shape(users=8), 4),
    "the same with 128 users": (Shape(users=128, conversations=1_600), 4),
    "one system prompt for all": (Shape(system_prompts=1), 4),
    "100 system prompts": (Shape(system_prompts=100), 4),
    "agents: 20 to 30 kB of instructions": (Shape(system_bytes=(20_000, 30_000), users=16), 4),
    "one question each": (Shape(turns=(1, 1), conversations=1_600), 4),
    "64 users, 8 workers": (Shape(users=64, conversations=800), 8),
}


def show(title: str, outcomes: dict[str, Outcome]) -> None:
    """Print one table."""
    print(f"\n{title}, {sum(outcomes['Hostler'].requests)} requests\n")  # noqa: T201 - this is a command
    table: list[dict[str, Any]] = served.rows(outcomes)
    print("| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0]))  # noqa: T201
    for row in table:
        print("| " + " | ".join(row.values()) + " |")  # noqa: T201


def main() -> None:
    """Run everything that was asked for."""
    if "--real" in sys.argv:
        with served.running_engines() as (four, one):
            show("Real processes: gateway, manager, 4 engine simulators", served.compare(four, one))
    for title, (shape, workers) in SHAPES.items():
        big = synthetic.run(shape, synthetic.round_robin, 1, CACHE_BLOCKS)
        outcomes = {"one big cache": big}
        for name, policy in synthetic.POLICIES.items():
            outcomes[name] = synthetic.run(shape, policy, workers, CACHE_BLOCKS)
        show(title, outcomes)


if __name__ == "__main__":
    main()
