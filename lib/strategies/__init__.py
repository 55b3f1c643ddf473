"""How the next scan to look at is chosen."""

from lib.strategies.order import First, Random
from lib.strategies.prototypical import Prototypical
from lib.strategies.scores import Borderline, MostAnomalous

__all__ = ["Borderline", "First", "MostAnomalous", "Prototypical", "Random"]
