"""A cluster of two nodes on this machine: work is spread, a node that is switched off costs what it had under way."""

import importlib.util
import itertools
import threading
import time
from pathlib import Path

import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.cohort.processes import Lost, WorkersFail

from .fakes import Errand, Obedient

ROOT = Path(__file__).resolve().parents[4]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -r requirements-ray.txt"
)
pytestmark = [pytest.mark.slow, needs_ray]


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of two cores, without dashboard and usage statistics."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.second = made.add_node(num_cpus=2)
    try:
        yield made
    finally:
        made.shutdown()


def pool(cluster, timeout=120.0, **more):
    from monailabel_app.pipelines.cohort.ray_actors import RayPool

    return RayPool(Obedient, cluster.address, timeout, root=ROOT, **more)


def meeting(folder, *keys):
    """Errands of which the first two wait until each of two actors has one."""
    return [Errand("meet 2 a", str(folder)), Errand("meet 2 b", str(folder)), *map(Errand, keys)]


def test_both_nodes_work_and_every_scan_has_its_record(cluster, tmp_path):
    actors = pool(cluster)
    assert actors.size == 2
    found = dict(actors.results(iter(meeting(tmp_path, *"abcdefgh"))))
    assert len(found) == 10
    assert {outcome["state"] for outcome in found.values()} == {"analysed"}
    assert len({outcome["pid"] for outcome in found.values()}) == 2
    assert {outcome["threads"] for outcome in found.values()} == {"2"}


def test_no_more_is_handed_out_than_is_under_way(cluster):
    taken = []

    def errands():
        for number in range(10):
            taken.append(number)
            yield Errand(f"nap 0.1{number}")

    for done, _ in enumerate(pool(cluster).results(errands()), 1):
        assert len(taken) <= done + 3  # two under way, and the one that is next


def test_a_node_switched_off_in_the_middle_costs_no_scan(cluster, tmp_path):
    errands = meeting(tmp_path, *(f"nap 1.{n}" for n in range(10)))
    results = pool(cluster).results(iter(errands))
    first = [next(results) for _ in range(3)]
    assert len({outcome["pid"] for _, outcome in first}) == 2
    threading.Thread(target=cluster.remove_node, args=(cluster.second, False)).start()
    found = [*first, *results]
    assert sorted(task.key for task, _ in found) == sorted(errand.key for errand in errands)
    assert {outcome["state"] for _, outcome in found} == {"analysed"}
    assert max(task.tries for task, _ in found) == 1  # the one that was under way there


def test_crashes_hangs_and_want_of_memory_cost_one_scan_each(cluster):
    keys = ["a", "crash", "memory", "hang", "b", "c"]
    found = {task.key: outcome for task, outcome in pool(cluster, timeout=15.0).results(Errand(key) for key in keys)}
    kinds = {key: outcome.kind for key, outcome in found.items() if isinstance(outcome, Lost)}
    assert kinds == {"crash": "WorkerDied", "memory": "OutOfMemory", "hang": "TimedOut"}
    assert {found[key]["state"] for key in "abc"} == {"analysed"}


def test_a_node_that_joins_later_gets_work(cluster):
    cluster.remove_node(cluster.second)
    results = pool(cluster).results(Errand(f"nap 0.2{number}") for number in itertools.count())
    seen, end = {next(results)[1]["pid"]}, time.monotonic() + 400
    cluster.add_node(num_cpus=2)
    while len(seen) == 1:
        assert time.monotonic() < end, "the new node got no work"
        seen.add(next(results)[1]["pid"])
    results.close()


def test_nodes_without_the_shared_paths_get_no_work(cluster, tmp_path):
    with pytest.raises(WorkersFail, match="every node needs the same paths"):
        list(pool(cluster, shared=[tmp_path / "not mounted"]).results(iter([Errand("a")])))


def test_an_address_where_no_cluster_is_is_refused():
    from monailabel_app.pipelines.cohort.ray_actors import RayPool

    with pytest.raises(InvalidSettings, match="could not reach it"):
        RayPool(Obedient, "127.0.0.1:1", 10.0, root=ROOT)
    with pytest.raises(InvalidSettings, match="host:port"):
        RayPool(Obedient, "somewhere", 10.0, root=ROOT)
