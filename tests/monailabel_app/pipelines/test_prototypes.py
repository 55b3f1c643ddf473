import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.io.healthy_list import read_healthy_list
from monailabel_app.pipelines import prototypes
from monailabel_app.pipelines.embedding_store import EmbeddingStore
from monailabel_app.pipelines.prepared_cache import purge
from monailabel_app.pipelines.prototypes import (
    UNLIKE_OTHERS,
    Encoder,
    embed_file,
    rank_cache,
    rank_embeddings,
    write_list,
)
from monailabel_app.training.cache import TrainingCache
from tests.conftest import ROOT
from tests.monailabel_app.synthetic import random_cache


@pytest.fixture(scope="module")
def cache():
    return random_cache(12)


@pytest.fixture
def encoder(model_folder):
    return Encoder(model_folder)


def with_damage(cache, index, change):
    """The cache with one scan changed; its mask changes with it."""
    images, masks = cache.images.clone(), cache.brain_masks.clone()
    images[index], masks[index] = change(images[index], masks[index])
    return TrainingCache(images, masks, cache.ids, cache.modality)


def upside_down(image, mask):
    return image.flip(2), mask.flip(2)


def noisy(image, mask):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) * 60
    return torch.where(mask, (image + noise).clamp(0, 255), image.float()).to(torch.uint8), mask


def half_gone(image, mask):
    image, mask = image.clone(), mask.clone()
    image[: len(image) // 2], mask[: len(mask) // 2] = 0, False
    return image, mask


@pytest.mark.parametrize("damage", [upside_down, half_gone])
def test_a_damaged_scan_is_flagged_and_not_proposed(cache, encoder, damage):
    report = rank_cache(with_damage(cache, 3, damage), k=12, encoder=encoder)
    flagged = [row for row in report.rows if row.suspicious]
    assert [row.id for row in flagged] == ["r3"]
    assert flagged[0].reason == UNLIKE_OTHERS
    assert flagged[0].distance > report.typical
    assert "r3" not in report.proposed


@pytest.fixture(scope="module")
def real_brains():
    """Twenty held-out real brains, the shipped encoder and their embeddings; needs what ``main.py prepare`` made."""
    file = ROOT / "cache" / "ixi_t1_val.safetensors"
    if not file.is_file():
        pytest.skip("needs cache/ixi_t1_val.safetensors: python main.py prepare --data ../shared/data/ixi_t1")
    cache, encoder = TrainingCache.load(file), Encoder()
    return cache, encoder, np.stack([encoder.embed(cache, index) for index in range(len(cache))])


@pytest.mark.slow
def test_no_clean_real_brain_is_flagged(real_brains):
    cache, _, embeddings = real_brains
    assert not any(row.suspicious for row in rank_embeddings(cache.ids, embeddings, k=5).rows)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [upside_down, noisy, half_gone])
def test_a_damaged_real_brain_is_flagged_by_the_shipped_model(real_brains, damage):
    cache, encoder, embeddings = real_brains
    for index in (0, 7):
        changed = embeddings.copy()
        changed[index] = encoder.embed(with_damage(cache, index, damage), index)
        flagged = [row.id for row in rank_embeddings(cache.ids, changed, k=5).rows if row.suspicious]
        assert flagged == [cache.ids[index]]


def test_the_order_of_the_pool_does_not_matter(cache, encoder):
    order = np.random.default_rng(0).permutation(12)
    shuffled = TrainingCache(
        cache.images[order], cache.brain_masks[order], tuple(cache.ids[i] for i in order), cache.modality
    )
    assert rank_cache(cache, k=4, encoder=encoder) == rank_cache(shuffled, k=4, encoder=encoder)


def test_a_smaller_proposal_is_the_head_of_a_larger_one(cache, encoder):
    small, large = (rank_cache(cache, k=k, encoder=encoder).proposed for k in (3, 6))
    assert len(small) == 3
    assert large[:3] == small


def test_all_but_the_outliers_are_proposed_when_k_exceeds_the_pool(cache, encoder):
    report = rank_cache(cache, k=100, encoder=encoder)
    assert len(report.proposed) == 12 - sum(row.outlier for row in report.rows)


def test_nothing_to_propose_is_refused(cache, encoder):
    with pytest.raises(InvalidSettings, match="at least 1"):
        rank_cache(cache, k=0, encoder=encoder)


def test_the_report_is_plain_json(cache, encoder):
    report = json.loads(json.dumps(rank_cache(cache, k=2, encoder=encoder, refused=[("x", "why")]).to_json()))
    assert [row["rank"] for row in report["rows"]] == list(range(1, 13))
    assert report["refused"] == [{"id": "x", "reason": "why"}]


def test_the_list_can_be_read_as_a_healthy_list(tmp_path, cache, encoder):
    report = rank_cache(with_damage(cache, 3, upside_down), k=4, encoder=encoder)
    write_list(report, tmp_path / "list.csv")
    said = {row.name: row.healthy for row in read_healthy_list(tmp_path / "list.csv").rows}
    assert {name for name, healthy in said.items() if healthy} == set(report.proposed)
    assert [name for name, healthy in said.items() if healthy is False] == ["r3"]
    with (tmp_path / "list.csv").open(newline="") as handle:
        assert next(csv.DictReader(handle))["reason"]


def test_a_list_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path, cache, encoder):
    with pytest.raises(InvalidSettings, match="choose another file"):
        write_list(rank_cache(cache, k=2, encoder=encoder), tmp_path / "absent" / "list.csv")
    assert not list(tmp_path.iterdir())


def test_embeddings_are_kept_and_go_with_their_scan(tmp_path, cache, encoder, monkeypatch):
    named = replace(cache, digests=tuple(f"{i:064x}" for i in range(12)))
    store = EmbeddingStore(tmp_path, encoder.key)
    first = rank_cache(named, k=4, encoder=encoder, store=store)
    monkeypatch.setattr(encoder, "embed", lambda *_: pytest.fail("embedded again"))
    assert rank_cache(named, k=4, encoder=encoder, store=store) == first
    purge(tmp_path, [named.digests[5]])
    assert store.get(named.digests[5]) is None


def test_damaged_embeddings_count_as_absent(tmp_path, encoder):
    store = EmbeddingStore(tmp_path, encoder.key)
    store.put("a", np.ones(3))
    store.file.write_bytes(store.file.read_bytes()[:-4])
    assert store.get("a") is None
    store.put("b", np.ones(3))
    assert store.get("b").tolist() == [1, 1, 1]


def test_embeddings_of_another_encoder_are_not_taken(tmp_path):
    EmbeddingStore(tmp_path, "1" * 64).put("a", np.ones(3))
    assert EmbeddingStore(tmp_path, "2" * 64).get("a") is None


def test_a_full_disk_is_a_named_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingFailed, match="write embeddings"):
        EmbeddingStore(tmp_path / "file", "1" * 64).put("a", np.ones(3))


def test_a_scan_file_is_embedded_once(tmp_path, healthy_scan):
    encoder = Encoder()
    first, stored = embed_file(healthy_scan, encoder, tmp_path)
    assert not stored
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(healthy_scan.read_bytes())
    again, stored = embed_file(copy, encoder, tmp_path)
    assert stored
    assert np.array_equal(first, again)
    assert prototypes.EmbeddingStore(tmp_path, encoder.key).file.is_file()
