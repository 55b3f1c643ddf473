"""What Ray is told of the workers that it starts."""

from pathlib import Path

from monailabel_app.pipelines.cohort.ray_actors import runtime_env

ROOT = Path("/opt/anomaly app")


def test_an_interpreter_whose_path_has_a_space_is_named_for_rays_shell():
    told = runtime_env(ROOT, "/opt/anomaly app/.venv/bin/python")
    assert told["py_executable"] == "'/opt/anomaly app/.venv/bin/python'"
    assert told["env_vars"]["PYTHONPATH"] == str(ROOT)


def test_other_interpreters_are_each_nodes_own():
    assert "py_executable" not in runtime_env(ROOT, "/opt/anomaly/.venv/bin/python")
