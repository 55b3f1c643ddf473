"""What the server counts about itself: the functions that the other modules call.

The figures live in ``monailabel_app.monitoring``, which outlives a reload of ``lib``.
"""

from __future__ import annotations

from monailabel_app.monitoring.instruments import (
    count_error,
    count_fallback,
    count_job,
    count_purged,
    observe_analysis,
    observe_request,
)

__all__ = ["count_error", "count_fallback", "count_job", "count_purged", "observe_analysis", "observe_request"]
