"""Scans with their brain masks beside them, for processes that prepare them.

Apart from the tests, as each process imports where these are from: the tests import networks, which takes seconds.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from monailabel_app.pipelines.prepared_cache import ScanSource, prepare_sources
from monailabel_app.types import BrainMask


@dataclass(frozen=True)
class GivenBrain(ScanSource):
    """A synthetic scan, too small for the brain extraction, with its mask beside it."""

    def files(self):
        return [self.path, self.mask]

    def read(self):
        volume, _ = ScanSource.read(self)
        return volume, BrainMask(np.asarray(nib.load(self.mask).dataobj) > 0, "given")

    @property
    def mask(self) -> Path:
        return self.path.with_name(f"mask_{self.path.name}")


@dataclass(frozen=True)
class Deadly(GivenBrain):
    """A scan that takes its process down, as the kernel does when memory runs out."""

    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Strange(GivenBrain):
    """A scan that provokes an error nobody thought of."""

    def read(self):
        raise ZeroDivisionError("/secret/path")


def prepare_all(folder, _):
    assert "monai" not in sys.modules, "a process that is given brain masks takes seconds longer to start"
    sources = [GivenBrain(folder / "scans" / f"{i}.nii", f"id{i}", f"patient{i}") for i in range(5)]
    models = {"template_folder": folder / "template", "extractor_folder": folder / "brain_extraction"}
    return prepare_sources(sources, "t1", folder / "cache", workers=0, **models).digests
