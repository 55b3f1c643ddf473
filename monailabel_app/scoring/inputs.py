"""What every score accepts: an image, its reconstruction and a brain mask, as arrays or tensors of one
shape.
"""

from __future__ import annotations

import numpy as np
import torch

from monailabel_app.errors import InvalidVolume

ArrayLike = np.ndarray | torch.Tensor


def score_inputs(
    image: ArrayLike, reconstruction: ArrayLike, brain_mask: ArrayLike
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three inputs as tensors on the image's device: float32, float32, bool.

    Raises InvalidVolume if they are not three-dimensional, differ in shape, or hold NaN or infinity.
    """
    image = torch.as_tensor(image).float()
    reconstruction = torch.as_tensor(reconstruction, device=image.device).float()
    brain_mask = torch.as_tensor(brain_mask, device=image.device) > 0
    shapes = [tuple(t.shape) for t in (image, reconstruction, brain_mask)]
    if len(shapes[0]) != 3 or len(set(shapes)) != 1:
        raise InvalidVolume(
            "Expected image, reconstruction and brain mask as (x, y, z) volumes of one shape, "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    for name, tensor in (("image", image), ("reconstruction", reconstruction)):
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidVolume(f"Expected finite intensities, got NaN or infinity in the {name}")
    return image, reconstruction, brain_mask
