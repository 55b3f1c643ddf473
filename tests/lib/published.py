"""Small sealed model folders, and publishing them, for tests of a server with the stand-in for the analysis."""

from monailabel_app.weights.model_folder import seal
from monailabel_app.weights.versions import new_staging, publish
from tests.lib.conftest import MODEL


def write_model(folder, config=MODEL, weights=b"weights"):
    """A sealed folder; the stand-in reads no weights, it only hashes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "calibration.json").write_text('{"scores": {"l1": {}}}')
    seal(folder)
    return folder


def publish_model(app, name, config=MODEL, *, weights=b"weights", promote=True):
    """Publish a small model as a training does."""
    return publish(app, name, write_model(new_staging(app, name), config, weights), promote=promote)
