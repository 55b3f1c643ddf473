"""The server's addresses that this app answers itself, and how they are put in place."""

from lib.endpoints.install import install

__all__ = ["install"]
