"""Texts that people read: model cards and tables."""
