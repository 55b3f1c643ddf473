"""The memory of analyses: bounded, least recently used first out, told apart by content."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.pipelines.analysis import Analysis, Evidence
from monailabel_app.pipelines.cache import MapCache, analysis_key
from monailabel_app.types import PreparedVolume, Volume


def entry(mark=0, side=4) -> Analysis:
    """Ten bytes a voxel: image and reconstruction as float32, two masks."""
    shape = (side, side, side)
    prepared = PreparedVolume(
        image=np.full((1, *shape), mark, np.float32),
        brain_mask=np.ones(shape, bool),
        model_affine=np.eye(4),
        native_to_template=np.eye(4),
        native_affine=np.eye(4),
        native_shape=shape,
        native_brain_mask=np.ones(shape, bool),
    )
    made = np.full(shape, mark, np.float32)
    return Analysis(prepared, Evidence(prepared.image[0], prepared.brain_mask, made))


def test_an_entry_counts_all_its_arrays():
    assert entry(side=4).nbytes == 64 * (4 + 4 + 1 + 1)


def test_memory_stays_below_the_bound_and_the_least_recently_used_leaves_first():
    size = entry().nbytes
    cache = MapCache(max_bytes=3 * size + 10)
    for name in "abc":
        cache.put(name, entry())
    assert cache.get("a") is not None
    cache.put("d", entry())
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "c", "d"]
    assert len(cache) == 3
    for name in "efghij":
        cache.put(name, entry())
        assert len(cache) <= 3


def test_a_large_entry_pushes_out_as_many_as_it_needs():
    cache = MapCache(max_bytes=entry(side=8).nbytes + entry().nbytes)
    for name in "abc":
        cache.put(name, entry())
    cache.put("large", entry(side=8))
    assert [name for name in ("a", "b", "c", "large") if cache.get(name) is not None] == ["c", "large"]


def test_an_entry_larger_than_the_bound_is_not_kept_and_pushes_nothing_out():
    cache = MapCache(max_bytes=entry().nbytes)
    cache.put("small", entry())
    cache.put("large", entry(side=8))
    assert cache.get("large") is None
    assert cache.get("small") is not None


def test_putting_again_replaces_and_is_counted_once():
    cache = MapCache(max_bytes=2 * entry().nbytes)
    for mark in range(5):
        cache.put("a", entry(mark))
    cache.put("b", entry())
    assert len(cache) == 2
    assert cache.get("a").reconstruction[0, 0, 0] == 4


def test_clearing_forgets_everything_and_frees_the_room():
    cache = MapCache(max_bytes=entry().nbytes)
    cache.put("a", entry())
    cache.clear()
    assert cache.get("a") is None
    cache.put("b", entry())
    assert len(cache) == 1


def test_threads_do_not_break_the_bound():
    size = entry().nbytes
    cache = MapCache(max_bytes=5 * size)

    def work(name):
        for index in range(200):
            cache.put(f"{name}{index % 7}", entry())
            cache.get(f"{name}{index % 3}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < len(cache) <= 5


@pytest.fixture
def volume():
    return Volume(np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5), np.eye(4), "a")


def test_the_same_content_has_the_same_key_whatever_its_name_and_memory_order(volume):
    key = analysis_key(volume, "hash", {"seed": 0, "b": 1})
    twin = Volume(np.asfortranarray(volume.data), np.eye(4, dtype=np.float32), "other name")
    assert analysis_key(twin, "hash", {"b": 1, "seed": 0}) == key


def test_any_difference_in_content_geometry_model_or_settings_changes_the_key(volume):
    changed = volume.data.copy()
    changed[0, 2, 3, 4] = np.nextafter(np.float32(59), np.float32(60))
    shifted = np.eye(4)
    shifted[0, 3] = 1e-9
    keys = [
        analysis_key(volume, "hash", {"seed": 0}),
        analysis_key(replace(volume, data=changed), "hash", {"seed": 0}),
        analysis_key(replace(volume, data=volume.data.reshape(1, 4, 3, 5)), "hash", {"seed": 0}),
        analysis_key(replace(volume, affine=shifted), "hash", {"seed": 0}),
        analysis_key(volume, "other", {"seed": 0}),
        analysis_key(volume, "hash", {"seed": 1}),
    ]
    assert len(set(keys)) == len(keys)
