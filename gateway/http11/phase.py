"""What of a request a connection waits for."""

from enum import Enum


class Phase(Enum):
    """What of a request is awaited."""

    NOTHING = 0
    HEADER = 1
    BODY = 2


NOTHING, HEADER, BODY = Phase
