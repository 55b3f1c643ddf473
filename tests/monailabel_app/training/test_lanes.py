"""Lanes: the whole batch whoever computes it, random numbers of their own, and more of them when memory runs out."""

import pytest
import torch

from monailabel_app.training.lanes import Lanes, is_out_of_memory, stream_seed


def draws(lanes):
    return {lane.number: torch.rand(3, generator=lane.generator) for lane in lanes}


@pytest.mark.parametrize(("count", "batch", "world"), [(1, 4, 1), (3, 8, 1), (4, 6, 2), (1, 5, 2), (8, 6, 2)])
def test_the_lanes_of_all_ranks_make_up_the_batch(count, batch, world):
    sizes = [lane.size for rank in range(world) for lane in Lanes(count, batch, 0, rank=rank, world=world)]
    assert sum(sizes) == batch
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == Lanes(count, batch, 0, world=world).largest


def test_a_lane_draws_the_same_whoever_computes_it_and_no_two_lanes_draw_the_same():
    alone = draws(Lanes(4, 8, seed=5))
    shared = draws(Lanes(4, 8, seed=5, rank=0, world=2)) | draws(Lanes(4, 8, seed=5, rank=1, world=2))
    assert alone.keys() == shared.keys() == {0, 1, 2, 3}
    assert all(torch.equal(alone[number], shared[number]) for number in alone)
    assert len({tuple(values.tolist()) for values in alone.values()}) == 4


def test_the_first_lane_draws_what_a_run_without_lanes_draws():
    expected = torch.rand(3, generator=torch.Generator().manual_seed(9))
    assert torch.equal(draws(Lanes(2, 4, seed=9))[0], expected)


def test_restored_lanes_draw_again_what_they_drew():
    lanes = Lanes(3, 6, seed=1)
    draws(lanes)
    states = lanes.states()
    expected = draws(lanes)
    fresh = Lanes(1, 6, seed=1)
    fresh.restore(states)
    again = draws(fresh)
    assert fresh.count == 3
    assert all(torch.equal(again[number], expected[number]) for number in expected)


def test_the_state_of_a_run_without_lanes_is_taken_over():
    generator = torch.Generator().manual_seed(4)
    torch.rand(7, generator=generator)
    lanes = Lanes(1, 4, seed=0)
    lanes.restore(generator.get_state())
    assert torch.equal(draws(lanes)[0], torch.rand(3, generator=generator))


def test_more_processes_than_lanes_add_lanes():
    lanes = Lanes(1, 4, seed=0, rank=1, world=2)
    lanes.restore(Lanes(1, 4, seed=0).states())
    assert (lanes.count, [lane.number for lane in lanes]) == (2, [1])


def test_doubling_halves_the_pieces_and_keeps_the_streams_there_are():
    lanes, untouched = Lanes(1, 4, seed=3), Lanes(1, 4, seed=3)
    lanes.double()
    assert [lane.size for lane in lanes] == [2, 2]
    assert torch.equal(draws(lanes)[0], draws(untouched)[0])
    lanes.double()
    lanes.double()
    assert (lanes.largest, [lane.size for lane in lanes]) == (1, [1] * 4)


def test_seeds_differ_between_lanes_and_steps():
    seeds = {stream_seed(0, lane, step) for lane in range(20) for step in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected
