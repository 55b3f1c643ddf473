"""The command ``encoder``: a site's own ResNet-18 as the start of a feature autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Offer the command as ``encoder`` of ``app``."""
    app.command()(encoder)


def encoder(
    file: Annotated[Path, typer.Argument(help="State dict of torchvision's resnet18, .safetensors or .pth.")],
    name: Annotated[str, typer.Option(help="Name of the model to make.")] = "resnet18_encoder",
    modality: Annotated[str, typer.Option(help="Modality of the scans to come.")] = "t1",
) -> None:
    """Make a model to start from out of a ResNet-18 that you bring; nothing is downloaded.

    Then: main.py train feature_autoencoder --start-from NAME@VERSION --data FOLDER.
    """
    from monailabel_app.pipelines.encoder_model import encoder_model

    made = encoder_model(ROOT, file, name=name, modality=modality.lower())
    typer.echo(f"{made.name}@{made.version}: {made.folder}")
    typer.echo(f"train: python main.py train feature_autoencoder --start-from {made.name}@{made.version} --data FOLDER")
