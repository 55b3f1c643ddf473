"""Reading and writing scans: (c, x, y, z) float32 and an affine to RAS mm in, the exact geometry out."""
