"""``models forget`` as one types it; the training itself is left out."""

import logging

import pytest
from typer.testing import CliRunner

from monailabel_app import cli, cli_forget
from monailabel_app.errors import TrainingFailed
from monailabel_app.pipelines import retrain as training
from monailabel_app.training.forgotten import is_forgotten
from monailabel_app.weights import site_calibrations, versions
from tests.monailabel_app.pipelines.site_factory import Site, patient

TRAIN, HELD_OUT = tuple(range(1, 8)), tuple(range(8, 14))


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Site(tmp_path)
    made.prepare((*TRAIN, *HELD_OUT))
    made.publish("m", TRAIN, HELD_OUT, run="r1")
    made.run("m", "r1", TRAIN, HELD_OUT)
    monkeypatch.setattr(cli_forget, "ROOT", tmp_path)
    monkeypatch.setattr(training, "retrain", lambda root, item, **_: made.retrain(root, item))
    return made


def forget(*words, answer=""):
    return CliRunner().invoke(cli.app, ["models", "forget", *words], input=answer)


def test_a_dry_run_tells_and_leaves_everything(site):
    done = forget("--patient", patient(3), "--dry-run")
    assert done.exit_code == 0
    assert "m@0001 (serving): trained on" in done.output
    assert patient(3) not in done.output
    assert site.numbers("m") == ["0001"]
    assert not is_forgotten(site.root, patient(3))


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_it_asks_and_does_nothing_without_a_yes(site, answer):
    done = forget("--patient", patient(3), answer=answer)
    assert done.exit_code == 1
    assert "cannot be undone" in done.output
    assert site.numbers("m") == ["0001"]
    assert not is_forgotten(site.root, patient(3))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--patient", patient(3)), "y\n"),
        (("--patient", patient(3), "--yes"), ""),
        (("--patient", "-", "--yes"), f"{patient(3)}\n"),
        (("--patient", "-"), f"{patient(3)}\ny\n"),
    ],
)
def test_the_patient_is_forgotten_and_named_nowhere(site, caplog, words, answer):
    with caplog.at_level(logging.DEBUG):
        done = forget(*words, answer=answer)
    assert done.exit_code == 0, done.output
    assert site.numbers("m") == ["0002"]
    assert is_forgotten(site.root, patient(3))
    for text in (done.output, caplog.text, site.text_of_all_files()):
        assert patient(3) not in text


def test_site_calibrations_and_evaluations_are_named_as_not_searched(site):
    assert "site calibrations" not in forget("--patient", patient(3), "--dry-run").output
    serving = versions.locate(site.root, "m")
    ids = []
    for text in ("1", "2"):
        staged = site_calibrations.new_staging(serving)
        for name in ("calibration.json", "calibration.safetensors"):
            (staged / name).write_text(text)
        ids.append(site_calibrations.publish(serving, staged, {}, use_it=True).id)
    (site.root / "runs" / "scoring").mkdir(parents=True)
    plan = " ".join(forget("--patient", patient(3), "--dry-run").output.split())
    assert "keep no ids and are not searched" in plan
    assert "calibrate --model m --healthy FOLDER" in plan
    assert all(f"--remove {name}" in plan for name in ids)
    assert "evaluations and batches (runs/scoring) are not searched" in plan
    done = forget("--patient", patient(3), "--yes")
    assert done.exit_code == 0, done.output
    assert " ".join(done.output.split()).count("left to you: ") == 2
    assert sorted(site_calibrations.of_app(site.root)["m"]) == sorted(ids)


def test_what_could_not_be_replaced_is_one_line_and_an_exit_code(site, monkeypatch):
    def fail(root, item, **_):
        raise TrainingFailed("expected a finite loss, got nan")

    monkeypatch.setattr(training, "retrain", fail)
    done = forget("--patient", patient(3), "--yes")
    assert done.exit_code == 2
    assert "TrainingFailed" in done.output
    assert "Traceback" not in done.output
    assert site.serving("m") == "0001"


def test_another_spelling_that_is_in_a_model_is_pointed_out(site):
    site.publish("n", TRAIN, HELD_OUT, whose={1: "sub-007"})
    for given, meant in (("007", "sub-007"), (patient(3).lower(), patient(3))):
        done = forget("--patient", given, "--dry-run")
        assert f"a similar id is in a model: {meant!r}" in done.output


def test_an_empty_id_is_refused(site):
    done = forget("--patient", "-", "--yes", answer="\n")
    assert done.exit_code == 2
    assert "InvalidSettings" in done.output
