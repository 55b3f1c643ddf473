"""The training cache: prepared brains as 8-bit volumes in one safetensors file, readable without nibabel or ITK."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monailabel_app.errors import TrainingFailed
from monailabel_app.files import remove_abandoned, replacing
from monailabel_app.preprocessing.template import TEMPLATE_AFFINE
from monailabel_app.types import PreparedVolume

VERSION = 1


@dataclass(frozen=True)
class TrainingCache:
    """images: (n, X, Y, Z) uint8, intensity x 255. brain_masks: (n, X, Y, Z) bool. ids: one per volume.

    patients: whom each volume shows, by default its id: one volume each. digests: the name of each volume's content
    in the cache of prepared scans, empty where they did not come from there.
    """

    images: torch.Tensor
    brain_masks: torch.Tensor
    ids: tuple[str, ...]
    modality: str
    patients: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "patients", tuple(self.patients) or tuple(self.ids))
        for name in ("images", "brain_masks", "patients", *(("digests",) if self.digests else ())):
            if len(getattr(self, name)) != len(self.ids):
                raise TrainingFailed(
                    f"expected {name} for each of {len(self.ids)} volumes, got {len(getattr(self, name))}; "
                    "prepare the scans again"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Sequence[int]) -> TrainingCache:
        """The volumes of these indices, in their order."""
        chosen = [int(i) for i in indices]
        return TrainingCache(
            self.images[chosen],
            self.brain_masks[chosen],
            tuple(self.ids[i] for i in chosen),
            self.modality,
            tuple(self.patients[i] for i in chosen),
            tuple(self.digests[i] for i in chosen) if self.digests else (),
        )

    def prepared(self, index: int, affine: np.ndarray = TEMPLATE_AFFINE) -> PreparedVolume:
        """One volume as preprocessing would give it, up to 8 bits; its native grid is the model grid itself.

        affine: (4, 4) of the model grid, voxel -> template RAS mm.
        """
        mask = self.brain_masks[index].numpy()
        return PreparedVolume(
            image=(self.images[index].numpy().astype(np.float32) / 255.0)[None],
            brain_mask=mask,
            model_affine=affine,
            native_to_template=np.eye(4),
            native_affine=affine,
            native_shape=tuple(mask.shape),
            native_brain_mask=mask,
            steps=({"step": "read", "from": "training cache"},),
        )

    def save(self, path: Path) -> None:
        """Write the cache; masks are packed to bits."""
        packed = np.packbits(self.brain_masks.numpy().reshape(len(self), -1), axis=1)
        metadata = {
            "version": str(VERSION),
            "ids": json.dumps(self.ids),
            "modality": self.modality,
            "patients": json.dumps(self.patients),
            "digests": json.dumps(self.digests),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        tensors = {"images": self.images.contiguous(), "brain_masks": torch.from_numpy(packed)}
        with replacing(path) as partial:
            save_file(tensors, str(partial), metadata)

    @classmethod
    def load(cls, path: Path) -> TrainingCache:
        """Read a cache. Raises TrainingFailed when the file is absent, damaged or of another version."""
        if not Path(path).is_file():
            raise TrainingFailed(f"expected a training cache at {path}, found none; run `python main.py prepare` first")
        try:
            with safe_open(str(path), framework="pt") as handle:
                metadata = handle.metadata() or {}
                if metadata.get("version") != str(VERSION):
                    raise TrainingFailed(
                        f"expected a training cache of version {VERSION}, got {metadata.get('version')}; "
                        "run `python main.py prepare` again"
                    )
                images, packed = handle.get_tensor("images"), handle.get_tensor("brain_masks")
        except SafetensorError as error:
            raise TrainingFailed(
                f"expected a readable training cache, got {error}; it is damaged, run `python main.py prepare` again"
            ) from error
        bits = np.unpackbits(packed.numpy(), axis=1, count=int(np.prod(images.shape[1:])))
        masks = torch.from_numpy(bits).reshape(images.shape).bool()
        # Files made before patients were recorded hold one scan per patient.
        ids, patients, digests = (json.loads(metadata.get(name, "[]")) for name in ("ids", "patients", "digests"))
        return cls(images, masks, tuple(ids), metadata.get("modality", ""), tuple(patients), tuple(digests))


def to_cache(
    images: Sequence[np.ndarray],
    brain_masks: Sequence[np.ndarray],
    ids: Sequence[str],
    modality: str,
    patients: Sequence[str] = (),
) -> TrainingCache:
    """Quantise prepared images, each (1, X, Y, Z) in [0, 1], to 8 bits."""
    stack = np.stack([np.round(image[0] * 255).astype(np.uint8) for image in images])
    masks = np.stack([np.asarray(mask, dtype=bool) for mask in brain_masks])
    return TrainingCache(torch.from_numpy(stack), torch.from_numpy(masks), tuple(ids), modality, tuple(patients))
