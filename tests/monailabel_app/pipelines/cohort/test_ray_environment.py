"""What Ray is told of the workers that it starts."""

import os
import sys
import types
from pathlib import Path

from monailabel_app.pipelines.cohort import ray_actors
from monailabel_app.pipelines.cohort.ray_actors import runtime_env

ROOT = Path("/opt/anomaly app")


def test_an_interpreter_whose_path_has_a_space_is_named_for_rays_shell():
    told = runtime_env(ROOT, "/opt/anomaly app/.venv/bin/python")
    assert told["py_executable"] == "'/opt/anomaly app/.venv/bin/python'"
    assert told["env_vars"]["PYTHONPATH"] == str(ROOT)


def test_other_interpreters_are_each_nodes_own():
    assert "py_executable" not in runtime_env(ROOT, "/opt/anomaly/.venv/bin/python")


def test_a_cluster_of_this_machine_waits_for_processes_that_take_long_to_come_up(monkeypatch, tmp_path):
    """Ray's own minute would end them, and start others, without end."""
    seen = {}

    def init(**options):
        seen.update(options, waits=os.environ.get(ray_actors.PATIENCE))

    ray = types.ModuleType("ray")
    ray.init, ray.util, ray.exceptions = init, types.ModuleType("ray.util"), types.SimpleNamespace(RayError=OSError)
    strategies = types.ModuleType("ray.util.scheduling_strategies")
    for name, module in (("ray", ray), ("ray.util", ray.util), ("ray.util.scheduling_strategies", strategies)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(ray_actors.PATIENCE, "")
    monkeypatch.delenv(ray_actors.PATIENCE)
    ray_actors._connected("local", tmp_path)
    assert (seen["address"], seen["waits"]) == ("local", "600")
    monkeypatch.setenv(ray_actors.PATIENCE, "90")
    ray_actors._connected("local", tmp_path)
    assert seen["waits"] == "90"
