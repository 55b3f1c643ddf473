"""Unsupervised anomaly segmentation of brain scans: methods, scores, calibration and pipelines."""

__version__ = "0.1.0"
