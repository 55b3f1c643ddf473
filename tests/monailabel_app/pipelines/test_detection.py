"""What is counted of a detector in a native scan, and lesions implanted into raw heads."""

import numpy as np
import pytest

from monailabel_app.pipelines.detection import Case, Row
from tests.monailabel_app.synthetic import person, scan


def test_a_perfect_map_has_average_precision_one():
    volume, brain, lesion = scan(person(100), lesion_mm=(-12, 12, 6), contrast=0.6)
    case = Case(volume, lesion, brain.mask)
    row = Row("perfect")
    row.add(case.gt_mask.astype(np.float32), case, threshold=0.5)
    summary = row.summary()
    assert summary["average_precision"] == pytest.approx(1)
    assert summary["dice_at_balanced"] == pytest.approx(1)
