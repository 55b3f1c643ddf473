"""How much a result would change if scan, noise or model had been a little different."""
