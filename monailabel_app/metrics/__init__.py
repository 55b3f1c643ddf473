"""How well a map, a mask or a scan-level score agrees with the truth, and how sure of that one can be."""
