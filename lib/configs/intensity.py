"""Intensity within the scan itself: no network, the first thing any other method has to beat."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="intensity",
    title="Brain regions of unusual intensity within their own scan (intensity baseline)",
)
