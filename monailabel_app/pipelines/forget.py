"""Take a patient out of every model of a site."""

from monailabel_app.training.forgotten import forgotten_hashes, is_forgotten

__all__ = ["forgotten_hashes", "is_forgotten"]
