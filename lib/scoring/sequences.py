"""Which sequence a scan of the datastore has, and which model is asked about it: as the command line decides."""

from monailabel_app.pipelines.sequences import ANY, default_model, sequence_of

__all__ = ["ANY", "default_model", "sequence_of"]
