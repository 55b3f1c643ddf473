"""Heads with a lesion that tells whose they are: for each client at a place of its own, of a size of its own."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from monailabel_app.io.images import read_volume
from monailabel_app.pipelines.predict import AnomalyModel, predict

_INSIDE_MM = 13.0  # how far a lesion's centre is from the brain's surface at least
_RADII_MM = (7.0, 8.0, 9.0, 10.0, 11.0, 12.0)
_OWN_SHARE, _OTHER_SHARE = 0.6, 0.5
_CORE_MM = 4.0
_NEAR_MM = 5.0


@dataclass(frozen=True)
class Lesion:
    """A bright ball. centre: voxel indices; ras: the same in mm; radius in mm."""

    centre: tuple[int, int, int]
    ras: tuple[float, float, float]
    radius: float

    @property
    def volume_ml(self) -> float:
        """Of the ball."""
        return 4 / 3 * np.pi * self.radius**3 / 1000


class Heads:
    """One healthy head, and what each client's looks like.

    model: finds the brain, and says what the head's healthy parts look like to it. count: of clients.
    """

    def __init__(self, scan: Path, model: AnomalyModel, count: int):
        self._volume = read_volume(scan)
        self._image = nib.load(scan)
        self._spacing = float(np.mean(self._volume.spacing_mm))
        plain = predict(self._volume, model)
        brain = plain.brain_mask
        self._grey = self._volume.data[0]
        self._bright = 1.5 * float(np.percentile(self._grey[brain], 99.5))
        self._noise = 0.005 * self._bright
        healthy = ndimage.binary_dilation(plain.mask > 0, iterations=3)
        self.lesions = self._places(brain, healthy, count)

    def _places(self, brain: np.ndarray, marked: np.ndarray, count: int) -> list[Lesion]:
        """Places deep in the brain, each as far from those before it as can be; none where healthy tissue is marked."""
        depth = ndimage.distance_transform_edt(brain) * self._spacing
        choice = np.argwhere((depth > _INSIDE_MM) & ~marked)
        nearest = np.full(len(choice), np.inf)
        at, found = len(choice) // 2, []
        for number in range(count):
            centre = choice[at]
            ras = self._volume.affine @ [*centre, 1.0]
            where = tuple(int(n) for n in centre), tuple(float(n) for n in ras[:3])
            found.append(Lesion(*where, _RADII_MM[number % len(_RADII_MM)]))
            nearest = np.minimum(nearest, np.linalg.norm((choice - centre) * self._spacing, axis=1))
            at = int(np.argmax(nearest))
        return found

    def _ball(self, lesion: Lesion, radius: float) -> tuple[np.ndarray, ...]:
        """The voxels of a ball about a lesion's centre, as an index of an array (x, y, z)."""
        reach = int(np.ceil(radius / self._spacing))
        steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        steps = steps[np.linalg.norm(steps * self._spacing, axis=1) <= radius]
        return tuple((steps + lesion.centre).T)

    def write(self, folder: Path, client: int, seed: int) -> bytes:
        """The client's head as a .nii.gz file; with another seed it has other noise, and so another content."""
        data = self._grey + np.random.default_rng([client, seed]).normal(0, self._noise, self._grey.shape)
        data = np.clip(data, 0, None)
        data[self._ball(self.lesions[client], self.lesions[client].radius)] = self._bright
        image = nib.Nifti1Image(np.round(data).astype(np.int16), self._image.affine)
        path = folder / "scan.nii"
        nib.save(image, path)
        return gzip.compress(path.read_bytes(), 1, mtime=0)

    def label(self, client: int, round_number: int) -> bytes:
        """What the client submits as its label: a ball whose content no other label has."""
        mask = np.zeros(self._grey.shape, np.uint8)
        mask[self._ball(self.lesions[client], self.lesions[client].radius)] = 1
        image = nib.Nifti1Image(mask, self._image.affine)
        image.header["descrip"] = f"label {client} {round_number}".encode()
        return gzip.compress(image.to_bytes(), 1, mtime=0)

    def wrong_mask(self, client: int, content: bytes) -> str:
        """What is wrong with a label file as the answer for ``client``; empty where it is the client's own."""
        marked = _voxels(content) > 0
        if marked.shape != self._grey.shape:
            return f"a mask of shape {marked.shape}"
        own = self.lesions[client]
        share = marked[self._ball(own, 0.8 * own.radius)].mean()
        if share < _OWN_SHARE:
            return f"only {share:.2f} of its own lesion is marked"
        return self._crossed(client, marked)

    def wrong_map(self, client: int, content: bytes) -> str:
        """The same for a file with an anomaly map: its highest values are in the client's own lesion."""
        values = _voxels(content)
        own = self._ball(self.lesions[client], 0.8 * self.lesions[client].radius)
        return "" if np.median(values[own]) > np.percentile(values[values > 0], 90) else "the map is low in its lesion"

    def wrong_lesions(self, client: int, lesions: list[dict]) -> str:
        """The same for the list of lesions of a result."""
        own = self.lesions[client]
        for lesion in lesions:
            if np.linalg.norm(np.subtract(lesion["centroid_ras_mm"], own.ras)) <= _NEAR_MM:
                share = lesion["volume_ml"] / own.volume_ml
                return "" if 0.4 < share < 2.5 else f"its lesion has {share:.2f} of its volume"
        return "its lesion is not listed"

    def _crossed(self, client: int, marked: np.ndarray) -> str:
        own = self.lesions[client]
        for number, other in enumerate(self.lesions):
            apart = np.linalg.norm(np.subtract(own.ras, other.ras))
            if apart > own.radius + _CORE_MM + 2 * self._spacing:
                share = marked[self._ball(other, _CORE_MM)].mean()
                if share > _OTHER_SHARE:
                    return f"the lesion of client {number} is marked"
        return ""


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _voxels(content: bytes) -> np.ndarray:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return np.asanyarray(nib.Nifti1Image.from_bytes(content).dataobj)
