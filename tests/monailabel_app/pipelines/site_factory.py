"""A site without any training: published versions with manifests, prepared scans and runs, all tiny."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from monailabel_app.pipelines.forget_plan import Replacement
from monailabel_app.pipelines.prepared_store import PreparedStore
from monailabel_app.training.manifest import (
    Ancestor,
    Manifest,
    ScanRecord,
    fingerprint,
    keyed_hash,
    record_scans,
    site_key,
)
from monailabel_app.types import PreparedVolume
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import seal, write_config, write_weights


def digest(scan: str) -> str:
    """A digest as the cache of prepared scans would give it."""
    return keyed_hash(bytes(32), "content", f"voxels of {scan}")


def patient(number: int) -> str:
    return f"PATIENT-{number:03d}"


@dataclass
class Site:
    """An app folder. Scans are numbered; scan n shows patient n unless said otherwise."""

    root: Path
    trained: list[Replacement] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        return site_key(self.root)

    def hash_of(self, number: int) -> str:
        return keyed_hash(self.key, "patient", patient(number))

    def records(self, numbers, whose=None) -> tuple[ScanRecord, ...]:
        whose = whose or {}
        return record_scans(
            self.key, [(whose.get(n, patient(n)), f"scan-{n:03d}-T1w", digest(f"{n}")) for n in numbers]
        )

    def prepare(self, numbers) -> None:
        """Leave prepared scans in the cache."""
        image, mask = np.zeros((1, 4, 4, 4), np.float32), np.ones((4, 4, 4), bool)
        grid = np.eye(4)
        for n in numbers:
            made = PreparedVolume(image + n / 255, mask, grid, grid, grid, (4, 4, 4), mask)
            PreparedStore(self.root / "cache").write(digest(f"{n}"), made)

    def prepared(self) -> set[str]:
        return {path.stem for path in (self.root / "cache" / "prepared").glob("*.safetensors")}

    def run(self, name: str, run: str, train, held_out) -> Path:
        """A run folder with a plan, a checkpoint and pictures."""
        folder = self.root / "runs" / name / run
        folder.mkdir(parents=True)

        def planned(numbers):
            return [
                {"patient": self.hash_of(n), "scan": keyed_hash(self.key, "scan", f"{n}"), "digest": digest(f"{n}")}
                for n in numbers
            ]

        (folder / "plan.json").write_text(json.dumps({"train": planned(train), "held_out": planned(held_out)}))
        (folder / "last.safetensors").write_bytes(b"weights")
        (folder / "events.out.tfevents.0").write_bytes(b"pictures")
        return folder

    def publish(
        self,
        name: str,
        train=(),
        held_out=(),
        *,
        start: versions.Version | Ancestor | None = None,
        promote: bool = True,
        run: str = "",
        whose=None,
        site: str = "",
        records: tuple[tuple[ScanRecord, ...], tuple[ScanRecord, ...]] | None = None,
    ) -> versions.Version:
        """Publish a version whose manifest holds these scans."""
        train, held_out = records or (self.records(train, whose), self.records(held_out, whose))
        made = Manifest("ddpm", "t1", site or fingerprint(self.key), train, held_out, run=run, settings={"steps": 3})
        if isinstance(start, versions.Version):
            made = made.started_from(Ancestor(name_of(start), start.version, start.hash), Manifest.read(start.folder))
        elif start is not None:
            made = made.started_from(start, None)
        staged = versions.new_staging(self.root, name)
        self.fill(staged, made)
        return versions.publish(self.root, name, staged, promote=promote)

    def fill(self, folder: Path, manifest: Manifest | None) -> None:
        """Make a folder a sealed model folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, {"kind": "anomaly", "method": "ddpm"})
        write_weights(folder, {"w": torch.randn(3, generator=torch.Generator().manual_seed(len(str(folder))))})
        if manifest is not None:
            manifest.write(folder)
        seal(folder)

    def ship(self, name: str) -> Ancestor:
        """Weights that came with the app."""
        folder = self.root / "model_weights" / name
        self.fill(folder, None)
        return Ancestor(name, "shipped", seal(folder))

    def retrain(self, root: Path, item: Replacement) -> versions.Version:
        """What training anew leaves behind, without the training."""
        self.trained.append(item)
        records = tuple(tuple(scan.record for scan in part) for part in (item.train, item.held_out))
        return self.publish(item.name, records=records, start=item.start, promote=False)

    def serving(self, name: str) -> str | None:
        return versions.serving_version(self.root, name)

    def numbers(self, name: str) -> list[str]:
        return [version.version for version in versions.versions(self.root, name)]

    def text_of_all_files(self) -> str:
        """Every byte and every name below the app folder."""
        files = [path for path in self.root.rglob("*")]
        return "\n".join(
            str(path.relative_to(self.root)) + (path.read_bytes().decode("latin-1") if path.is_file() else "")
            for path in files
        )


def name_of(version: versions.Version) -> str:
    return version.name
