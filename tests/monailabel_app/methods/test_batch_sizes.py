"""How many slices a method looks at together changes nothing but the rounding: no slice gets other noise."""

import numpy as np
import pytest
import torch

from monailabel_app.registry import TRAINABLE, load_method
from tests.monailabel_app.synthetic import TINY, template


@pytest.fixture(scope="module")
def brain():
    """A synthetic brain on the model grid with more slices than a batch takes: (X, Y, Z) in [0, 1] and its mask."""
    mean = torch.from_numpy(np.ascontiguousarray(template().mean)).float()
    noise = torch.rand(mean.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return torch.where(mean > 0, (mean + noise).clamp(0.01, 1), 0.0), mean > 0


@pytest.mark.parametrize("method_id", list(TRAINABLE))
def test_a_smaller_batch_gives_the_same_evidence(method_id, brain):
    image, mask = brain
    method, config = load_method(method_id), TINY[method_id]
    torch.manual_seed(0)
    network = method.build(config).eval()

    def evidence(batch_size):
        made = method.analyse(
            network, config, image, mask, torch.Generator().manual_seed(3), batch_size=batch_size
        )
        arrays = {"reconstruction": made.reconstruction, **made.maps, "variance": made.variance}
        return {name: values for name, values in arrays.items() if values is not None}

    usual = evidence(16)
    assert usual
    for size in (5, 1):
        for name, values in evidence(size).items():
            torch.testing.assert_close(values, usual[name], atol=1e-4, rtol=1e-3)
