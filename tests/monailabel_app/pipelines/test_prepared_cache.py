"""Preparing many scans: once per content, in processes that may die, and gone for good when purged."""

import logging
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open

from monailabel_app.errors import CorruptModel, TrainingFailed
from monailabel_app.pipelines import prepared_cache, prepared_store
from monailabel_app.pipelines.prepared_cache import ScanSource, prepare_sources, purge
from monailabel_app.pipelines.workers import map_in_processes
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor
from monailabel_app.preprocessing.template import Template
from tests.monailabel_app.pipelines.given_brains import Deadly, GivenBrain, Strange, prepare_all
from tests.monailabel_app.synthetic import SHAPE, person, save_template, scan


@pytest.fixture
def site(tmp_path):
    """Template, extractor and five scans: ``sources, prepare``."""
    extractor = tmp_path / "brain_extraction"
    extractor.mkdir()
    for name in ("config.yaml", "model.safetensors"):
        (extractor / name).write_text("not needed for scans with a mask")
    options = {"template_folder": save_template(tmp_path), "extractor_folder": extractor}
    sources = [write_scan(tmp_path / "scans", index) for index in range(5)]

    def prepare(chosen=sources, workers=0, **more):
        return prepare_sources(chosen, "t1", tmp_path / "cache", workers=workers, **{**options, **more})

    return sources, prepare


def write_scan(folder: Path, index: int, kind=GivenBrain):
    folder.mkdir(exist_ok=True)
    volume, brain, _ = scan(person(700 + index))
    source = kind(folder / f"{index}.nii", f"id{index}", f"patient{index}")
    nib.save(nib.Nifti1Image(volume.data[0], volume.affine), source.path)
    nib.save(nib.Nifti1Image(brain.mask.astype(np.uint8), volume.affine), source.mask)
    return source


def entries(tmp_path):
    return sorted((tmp_path / "cache" / "prepared").glob("*.safetensors"))


def test_every_scan_is_what_preprocessing_makes_of_it_and_the_order_is_kept(site, tmp_path):
    sources, prepare = site
    told = []
    made = prepare(progress=lambda *now: told.append(now))
    cache = made.cache
    assert (cache.ids, cache.patients) == (tuple(s.id for s in sources), tuple(s.patient for s in sources))
    assert (cache.modality, made.refused, len(set(made.digests))) == ("t1", (), 5)
    assert told == [(done, 5) for done in range(1, 6)]
    volume, brain = sources[3].read()
    alone = Preprocessor(Template.load(tmp_path / "template")).prepare(volume, brain=brain)
    assert np.abs(cache.prepared(3).image - alone.image).max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(cache.prepared(3).brain_mask, alone.brain_mask)


def test_processes_make_the_same_as_one_program(site, tmp_path):
    _, prepare = site
    alone = prepare()
    shutil.rmtree(tmp_path / "cache")
    spread = prepare(workers=2)
    assert spread.digests == alone.digests
    assert torch.equal(spread.cache.images, alone.cache.images)
    assert torch.equal(spread.cache.brain_masks, alone.cache.brain_masks)


def test_an_unchanged_file_is_not_decoded_again_wherever_it_lies(site, tmp_path, monkeypatch):
    sources, prepare = site
    first = prepare()
    moved = [GivenBrain(tmp_path / "elsewhere" / f"x{s.path.name}", f"new-{s.id}", s.patient) for s in sources]
    (tmp_path / "elsewhere").mkdir()
    for old, new in zip(sources, moved, strict=True):
        shutil.move(old.path, new.path)
        shutil.move(old.mask, new.mask)
    monkeypatch.setattr(prepared_cache, "read_volume", None)
    second = prepare(moved)
    assert second.digests == first.digests
    assert torch.equal(second.cache.images, first.cache.images)
    assert second.cache.ids == tuple(f"new-{s.id}" for s in sources)


def test_the_same_voxels_in_another_file_are_not_prepared_again(site, monkeypatch):
    sources, prepare = site
    first = prepare(sources[:1])
    image = nib.load(sources[0].path)
    packed = GivenBrain(sources[0].path.with_name("again.nii.gz"), "again", "someone")
    nib.save(image, packed.path)
    nib.save(nib.load(sources[0].mask), packed.mask)
    monkeypatch.setattr(Preprocessor, "prepare", None)
    assert prepare([packed]).digests == first.digests


def test_other_settings_voxels_or_templates_make_another_entry(site, tmp_path):
    sources, prepare = site
    digests = [prepare(sources[:1]).digests[0]]
    digests.append(prepare(sources[:1], settings=PrepareSettings(bias_field=True)).digests[0])
    template = Template.load(tmp_path / "template")
    (tmp_path / "other").mkdir()
    replace(template, mean=template.mean * 0.9).save(tmp_path / "other")
    digests.append(prepare(sources[:1], template_folder=tmp_path / "other").digests[0])
    image = nib.load(sources[0].path)
    data = image.get_fdata()
    data[10, 10, 10] += 1
    nib.save(nib.Nifti1Image(data.astype(np.float32), image.affine), sources[0].path)
    digests.append(prepare(sources[:1]).digests[0])
    assert len(set(digests)) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "removed"])
def test_a_damaged_entry_is_made_anew(site, tmp_path, damage):
    sources, prepare = site
    first = prepare(sources[:2])
    path = tmp_path / "cache" / "prepared" / f"{first.digests[0]}.safetensors"
    content = bytearray(path.read_bytes())
    content[-3000] ^= 0xFF
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-100], "changed": content, "emptied": b""}[damage])
    again = prepare(sources[:2])
    assert torch.equal(again.cache.images, first.cache.images)
    assert torch.equal(again.cache.brain_masks, first.cache.brain_masks)
    assert torch.equal(prepare(sources[:2]).cache.images, first.cache.images)


def test_an_index_that_points_nowhere_is_not_believed(site, tmp_path):
    sources, prepare = site
    first = prepare(sources[:1])
    (index,) = (tmp_path / "cache" / "prepared" / "index").iterdir()
    for text in ("", "../../secret", "0" * 64):
        index.write_text(text)
        assert prepare(sources[:1]).digests == first.digests
        assert index.read_text() == first.digests[0]


def test_no_id_name_or_path_gets_into_the_cache(site, tmp_path):
    sources, prepare = site
    prepare()
    for path in (tmp_path / "cache").rglob("*"):
        content = b"" if path.is_dir() else path.read_bytes()
        for word in [*(s.id for s in sources), *(s.patient for s in sources), "scans", str(tmp_path)]:
            assert word.encode() not in content
            assert word not in path.relative_to(tmp_path / "cache").as_posix()
    with safe_open(str(entries(tmp_path)[0]), framework="pt") as handle:
        assert handle.get_tensor("image").dtype == torch.uint8
        assert handle.get_tensor("image").shape == SHAPE
        assert '"step": "align"' in handle.metadata()["record"]


def test_a_broken_scan_a_strange_one_and_a_missing_one_are_refused_without_their_paths(site, tmp_path, caplog):
    sources, prepare = site
    (tmp_path / "scans" / "1.nii").write_bytes(b"nothing")
    strange = write_scan(tmp_path / "scans", 8, Strange)
    gone = ScanSource(tmp_path / "secret" / "9.nii", "id9", "patient9")
    with caplog.at_level(logging.WARNING):
        made = prepare([sources[0], sources[1], strange, gone, sources[2]], workers=1)
    assert made.cache.ids == ("id0", "id2")
    assert [name for name, _ in made.refused] == ["id1", "id8", "id9"]
    assert "NIfTI" in made.refused[0][1]
    assert "ZeroDivisionError" in made.refused[1][1]
    told = str(made.refused) + caplog.text
    assert "secret" not in told
    assert str(tmp_path) not in told


def test_the_scan_whose_process_dies_is_refused_and_the_others_go_on(site, tmp_path):
    sources, prepare = site
    deadly = write_scan(tmp_path / "scans", 9, Deadly)
    made = prepare([sources[0], deadly, *sources[1:]], workers=2)
    assert made.cache.ids == tuple(s.id for s in sources)
    ((name, reason),) = made.refused
    assert name == "id9"
    assert "died" in reason


def test_a_copy_of_a_scan_is_refused_so_that_it_cannot_be_on_both_sides_of_a_split(site, tmp_path):
    sources, prepare = site
    copy = GivenBrain(tmp_path / "scans" / "copy.nii", "copy", "someone else")
    shutil.copy(sources[1].path, copy.path)
    shutil.copy(sources[1].mask, copy.mask)
    made = prepare([*sources[:3], copy])
    assert made.cache.ids == ("id0", "id1", "id2")
    assert made.refused[0][0] == "copy"
    assert "another one again" in made.refused[0][1]


def test_without_a_usable_scan_or_the_models_it_says_so(site, tmp_path):
    sources, prepare = site
    with pytest.raises(TrainingFailed, match=r"every one of 1 was refused.*ZeroDivisionError"):
        prepare([write_scan(tmp_path / "scans", 8, Strange)])
    with pytest.raises(TrainingFailed, match="every one of 0"):
        prepare([])
    with pytest.raises(CorruptModel, match="brain extraction"):
        prepare(sources, extractor_folder=tmp_path / "absent")


def test_two_programs_that_prepare_the_same_scans_at_once_do_no_harm(site, tmp_path):
    _, prepare = site
    made = [digests for _, digests in map_in_processes(partial(prepare_all, tmp_path), range(2), 2)]
    assert made == [prepare().digests] * 2
    assert len(entries(tmp_path)) == 5
    assert list((tmp_path / "cache").rglob("*.partial")) == []


def test_a_cache_that_cannot_be_written_stops_the_work_and_leaves_nothing_half_written(site, tmp_path, monkeypatch):
    _, prepare = site

    def full(tensors, path, header):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(prepared_store, "save_file", full)
    with pytest.raises(TrainingFailed, match="No space left") as raised:
        prepare()
    assert str(tmp_path) not in str(raised.value)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_what_a_killed_program_left_half_written_goes_after_an_hour(site, tmp_path):
    sources, prepare = site
    prepare(sources[:1])
    old, new = (tmp_path / "cache" / "prepared" / f".{name}.partial" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half a brain")
    os.utime(old, (0, 0))
    prepare(sources[:1])
    assert (old.exists(), new.exists()) == (False, True)


def test_purging_removes_scans_their_index_and_the_caches_that_hold_them(site, tmp_path):
    sources, prepare = site
    made = prepare()
    cache_folder = tmp_path / "cache"
    made.cache.select([0, 1]).save(cache_folder / "t1_train.safetensors")
    made.cache.select([2, 3]).save(cache_folder / "t1_validation.safetensors")
    assert purge(cache_folder, [made.digests[1]]) == 1
    assert purge(cache_folder, [made.digests[1]]) == 0
    assert [p.stem for p in entries(tmp_path)] == sorted(d for i, d in enumerate(made.digests) if i != 1)
    told = [p.read_text() for p in (cache_folder / "prepared" / "index").iterdir()]
    assert sorted(told) == sorted(d for i, d in enumerate(made.digests) if i != 1)
    assert [p.name for p in cache_folder.glob("*.safetensors")] == ["t1_validation.safetensors"]
    assert torch.equal(prepare(sources).cache.images, made.cache.images)


def test_purging_a_cache_that_is_not_there_is_no_error(tmp_path):
    assert purge(tmp_path / "none", ["0" * 64]) == 0
