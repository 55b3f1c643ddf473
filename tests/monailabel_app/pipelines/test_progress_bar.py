"""What long commands show: bars on a terminal, few lines elsewhere, and nothing of it in what they print."""

import io
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from monailabel_app.pipelines import pace as pace_module
from monailabel_app.pipelines.pace import Pace
from monailabel_app.pipelines.progress_bar import Bars
from monailabel_app.training.settings import TrainProgress

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def clock(monkeypatch):
    now = {"s": 1000.0}
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: now["s"])
    return now


@pytest.fixture
def shown(clock):
    """Bars on what is no terminal, and what they wrote."""
    text = io.StringIO()
    console = Console(file=text, width=200)
    bars = Bars(Progress(console=console, disable=True))
    return bars, lambda: text.getvalue().splitlines()


def test_a_line_may_be_written_once_in_ten_seconds(clock):
    pace = Pace()
    assert not pace.due()
    clock["s"] += 9.9
    assert not pace.due()
    clock["s"] += 0.2
    assert [pace.due(), pace.due(), pace.due(last=True), pace.due()] == [True, False, True, False]
    clock["s"] += 10
    pace.restart()
    assert not pace.due()


def test_a_stage_has_its_first_and_last_line_and_few_between(shown, clock):
    bars, lines = shown
    for done in range(101):
        bars.stage("preparing", done, 100)
        clock["s"] += 0.5
    assert lines()[0] == "preparing: 0/100"
    assert lines()[-1] == "preparing: 100/100"
    assert len(lines()) <= 8


def test_an_analysis_tells_its_stages_and_a_share_that_grows(shown, clock):
    bars, lines = shown
    tell = bars.analysis("scan 1")
    tell("brain extraction", 0.0)
    tell("reconstruction", 0.0)
    for step in range(50):
        tell("reconstruction", step / 50)
        clock["s"] += 1
    tell("done", 1.0)
    assert lines()[:2] == ["scan 1: brain extraction", "scan 1: reconstruction"]
    shares = [int(line.split("(")[1].split(" ")[0]) for line in lines() if "(" in line]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert 4 <= len(shares) <= 7


def test_a_training_has_few_lines(shown, clock):
    bars, lines = shown
    now = TrainProgress(
        step=1, steps=100, share=0.01, epoch=0, total_epochs=1, loss=0.5, validation_loss=None,
        slices_per_second=3.0, seconds=1.0, seconds_left=9.0,
    )  # fmt: skip
    for step in range(1, 101):
        bars.training(replace(now, step=step, share=step / 100, checkpoint=step % 5 == 0))
        clock["s"] += 0.5
    assert lines()[0].startswith("training: step 1, loss 0.5")
    assert lines()[-1].endswith("(100 %)")
    assert len(lines()) <= 8


COMMAND = """
from monailabel_app.pipelines.progress_bar import bars
with bars() as bar:
    tell = bar.analysis()
    tell("reconstruction", 0.5)
    print('{"result": 1}')
"""


def test_a_bar_on_a_terminal_and_the_result_in_the_pipe():
    """Standard error is a terminal, standard output a pipe, as in ``predict scan.nii.gz > result.json``."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=ROOT, stdout=subprocess.PIPE, stderr=slave, env=environment, timeout=600
    )
    os.close(slave)
    told = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        told += part
    os.close(master)
    assert done.stdout == b'{"result": 1}\n'
    assert b"reconstruction" in told
    assert b"result" not in told
