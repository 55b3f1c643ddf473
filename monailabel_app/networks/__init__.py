"""Thin factories over the networks of MONAI."""
