import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.dicom_colours import PALETTE, cielab
from monailabel_app.io.dicom_seg import Algorithm, read_labelmap, read_series_headers, write_dicom_seg

ALGORITHM = Algorithm("monailabel-anomaly ddpm_t1", "0.1.0+0123abcd")
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (0.96, 0.28, 0, -0.28, 0.96, 0),
}
ROWS, COLUMNS, SLICES = 18, 20, 7
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_series(folder, orientation, downwards=False):
    """A series of ``SLICES`` slices; returns its affine (column, row, slice) -> LPS mm."""
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    along_row, along_column = np.asarray(orientation, dtype=float).reshape(2, 3)
    normal = np.cross(along_row, along_column) * (-1 if downwards else 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_row * 1.5, along_column * 2.0, normal * 3.0
    affine[:3, 3] = (-11.0, 7.0, 30.0)
    for number in range(SLICES):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = MRImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
        header.is_little_endian, header.is_implicit_VR = True, False
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.Modality, header.PatientID = "MR", "P1"
        header.InstanceNumber = number + 1
        header.Rows, header.Columns = ROWS, COLUMNS
        header.PixelSpacing, header.SliceThickness = [2.0, 1.5], 3.0
        header.ImageOrientationPatient = [float(value) for value in orientation]
        header.ImagePositionPatient = [float(v) for v in (affine @ [0, 0, number, 1])[:3]]
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation, header.SamplesPerPixel = 15, 0, 1
        header.PhotometricInterpretation = "MONOCHROME2"
        header.PixelData = np.zeros((ROWS, COLUMNS), np.uint16).tobytes()
        # File names in another order than the slices.
        header.save_as(folder / f"{(number * 5) % SLICES}.dcm", write_like_original=False)
    return affine


def blob():
    """A label without symmetry, on (column, row, slice)."""
    label = np.zeros((COLUMNS, ROWS, SLICES), dtype=np.uint8)
    label[2:5, 1:3, 4:6] = 1
    label[2, 7, 4] = 1
    return label


def marked_mm(path):
    """LPS positions of all marked pixels of a segmentation, as its own header gives them."""
    seg = hd.seg.segread(str(path))
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    along_row, along_column = np.asarray(orientation, dtype=float).reshape(2, 3)
    positions = []
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        start = np.asarray(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        for row, column in np.argwhere(frame):
            positions.append(
                start + along_row * column * float(spacing[1]) + along_column * row * float(spacing[0])
            )
    return np.asarray(sorted(map(tuple, np.round(positions, 3))))


def expected_mm(label, affine_lps):
    index = np.argwhere(label)
    points = (affine_lps @ np.c_[index, np.ones(len(index))].T)[:3].T
    return np.asarray(sorted(map(tuple, np.round(points, 3))))


@pytest.mark.parametrize("downwards", [False, True])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_marked_voxel_is_where_it_was_marked(tmp_path, name, downwards):
    affine = write_series(tmp_path / "series", ORIENTATIONS[name], downwards)
    path = tmp_path / "seg.dcm"
    write_dicom_seg(path, blob(), LPS_TO_RAS @ affine, tmp_path / "series", ALGORITHM)
    np.testing.assert_allclose(marked_mm(path), expected_mm(blob(), affine), atol=2e-3)


@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 2, 0), (0, 1, 2)])
def test_the_labels_own_voxel_order_does_not_matter(tmp_path, axes):
    affine = write_series(tmp_path / "series", ORIENTATIONS["sagittal"])
    grid = nib.Nifti1Image(blob(), LPS_TO_RAS @ affine)
    flips = [[axis, -1 if position == 1 else 1] for position, axis in enumerate(axes)]
    turned = grid.as_reoriented(np.asarray(flips))
    write_dicom_seg(
        tmp_path / "seg.dcm", np.asarray(turned.dataobj), turned.affine, tmp_path / "series", ALGORITHM
    )
    np.testing.assert_allclose(marked_mm(tmp_path / "seg.dcm"), expected_mm(blob(), affine), atol=2e-3)


def test_it_is_coded_as_an_abnormality_found_by_this_model(tmp_path):
    affine = write_series(tmp_path / "series", ORIENTATIONS["axial"])
    uid = write_dicom_seg(
        tmp_path / "seg.dcm", blob(), LPS_TO_RAS @ affine, tmp_path / "series", ALGORITHM, {1: "anomaly"}
    )
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    source = pydicom.dcmread(tmp_path / "series" / "0.dcm")
    segment = seg.SegmentSequence[0]
    category = segment.SegmentedPropertyCategoryCodeSequence[0]
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (category.CodeValue, category.CodingSchemeDesignator) == ("49755003", "SCT")
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("52988006", "SCT")
    assert segment.SegmentLabel == "anomaly"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    identified = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (identified.AlgorithmName, identified.AlgorithmVersion) == (ALGORITHM.name, ALGORITHM.version)
    assert "research use only" in seg.SeriesDescription
    assert seg.SeriesInstanceUID == uid != source.SeriesInstanceUID
    assert seg.StudyInstanceUID == source.StudyInstanceUID
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert seg.PatientID == "P1"


def test_what_a_person_accepted_is_not_called_automatic(tmp_path):
    affine = write_series(tmp_path / "series", ORIENTATIONS["axial"])
    reviewed = Algorithm("monailabel-anomaly", "1", reviewed=True)
    write_dicom_seg(tmp_path / "seg.dcm", blob(), LPS_TO_RAS @ affine, tmp_path / "series", reviewed)
    assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"


def test_nothing_marked_is_a_valid_segmentation_of_empty_frames(tmp_path):
    affine = write_series(tmp_path / "series", ORIENTATIONS["coronal"])
    write_dicom_seg(
        tmp_path / "seg.dcm", np.zeros_like(blob()), LPS_TO_RAS @ affine, tmp_path / "series", ALGORITHM
    )
    seg = hd.seg.segread(str(tmp_path / "seg.dcm"))
    assert seg.NumberOfFrames == SLICES
    assert len(seg.SegmentSequence) == 1
    assert not seg.pixel_array.any()


def test_each_label_value_becomes_a_segment(tmp_path):
    affine = write_series(tmp_path / "series", ORIENTATIONS["axial"])
    label = blob()
    label[2, 7, 4] = 5
    names = {1: "anomaly", 5: "other"}
    write_dicom_seg(tmp_path / "seg.dcm", label, LPS_TO_RAS @ affine, tmp_path / "series", ALGORITHM, names)
    seg = hd.seg.segread(str(tmp_path / "seg.dcm"))
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["anomaly", "other"]
    shown = [list(segment.RecommendedDisplayCIELabValue) for segment in seg.SegmentSequence]
    assert shown == [cielab(PALETTE[0]), cielab(PALETTE[1])]


def test_a_label_elsewhere_in_space_is_refused(tmp_path):
    affine = write_series(tmp_path / "series", ORIENTATIONS["axial"])
    affine[:3, 3] += 500
    with pytest.raises(InvalidVolume, match="elsewhere"):
        write_dicom_seg(tmp_path / "seg.dcm", blob(), LPS_TO_RAS @ affine, tmp_path / "series", ALGORITHM)


def test_a_localiser_and_stray_files_are_left_out(tmp_path):
    write_series(tmp_path / "series", ORIENTATIONS["axial"])
    (tmp_path / "series" / "notes.txt").write_text("x")
    localiser = pydicom.dcmread(tmp_path / "series" / "0.dcm")
    localiser.ImageOrientationPatient = list(ORIENTATIONS["sagittal"])
    localiser.SOPInstanceUID = generate_uid()
    localiser.save_as(tmp_path / "series" / "localiser.dcm")
    headers = read_series_headers(tmp_path / "series")
    assert len(headers) == SLICES
    heights = [float(header.ImagePositionPatient[2]) for header in headers]
    assert heights == sorted(heights)


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_images_is_refused(tmp_path, make):
    if make:
        (tmp_path / "series").mkdir()
    with pytest.raises(UnreadableVolume, match="DICOM"):
        read_series_headers(tmp_path / "series")


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_labels_are_read_whatever_their_type(tmp_path, extension):
    image = sitk.GetImageFromArray(blob().transpose(2, 1, 0))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((5.0, 6.0, 7.0))
    sitk.WriteImage(image, str(tmp_path / f"label{extension}"))
    label, affine = read_labelmap(tmp_path / f"label{extension}")
    np.testing.assert_array_equal(label, blob())
    np.testing.assert_allclose(affine @ [1, 1, 1, 1], [-6, -8, 10, 1], atol=1e-5)


def test_an_empty_label_is_read(tmp_path):
    sitk.WriteImage(sitk.Image((4, 5, 6), sitk.sitkUInt8), str(tmp_path / "label.nrrd"))
    label, _ = read_labelmap(tmp_path / "label.nrrd")
    assert label.shape == (4, 5, 6)
    assert not label.any()


def test_segments_stored_as_layers_are_numbered(tmp_path):
    layers = [sitk.Image((4, 4, 4), sitk.sitkUInt8) for _ in range(2)]
    layers[0][1, 1, 1] = 1
    layers[1][2, 2, 2] = 1
    sitk.WriteImage(sitk.Compose(layers), str(tmp_path / "label.seg.nrrd"))
    label, _ = read_labelmap(tmp_path / "label.seg.nrrd")
    assert (label[1, 1, 1], label[2, 2, 2], label.sum()) == (1, 2, 3)


def test_what_is_no_label_is_refused(tmp_path):
    path = tmp_path / "label.nrrd"
    path.write_text("no label")
    with pytest.raises(UnreadableVolume, match="label"):
        read_labelmap(path)
    sitk.WriteImage(sitk.Image((4, 4), sitk.sitkUInt8), str(path))
    with pytest.raises(InvalidVolume, match="3-D"):
        read_labelmap(path)
