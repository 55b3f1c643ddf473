"""Scripts of the OHIF viewer that MONAI Label ships, changed where they do not show results of this app as they are.

Each change replaces a few lines that are looked up in the script as it is shipped; a viewer that has other lines, or
has mended them itself, is served as it came.

* A measurement report (SR) with a group that belongs to the whole scan is not shown at all, because a number without a
  point of its own ends in an error, and so does a point in space that names no image: it gets the nearest one. And of a
  lesion's measurements only the site is written at its point.
* A parametric map is coloured in a window that is written into the script (for maps from 0 to 1), not in the one that
  is written in the file, so that nearly everything above a healthy brain's noise is red.
* The MONAI Label mode does not know parametric maps, so that the anomaly map cannot be laid over its three planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Larger scripts are libraries, which hold none of these lines.
_LARGEST = 1_000_000


@dataclass(frozen=True)
class Change:
    """Lines of a script and what stands there instead. All changes of a mend are made, or none."""

    lines: str
    instead: str


_REPORT = (
    Change(
        """    if (MeasuredValueSequence) {
      measurement.labels.push(_getLabelFromMeasuredValueSequence(ConceptNameCodeSequence, MeasuredValueSequence));
    }
  });
  const findingSites =""",
        """    if (MeasuredValueSequence) {
      const told = _getLabelFromMeasuredValueSequence(ConceptNameCodeSequence, MeasuredValueSequence);
      const derived = _getSequenceAsArray(item.ContentSequence).find(
        part => part.ConceptNameCodeSequence?.CodeValue === '121401'
      );
      const how = derived ? ` (${derived.ConceptCodeSequence.CodeMeaning})` : '';
      measurement.labels.push({ label: told.label + how, value: told.value });
    }
  });
  const findingSites =""",
    ),
    Change(
        """    const {
      ValueType
    } = ContentSequence;
    if (!ValueType === 'SCOORD') {""",
        """    if (!['SCOORD', 'SCOORD3D'].includes(ContentSequence?.ValueType)) {
      if (MeasuredValueSequence) {
        measurement.labels.push(_getLabelFromMeasuredValueSequence(ConceptNameCodeSequence, MeasuredValueSequence));
      }
      return;
    }
    const {
      ValueType
    } = ContentSequence;
    if (!ValueType === 'SCOORD') {""",
    ),
    Change(
        """    if (is3DSR) {
      addSRAnnotation(measurement, null, null);""",
        """    if (is3DSR && !measurement.coords.length) {
      continue;
    }
    if (is3DSR) {
      const [x, y, z] = measurement.coords[0].GraphicData;
      const [nearest] = imageIds
        .map(id => ({ id, plane: core_dist_esm.metaData.get('imagePlaneModule', id) }))
        .filter(({ plane }) => plane?.imagePositionPatient && plane.rowCosines && plane.columnCosines)
        .filter(({ plane }) => plane.frameOfReferenceUID === measurement.coords[0].ReferencedFrameOfReferenceSequence)
        .map(({ id, plane: { imagePositionPatient: at, rowCosines: r, columnCosines: c } }) => ({
          id,
          distance: Math.abs(
            (r[1] * c[2] - r[2] * c[1]) * (x - at[0]) +
            (r[2] * c[0] - r[0] * c[2]) * (y - at[1]) +
            (r[0] * c[1] - r[1] * c[0]) * (z - at[2])
          ),
        }))
        .sort((a, b) => a.distance - b.distance);
      if (!nearest) {
        continue;
      }
      addSRAnnotation(measurement, nearest.id, 1);""",
    ),
    Change(
        """          FrameOfReferenceUID: annotation.metadata.FrameOfReferenceUID,
          cameraFocalPoint: point
        }, {
          asNearbyProjection: true""",
        """          FrameOfReferenceUID: annotation.metadata.FrameOfReferenceUID,
          referencedImageId: annotation.metadata.referencedImageId,
          cameraFocalPoint: point
        }, {
          asNearbyProjection: true""",
    ),
    Change(
        """        textLines.push(`Finding Site: ${label.value}`);
      }
    }
    const {
      color
    } = options;""",
        """        textLines.push(`Finding Site: ${label.value}`);
      } else {
        textLines.push(`${label.label}: ${label.value}`);
      }
    }
    const {
      color
    } = options;""",
    ),
)
_MAP = (
    Change(
        """    uiNotificationService.show({
      title: 'Parametric Map',""",
        """    const shared = [pmapDisplaySet.instance.SharedFunctionalGroupsSequence].flat()[0];
    const lut = [shared?.FrameVOILUTSequence].flat()[0];
    const center = 100 * Number([lut?.WindowCenter].flat()[0]);
    const width = 100 * Number([lut?.WindowWidth].flat()[0]);
    if (width > 0) {
      const low = center - width / 2;
      pmapDisplaySetOptions.options.voi = { windowCenter: center, windowWidth: width };
      pmapDisplaySetOptions.options.colormap.opacity = [
        { value: low, opacity: 0 },
        { value: low + width / 4, opacity: 0.1 },
        { value: center, opacity: 0.7 },
        { value: low + width, opacity: 0.9 },
      ];
    }
    uiNotificationService.show({
      title: 'Parametric Map',""",
    ),
)
_MODE = (
    Change(
        """const extensionDependencies = {
  '@ohif/extension-default': '^3.0.0',
  '@ohif/extension-cornerstone': '^3.0.0',
  '@ohif/extension-cornerstone-dicom-seg': '^3.0.0',
  '@ohif/extension-monai-label': '^3.0.0'""",
        """const parametricMap = '@ohif/extension-cornerstone-dicom-pmap.sopClassHandlerModule.dicom-pmap';
const extensionDependencies = {
  '@ohif/extension-default': '^3.0.0',
  '@ohif/extension-cornerstone': '^3.0.0',
  '@ohif/extension-cornerstone-dicom-seg': '^3.0.0',
  '@ohif/extension-cornerstone-dicom-pmap': '^3.0.0',
  '@ohif/extension-monai-label': '^3.0.0'""",
    ),
    Change(
        """              displaySetsToDisplay: [segmentation.sopClassHandler]
            }]""",
        """              displaySetsToDisplay: [segmentation.sopClassHandler]
            }, {
              namespace: '@ohif/extension-cornerstone-dicom-pmap.viewportModule.dicom-pmap',
              displaySetsToDisplay: [parametricMap]
            }]""",
    ),
    Change(
        "    sopClassHandlers: [ohif.sopClassHandler, segmentation.sopClassHandler],",
        "    sopClassHandlers: [parametricMap, ohif.sopClassHandler, segmentation.sopClassHandler],",
    ),
)
MENDS: tuple[tuple[Change, ...], ...] = (_REPORT, _MAP, _MODE)


def mended(file: Path) -> bytes | None:
    """A script of the viewer with what it lacks; None for one that is served as it is."""
    if file.suffix != ".js" or not file.is_file() or file.stat().st_size > _LARGEST:
        return None
    return _mended(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _mended(file: Path, modified: int) -> bytes | None:
    script = file.read_text(encoding="utf-8", errors="surrogateescape")
    fitting = [mend for mend in MENDS if all(script.count(change.lines) == 1 for change in mend)]
    for change in (change for mend in fitting for change in mend):
        script = script.replace(change.lines, change.instead)
    return script.encode("utf-8", errors="surrogateescape") if fitting else None
