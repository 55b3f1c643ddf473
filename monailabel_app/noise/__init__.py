"""Corruption noises for diffusion models: seeded, unit variance, one tensor per call.

Every module holds one function with the same first four arguments, ``(shape, generator, device, dtype)``, and
all randomness comes from the generator, so that a result can be repeated from its seed.
"""
