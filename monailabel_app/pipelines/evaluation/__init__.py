"""How good a model is: data sets, what it makes of their scans, the figures that follow, and its blind spots."""
