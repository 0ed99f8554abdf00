"""The gateway: the only process that clients reach. It owns the metadata and decides; it never touches Docker."""

__version__ = "0.1.0"
