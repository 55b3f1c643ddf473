"""Samples every test may use: paths into tests/data, and the larger development data when it is at hand."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="session", autouse=True)
def audit_of_tests(tmp_path_factory):
    """What tests do, and the servers they start, stays out of this app's own audit log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_AUDIT", str(tmp_path_factory.mktemp("audit") / "audit.jsonl"))
        yield


@pytest.fixture(scope="session", autouse=True)
def tokens_of_tests(tmp_path_factory):
    """Whoever develops may have tokens of their own: tests, and the servers they start, know none of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_TOKENS", "")
        patch.setenv("ANOMALY_TOKEN", "")
        yield


@pytest.fixture(scope="session")
def studies_dir() -> Path:
    """The folder of sample studies the server is started with; read only, copy it before writing."""
    return DATA / "studies"


@pytest.fixture(scope="session")
def healthy_scan(studies_dir) -> Path:
    """A healthy whole-head T1 scan, 2 mm, voxel axes P, S, R."""
    return studies_dir / "ixi_healthy.nii.gz"


@pytest.fixture(scope="session")
def lesion_scan(studies_dir) -> Path:
    """A whole-head T1 scan with a hypointense lesion of 5.7 ml implanted in left frontal white matter."""
    return studies_dir / "ixi_lesion.nii.gz"


@pytest.fixture(scope="session")
def lesion_mask() -> Path:
    """The implanted lesion of ``lesion_scan``, uint8, on its grid."""
    return DATA / "ixi_lesion_mask.nii.gz"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data beside the repository, not part of it; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the development data in ../shared/data")
    return folder
