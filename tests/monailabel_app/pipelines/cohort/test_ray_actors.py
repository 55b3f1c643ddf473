"""A cluster of two nodes on this machine: work is spread, a node that is switched off costs what it had under way."""

import importlib.util
import itertools
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.cohort.processes import Lost, WorkersFail
from monailabel_app.pipelines.cohort.ray_actors import PATIENCE, PATIENCE_SECONDS, RayPool
from tests.ports import free_port

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
    monkeypatch.setenv(PATIENCE, str(PATIENCE_SECONDS))
    # By itself Ray gives its workers what others leave of the processor, which may be nothing.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = started()
    try:
        yield made
    finally:
        made.shutdown()


def ports():
    """A node whose agents choose their ports themselves dies where they take longer than 15 s for it."""
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    return {name: free_port() for name in names}


def started(seconds=900):
    """Ray gives a node 30 s to come up, and not more: begun anew where it gives up."""
    from ray.cluster_utils import Cluster

    end = time.monotonic() + seconds
    while True:
        made = Cluster(initialize_head=False)
        try:
            made.add_node(num_cpus=2, include_dashboard=False, **ports())
            made.second = made.add_node(num_cpus=2, **ports())
            return made
        except Exception:
            made.shutdown()
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if any("/ray/" in word for word in process.cmdline()):
                        process.kill()
            if time.monotonic() > end:
                raise


def pool(cluster, timeout=900.0, **more):
    return RayPool(Obedient, cluster.address, timeout, root=ROOT, **more)


def wait(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def runs(pid):
    """Whether a process is there and has not only not been collected."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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
    under_way = [Errand(f"until gone {number}", str(tmp_path)) for number in range(2)]
    errands = [*under_way, *map(Errand, "abcdefgh")]

    def here():
        return [int(path.name.partition("-")[2]) for path in tmp_path.glob("here-*")]

    def switch_off():
        wait(lambda: len(here()) == 2)
        cluster.remove_node(cluster.second, False)
        wait(lambda: len([pid for pid in here() if runs(pid)]) == 1)
        (tmp_path / "gone").touch()

    switching = threading.Thread(target=switch_off)
    switching.start()
    found = list(pool(cluster).results(iter(errands)))
    switching.join()
    assert sorted(task.key for task, _ in found) == sorted(errand.key for errand in errands)
    assert {outcome["state"] for _, outcome in found} == {"analysed"}
    assert sorted(task.tries for task, _ in found if task.key.startswith("until")) == [0, 1]


def test_crashes_hangs_and_want_of_memory_cost_one_scan_each(cluster):
    keys = ["a", "crash", "memory", "hang", "b", "c"]
    found = {task.key: outcome for task, outcome in pool(cluster, timeout=25.0).results(Errand(key) for key in keys)}
    kinds = {key: outcome.kind for key, outcome in found.items() if isinstance(outcome, Lost)}
    assert kinds == {"crash": "WorkerDied", "memory": "OutOfMemory", "hang": "TimedOut"}
    assert {found[key]["state"] for key in "abc"} == {"analysed"}


def test_a_node_that_joins_later_gets_work(cluster):
    cluster.remove_node(cluster.second)
    results = pool(cluster).results(Errand(f"nap 0.2{number}") for number in itertools.count())
    seen, end = {next(results)[1]["pid"]}, time.monotonic() + 900
    while len(cluster.worker_nodes) == 0:
        with suppress(Exception):
            cluster.add_node(num_cpus=2, **ports())
        assert time.monotonic() < end, "no other node came up"
    while len(seen) == 1:
        assert time.monotonic() < end, "the new node got no work"
        seen.add(next(results)[1]["pid"])
    results.close()


def test_nodes_without_the_shared_paths_get_no_work(cluster, tmp_path):
    with pytest.raises(WorkersFail, match="every node needs the same paths"):
        list(pool(cluster, shared=[tmp_path / "not mounted"]).results(iter([Errand("a")])))


def test_an_address_where_no_cluster_is_is_refused():
    with pytest.raises(InvalidSettings, match="could not reach it"):
        RayPool(Obedient, "127.0.0.1:1", 10.0, root=ROOT)
    with pytest.raises(InvalidSettings, match="host:port"):
        RayPool(Obedient, "somewhere", 10.0, root=ROOT)
