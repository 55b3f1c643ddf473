"""Shows in 3D Slicer what MONAI Label's extension leaves out: the map, the pseudo-healthy brain, bands and lesions.

In Slicer's Python console (View, Python Console), with the scan open that MONAI Label's module has loaded or uploaded:

    exec(open(r"/path/to/anomaly_overlay.py").read())
    show()                                    # the scan in the red slice view, the server in MONAI Label's module
    show(image="scan_1", model="cold_diffusion_t1", operating_point="specific")
    show(server="http://127.0.0.1:8000", run=True)   # analyses the scan first if that was not done yet
    show(token="anomaly_...")                 # where the server asks for one; or the environment's ANOMALY_TOKEN

Called again it replaces what it has shown of the scan before. Only Slicer's own Python is needed. The result must be at
hand on the server: press Run in MONAI Label's module first, or pass ``run=True``. For research use only.
"""

import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy
import qt
import slicer

SERVER = "http://127.0.0.1:8000"
MAP_OPACITY = 0.5
_PREFIX = "Anomaly "
_KINDS = ("anomaly_map", "reconstruction", "uncertainty_map", "bands")
_OVER = ("done", "failed", "cancelled")


class ServerSaidNo(RuntimeError):
    """What the server answered instead of a result. status: of HTTP."""

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


def show(image=None, model=None, server=None, run=False, token=None, **params):
    """Fetch a result and show it; returns the nodes by name and prints the score and the lesions.

    image: the scan's id on the server, by default the name of the volume in the red slice view. params: the settings
    that the options of MONAI Label's module have, such as operating_point, threshold, smoothing, min_lesion_volume.
    """
    volume = _background()
    image = image or volume.GetName()
    call = _Server(server or _module_server() or SERVER, token)
    query = {key: value for key, value in {"model": model, **params}.items() if value is not None}
    address = "/anomaly/results/" + urllib.parse.quote(image, safe="")
    if run:
        call.analyse(image, model, params, _progress)
    result = call.json(address, query)
    query["model"] = result["model"]
    name = _PREFIX + image
    _remove(name)
    folder = tempfile.mkdtemp(prefix="anomaly_")
    try:
        files = {
            kind: call.file(f"{address}/{kind}.nrrd", query, os.path.join(folder, f"{kind}.nrrd"))
            for kind in _KINDS
            if kind in result["files"]
        }
        nodes = {kind: _load(kind, path, name, result) for kind, path in files.items()}
    finally:
        # Pictures of a patient: nothing stays behind on this disk.
        shutil.rmtree(folder, ignore_errors=True)
    nodes["lesions"] = _lesions(name, result["finding"]["lesions"])
    _layers(volume, nodes)
    _tell(result)
    return nodes


class _Server:
    """The addresses that are needed here, over Python's own HTTP."""

    def __init__(self, address, token=None):
        self.address = address.rstrip("/")
        token = token or os.environ.get("ANOMALY_TOKEN")
        self.headers = {"Authorization": "Bearer " + token} if token else {}

    def json(self, path, query=None, body=None):
        with self._open(path, query, body) as answer:
            return json.loads(answer.read().decode())

    def file(self, path, query, target):
        with self._open(path, query) as answer, open(target, "wb") as handle:
            shutil.copyfileobj(answer, handle)
        return target

    def analyse(self, image, model, params, progress):
        body = {"image": image, "params": params}
        if model:
            body["model"] = model
        job = self.json("/anomaly/jobs", body=body)
        while job["state"] not in _OVER:
            progress(job)
            time.sleep(0.5)
            job = self.json("/anomaly/jobs/" + job["id"])
        if job["state"] != "done":
            raise ServerSaidNo(f"the analysis {job['state']}: {job.get('error') or 'no reason given'}")

    def _open(self, path, query=None, body=None):
        address = self.address + path + ("?" + urllib.parse.urlencode(query) if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = dict(self.headers, **({"Content-Type": "application/json"} if data else {}))
        try:
            return urllib.request.urlopen(urllib.request.Request(address, data, headers))
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                text = json.loads(text)["detail"]
            except (ValueError, KeyError, TypeError):
                text = text[:300]
            hint = ' (pass a token of this server: show(token="..."))' if error.code == 401 else ""
            raise ServerSaidNo(f"HTTP {error.code}: {text}{hint}", error.code) from None
        except urllib.error.URLError as error:
            raise ServerSaidNo(f"no answer from {self.address}: {error.reason}") from None


def _load(kind, path, name, result):
    """A file as a node that looks as it is meant to be read."""
    title = f"{name} {kind.replace('_', ' ')}"
    if kind == "bands":
        return _segments(path, title, result["bands"])
    node = slicer.util.loadVolume(path, {"name": title, "show": False})
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()
    if kind == "reconstruction":
        display.SetWindowLevelMinMax(*result["window"])
        return node
    display.SetAndObserveColorNodeID(_colours())
    low, high = _scale(kind, result)
    display.SetWindowLevelMinMax(low, high)
    display.SetThreshold(max(low, 1e-6), 1e9)
    display.SetApplyThreshold(True)
    return node


def _scale(kind, result):
    """From where to where the colours go: the same for every scan, or a healthy one would look as hot as an ill one."""
    threshold = result["finding"]["threshold"]
    rarest = max([band["value"] for band in result["bands"]] or [threshold])
    return (0.0, rarest) if kind == "uncertainty_map" else (threshold, 2 * max(rarest, threshold))


def _colours():
    inferno = "vtkMRMLColorTableNodeFileInferno.txt"
    return inferno if slicer.mrmlScene.GetNodeByID(inferno) is not None else "vtkMRMLColorTableNodeRainbow"


def _segments(path, title, bands):
    """The bands as a segmentation with their names and colours, which MONAI Label's module would draw at random."""
    labels = slicer.util.loadLabelVolume(path, {"name": title + " labels", "show": False})
    # Only the values that occur become segments, in their order.
    values = [int(value) for value in numpy.unique(slicer.util.arrayFromVolume(labels)) if value > 0]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", title)
    node.CreateDefaultDisplayNodes()
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
    slicer.mrmlScene.RemoveNode(labels)
    for index, value in enumerate(values):
        segment, band = node.GetSegmentation().GetNthSegment(index), bands[value - 1]
        segment.SetName(f"{band['name']} (1 healthy voxel in {round(1 / band['share'])})")
        segment.SetColor(*(channel / 255 for channel in band["colour"]))
    node.GetDisplayNode().SetVisibility(False)
    return node


def _lesions(name, lesions):
    """A point at each lesion; a double click on it in the Markups module's list moves the slices there."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name + " lesions")
    for lesion in lesions:
        where = f", {lesion['region']}" if lesion.get("region") else ""
        label = f"{lesion['index']}: {lesion['volume_ml']:.2f} ml, peak {lesion['peak_score']:.1f} SD{where}"
        node.AddControlPoint(lesion["centroid_ras_mm"], label)
    node.SetLocked(True)
    if lesions:
        largest = max(lesions, key=lambda lesion: lesion["volume_ml"])
        slicer.modules.markups.logic().JumpSlicesToLocation(*largest["centroid_ras_mm"], False)
    return node


def _layers(volume, nodes):
    slicer.util.setSliceViewerLayers(
        background=volume, foreground=nodes.get("anomaly_map"), foregroundOpacity=MAP_OPACITY
    )


def _background():
    composite = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceCompositeNode()
    node = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
    if node is None:
        raise RuntimeError("open a scan first: there is none in the red slice view")
    return node


def _module_server():
    """The address that was typed into MONAI Label's module, if it was used."""
    return qt.QSettings().value("MONAILabel/serverUrl") or None


def _remove(name):
    """What an earlier call has shown of the same scan, and not of one whose id begins alike."""
    shown = {f"{name} {kind}" for kind in (*(kind.replace("_", " ") for kind in _KINDS), "lesions")}
    for node in slicer.util.getNodesByClass("vtkMRMLDisplayableNode"):
        if node.GetName() in shown:
            slicer.mrmlScene.RemoveNode(node)


def _progress(job):
    share = "" if job.get("progress") is None else f" {100 * job['progress']:.0f} %"
    place = f", place {job['position']} in the line" if job.get("position") else ""
    slicer.util.showStatusMessage(f"Anomaly analysis: {job.get('stage') or job['state']}{share}{place}")
    slicer.app.processEvents()


def _tell(result):
    finding = result["finding"]
    rank = f", p = {finding['p_value']:.3g} among healthy scans" if finding["p_value"] is not None else ""
    print(f"{result['model']}: anomaly score {finding['anomaly_score']:.2f}{rank}")
    for warning in finding["warnings"]:
        print("Warning: " + warning)
    if not finding["lesions"]:
        print("No anomaly was found at this operating point.")
    for lesion in finding["lesions"]:
        where = lesion.get("region") or "no named region"
        print(f"  {lesion['index']}: {lesion['volume_ml']:.2f} ml, peak {lesion['peak_score']:.1f} SD, {where}")
    print("For research use only; not a medical device.")
