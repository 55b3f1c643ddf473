"""As much of 3D Slicer as the script uses: it opens the files it is given and keeps what is put into the scene."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import numpy as np
import SimpleITK as sitk


class Node:
    def __init__(self, kind, name, image=None):
        self.kind, self.name, self.image, self.id = kind, name, image, f"{kind}{name}"
        self.display = Display()
        self.segments, self.points, self.locked = [], [], False

    def GetName(self):
        return self.name

    def GetID(self):
        return self.id

    def GetDisplayNode(self):
        return self.display

    def CreateDefaultDisplayNodes(self):
        pass

    def GetSegmentation(self):
        return self

    def GetNthSegment(self, index):
        return self.segments[index]

    def AddControlPoint(self, position, label):
        assert len(position) == 3
        self.points.append((tuple(position), label))

    def SetLocked(self, locked):
        self.locked = locked


class Display:
    def __init__(self):
        self.window = self.threshold = self.colours = self.visible = None
        self.automatic, self.thresholded = True, False

    def AutoWindowLevelOff(self):
        self.automatic = False

    def SetWindowLevelMinMax(self, low, high):
        assert not self.automatic
        self.window = (low, high)

    def SetThreshold(self, low, high):
        self.threshold = (low, high)

    def SetApplyThreshold(self, on):
        self.thresholded = on

    def SetAndObserveColorNodeID(self, node):
        self.colours = node

    def SetVisibility(self, on):
        self.visible = on


class Segment:
    def __init__(self, value):
        self.value, self.name, self.colour = value, None, None

    def SetName(self, name):
        self.name = name

    def SetColor(self, *colour):
        self.colour = colour


class Scene:
    def __init__(self, scan):
        self.nodes = [scan, Node("", "vtkMRMLColorTableNodeFileInferno.txt")]

    def AddNewNodeByClass(self, kind, name):
        self.nodes.append(Node(kind, name))
        return self.nodes[-1]

    def GetNodeByID(self, node_id):
        return next((node for node in self.nodes if node.id == node_id), None)

    def RemoveNode(self, node):
        self.nodes.remove(node)


def install(monkeypatch, image: str, server: str | None = None) -> SimpleNamespace:
    """Modules ``slicer`` and ``qt`` with the scan ``image`` in the red slice view. Returns what can be looked at."""
    scene = Scene(Node("vtkMRMLScalarVolumeNode", image))
    seen = SimpleNamespace(scene=scene, layers=None, jumps=[], status=[])

    def load(kind):
        def loaded(path, properties):
            assert properties["show"] is False
            scene.nodes.append(Node(kind, properties["name"], sitk.ReadImage(path)))
            return scene.nodes[-1]

        return loaded

    def import_labels(labels, node):
        values = np.unique(sitk.GetArrayViewFromImage(labels.image))
        node.segments = [Segment(int(value)) for value in values if value]

    def set_layers(**layers):
        seen.layers = layers

    composite = SimpleNamespace(GetBackgroundVolumeID=lambda: scene.nodes[0].id)
    red = SimpleNamespace(sliceLogic=lambda: SimpleNamespace(GetSliceCompositeNode=lambda: composite))
    segmentations = SimpleNamespace(ImportLabelmapToSegmentationNode=import_labels)
    markups = SimpleNamespace(JumpSlicesToLocation=lambda *where: seen.jumps.append(where))
    slicer, qt = ModuleType("slicer"), ModuleType("qt")
    slicer.mrmlScene = scene
    slicer.util = SimpleNamespace(
        loadVolume=load("vtkMRMLScalarVolumeNode"),
        loadLabelVolume=load("vtkMRMLLabelMapVolumeNode"),
        arrayFromVolume=lambda node: sitk.GetArrayViewFromImage(node.image),
        setSliceViewerLayers=set_layers,
        showStatusMessage=seen.status.append,
        getNodesByClass=lambda kind: [node for node in scene.nodes[2:]],
    )
    slicer.modules = SimpleNamespace(
        segmentations=SimpleNamespace(logic=lambda: segmentations), markups=SimpleNamespace(logic=lambda: markups)
    )
    slicer.app = SimpleNamespace(
        layoutManager=lambda: SimpleNamespace(sliceWidget=lambda name: red), processEvents=lambda: None
    )
    qt.QSettings = lambda: SimpleNamespace(value=lambda key: server if key == "MONAILabel/serverUrl" else None)
    monkeypatch.setitem(__import__("sys").modules, "slicer", slicer)
    monkeypatch.setitem(__import__("sys").modules, "qt", qt)
    return seen
