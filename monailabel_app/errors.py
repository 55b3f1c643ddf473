"""Named errors. Each message says what was expected, what came, and what to do about it."""


class AnomalyAppError(Exception):
    """Base of every error this package raises on purpose; ``status`` is the HTTP code adapters answer with."""

    status = 400


class UnreadableVolume(AnomalyAppError):
    """The file or folder is not a readable 3-D scalar image (truncated, wrong format, not an image)."""


class InvalidVolume(AnomalyAppError):
    """The image could be read but cannot be analysed (2-D, 4-D, NaN, constant, empty, broken geometry)."""


class NotEnoughMemory(AnomalyAppError):
    """The scan is a legal one, and there is no memory for it now."""

    status = 503
    retry_after = 60.0


class BrainNotFound(AnomalyAppError):
    """No brain of plausible size was found in the volume."""


class AlignmentFailed(AnomalyAppError):
    """The brain could not be brought into template space."""


class ScanRefused(AnomalyAppError):
    """The scan is unlike what the model was trained on, and the request asked not to analyse such scans."""

    status = 422


class NotAnalysed(AnomalyAppError):
    """There is no analysis at hand, and the request asked not to make one."""

    status = 404


class Cancelled(AnomalyAppError):
    """Somebody cancelled the work; raised by a progress callback, it leaves no trace."""

    status = 409


class UnknownModel(AnomalyAppError):
    """No model folder, method or score of that name."""

    status = 404


class InvalidSettings(AnomalyAppError):
    """A setting is outside its allowed values."""


class CorruptModel(AnomalyAppError):
    """A model folder is incomplete, or a file in it does not match its recorded hash."""

    status = 500


class TrainingFailed(AnomalyAppError):
    """Training cannot start or had to stop (too few scans, NaN loss, no space)."""


class PublishFailed(AnomalyAppError):
    """A model version cannot be published, promoted, rolled back or removed."""

    status = 409


class EvaluationFailed(AnomalyAppError):
    """An evaluation has no usable case, or its files do not belong together."""
