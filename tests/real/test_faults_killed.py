"""kill -9 of a real server at random moments: what was acknowledged is there afterwards, and nothing half."""

import itertools
import json
import random
import threading
import time
from contextlib import suppress

import nibabel as nib
import pytest
import requests

from monailabel_app.audit.verify import verify
from tests.real.faults import MODEL, Killable, Stop, count, few_models, label, leftovers, scan, wait_for

pytestmark = pytest.mark.slow

SCANS = [f"scan{number}" for number in range(6)]
KILLS = 3


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app").mkdir()
    return few_models(tmp_path / "app", MODEL)


@pytest.fixture
def studies(tmp_path):
    (tmp_path / "studies").mkdir()
    return tmp_path / "studies"


@pytest.fixture
def temporary(tmp_path):
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


class Client(threading.Thread):
    """Sends on and on what ``send(number)`` sends; ``acknowledged`` is the number of the last answer with 200."""

    def __init__(self, send):
        super().__init__(daemon=True)
        self.send, self.acknowledged, self.sent, self.refused = send, 0, 0, []
        self._numbers = itertools.count(1)

    def run(self):
        for number in self._numbers:
            self.sent = number
            try:
                answer = self.send(number)
            except (requests.RequestException, OSError):
                return
            if answer.status_code != 200:
                self.refused.append(answer.text)
                return
            self.acknowledged = number


def test_every_label_scan_and_mark_that_was_acknowledged_outlives_the_kill(app, studies, temporary, tmp_path):
    """Six clients submit labels, two replace a scan, two write information, two keep reviews; three kills amid it."""
    for name in SCANS:
        scan(studies / f"{name}.nii.gz")
    dice, acknowledged = random.Random(7), 0
    with Killable(studies, app, env={"TMPDIR": str(temporary)}) as server:
        for turn in range(KILLS):
            url = server.url

            def submit(number, name):
                return server.submit(name, label(tmp_path / f"label_{name}.nii.gz", number))

            def replace(number, name, turn):
                return server.upload(name, scan(tmp_path / f"{name}.nii.gz", 1000 * turn + number))

            def mark(number, key, url=url):
                info = {"info": json.dumps({key: number})}
                return requests.put(f"{url}/datastore/image/info", params={"image": SCANS[0]}, data=info, timeout=60)

            def review(number, name, url=url):
                body = {"model": MODEL, "comment": str(number)}
                return requests.put(f"{url}/anomaly/reviews/{name}", json=body, timeout=60)

            labels = {name: Client(lambda n, name=name: submit(n, name)) for name in SCANS}
            uploads = {f"new{turn}_{i}": Client(lambda n, i=i, t=turn: replace(n, f"new{t}_{i}", t)) for i in range(2)}
            marks = {f"key{turn}_{i}": Client(lambda n, i=i, t=turn: mark(n, f"key{t}_{i}")) for i in range(2)}
            drafts = {name: Client(lambda n, name=name: review(n, name)) for name in SCANS[1:3]}
            clients = [*labels.values(), *uploads.values(), *marks.values(), *drafts.values()]
            for client in clients:
                client.start()
            wait_for(lambda seen=clients: sum(client.acknowledged for client in seen) > 10, "the first answers")
            time.sleep(dice.uniform(0.0, 2.0))
            server.kill()
            for client in clients:
                client.join(300)
                assert not client.is_alive()
                assert not client.refused, client.refused

            server.up()
            table = json.loads((studies / "datastore_v2.json").read_text())["objects"]
            assert set(server.images()) == set(table) >= {*SCANS}
            for name, client in labels.items():
                kept = studies / "labels" / "final" / f"{name}.nii.gz"
                if client.acknowledged:
                    assert client.acknowledged <= count(kept) <= client.sent
                    assert server.label(name).content == kept.read_bytes()
            for name, client in uploads.items():
                if client.acknowledged:
                    assert name in table
                    kept = [studies / f"{found}.nii.gz" for found in table if found.startswith(name)]
                    values = {int(read_first(path)) - 1000 * turn for path in kept}
                    # Each upload replaced the one before it, which went to an id of its own.
                    assert values >= set(range(1, client.acknowledged + 1))
            for key, client in marks.items():
                assert table[SCANS[0]]["image"]["info"].get(key, 0) >= client.acknowledged
            for name, client in drafts.items():
                if client.acknowledged:
                    kept = requests.get(f"{server.url}/anomaly/reviews/{name}", timeout=60).json()
                    assert int(kept["comment"]) >= client.acknowledged
            acknowledged += sum(client.acknowledged for client in labels.values())
            assert not leftovers(studies)
            listed = requests.get(f"{server.url}/anomaly/studies", timeout=60)
            assert listed.status_code == 200, listed.text
    # What the audit log says was on the disk before the answer went out.
    report = verify(app / "logs" / "audit.jsonl")
    assert report.whole, report.faults
    noted = [json.loads(line)["event"] for line in (app / "logs" / "audit.jsonl").read_text().splitlines()]
    assert noted.count("label_saved") >= acknowledged
    assert noted.count("server_started") == KILLS + 1


def is_log_setting(path):
    """MONAI Label writes how to log into a file before it loads an app, and a process killed then leaves it."""
    return path.suffix == ".json" and "handlers" in json.loads(path.read_text())


def read_first(path):
    return nib.load(path).dataobj[0, 0, 0]


def test_a_kill_in_the_middle_of_an_analysis_leaves_nothing_and_the_same_request_works_again(
    app, studies, temporary, lesion_scan
):
    (studies / "head.nii.gz").write_bytes(lesion_scan.read_bytes())
    stop = Stop(app)
    with Killable(studies, app, env={"TMPDIR": str(temporary), **stop.env}) as server:
        broken = []

        def ask():
            with suppress(requests.ConnectionError):
                broken.append(server.infer("head"))
                return
            broken.append(None)

        for stage in ("brain extraction", "alignment"):
            broken.clear()
            stop.at(stage)
            client = threading.Thread(target=ask)
            client.start()
            stop.wait(server)
            server.kill()
            stop.at("")
            client.join(60)
            assert broken == [None], "the client has an answer to what was never finished"
            assert list(temporary.glob("anomaly_server_*")), "the killed server had temporary files of its own"
            server.up()
            # Of the server that runs now, and of nobody else.
            assert len(list(temporary.glob("anomaly_server_*"))) == 1
            assert not [path for path in temporary.iterdir() if "upload" in path.name or path.suffix == ".gz"]
        answer = server.infer("head")
        assert answer.status_code == 200
        assert answer.json()["lesion_count"] >= 1
        assert not leftovers(studies, app / "cache")
        server.server.process.terminate()
        server.server.process.wait(300)
        # The next start removes the folder of one that was asked to end; nothing of a patient is in it.
        kept = {path.name for path in temporary.rglob("*") if path.is_file() and not is_log_setting(path)}
        assert kept <= {"alive"}
