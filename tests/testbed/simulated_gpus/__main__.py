"""`python -m tests.testbed.simulated_gpus FOLDER [COUNT [MIB]]`: make a simulated GPU host from the command line."""

import sys
from pathlib import Path

from tests.testbed.simulated_gpus.host import SimulatedHost, cards

DEFAULT_COUNT = "2"
DEFAULT_MIB = "24576"


def main() -> int:
    """Make the host and say what has been made."""
    folder, count, mib, *_ = [*sys.argv[1:], *(DEFAULT_COUNT, DEFAULT_MIB)[len(sys.argv) - 2 :]]
    made = cards(int(count), int(mib))
    SimulatedHost.create(Path(folder), made)
    sys.stdout.write("".join(f"{card.index}: {card.name} (UUID: {card.uuid})\n" for card in made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
