"""OHIF's files as this server delivers them."""

from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib.endpoints import viewer
from lib.endpoints.guard import Guard
from lib.errors import UnknownImage
from monailabel_app.calibration.bands import COLOURS as BAND_COLOURS


@pytest.fixture(scope="module")
def client():
    server = FastAPI()
    server.include_router(viewer.router)
    server.router.middleware_stack = Guard(server.router.middleware_stack)
    return TestClient(server, base_url="http://reader:8123")


@pytest.mark.parametrize("path", ["assets/favicon.ico", "assets/images/logo-ohif-small.svg", "app-config.js"])
def test_files_in_folders_are_found_with_their_own_type(client, path):
    if not (viewer.VIEWER / path).is_file():
        pytest.skip(f"this OHIF has no {path}")
    reply = client.get(f"/ohif/{path}")
    assert reply.status_code == 200
    assert "html" not in reply.headers["content-type"]
    assert reply.content == (viewer.VIEWER / path).read_bytes()


@pytest.mark.parametrize("path", ["", "index.html", "monai-label", "viewer/1.2.840.113619"])
def test_the_viewers_own_addresses_get_its_start_page(client, path):
    reply = client.get(f"/ohif/{path}", params={"StudyInstanceUIDs": "1.2.3"})
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")


def test_start_page_offers_the_address_it_came_from(client):
    cookie = client.get("/ohif/monai-label").headers["set-cookie"]
    name, _, value = cookie.partition(";")[0].partition("=")
    assert name == "MONAILABEL_SERVER_URL"
    assert unquote(value) == "http://reader:8123/"


@pytest.mark.parametrize("path", ["nothing.js", "assets/nothing", "assets/nothing.png"])
def test_a_missing_file_is_a_404_and_no_page(client, path):
    reply = client.get(f"/ohif/{path}")
    assert reply.status_code == 404
    assert path in reply.json()["detail"]


@pytest.mark.parametrize("path", ["../../../app.py", "../ohif/../../infer.py", "/etc/passwd", "a/../../../x"])
def test_nothing_outside_the_viewers_folder_is_found(path):
    with pytest.raises(UnknownImage):
        viewer.find_file(path)


def test_the_panel_paints_anomaly_in_our_colour(client):
    file, script = viewer.panel_script()
    assert b"label: 'anomaly',\n  value: rgbToHex(255, 112, 32)" in script
    for name, colour in BAND_COLOURS.items():
        entry = f"label: '{name}',\n  value: rgbToHex({', '.join(map(str, colour))})"
        assert script.index(entry.encode()) < script.index(b"label: 'mass'")
    assert script.count(b"label: 'mass',") == file.read_bytes().count(b"label: 'mass',")
    assert script.count(b"backgroundColor: 'white', color: 'black'") == 3
    reply = client.get(f"/ohif/{file.name}")
    assert reply.content == script
    assert "javascript" in reply.headers["content-type"]
