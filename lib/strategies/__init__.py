"""How the next scan to look at is chosen."""

from lib.strategies.order import First, Random

__all__ = ["First", "Random"]
