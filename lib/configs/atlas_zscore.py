"""Deviation from the mean healthy brain, voxel by voxel: no network, the bar of every comparison."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="atlas_zscore",
    title="Brain regions that differ from the mean healthy brain at the same place (atlas z-score)",
)
