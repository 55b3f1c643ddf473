"""How the next scan to look at is chosen."""

from lib.strategies.order import First, Random
from lib.strategies.prototypical import Prototypical

__all__ = ["First", "Prototypical", "Random"]
