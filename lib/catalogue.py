"""Which models the server offers: those of the app folder that ``--conf models`` asks for."""

from __future__ import annotations

from collections.abc import Mapping

from monailabel_app.errors import UnknownModel
from monailabel_app.pipelines.shipped_models import DEFAULTS
from monailabel_app.weights.listing import ModelEntry, list_models
from monailabel_app.weights.version_layout import SHIPPED, TRAINED

__all__ = ["SHIPPED", "TRAINED", "ModelEntry", "choose", "list_models", "still_chosen"]


def choose(available: Mapping[str, ModelEntry], wanted: str | None) -> dict[str, ModelEntry]:
    """The models that ``--conf models`` asks for: ``all`` (also when absent) or names separated by commas.

    Of all, the default of each sequence comes first: viewers preselect the first one. Raises UnknownModel naming what
    there is.
    """
    names = _names(wanted)
    if not names:
        return {name: available[name] for name in _defaults_first(available)}
    unknown = [name for name in names if name not in available]
    if unknown:
        there_is = ", ".join(available) or "none yet (train one, or copy a model folder into model_weights/)"
        raise UnknownModel(
            f"--conf models asks for {', '.join(repr(name) for name in unknown)}, which is not here. "
            f"Available: {there_is}. Use these names, or 'all'."
        )
    return {name: available[name] for name in names}


def still_chosen(available: Mapping[str, ModelEntry], wanted: str | None) -> dict[str, ModelEntry]:
    """As ``choose`` while the server runs, but what is gone is left out.

    A list of names is exact; what is trained or installed here meanwhile is offered by a server of all models only.
    """
    names = _names(wanted) or _defaults_first(available)
    return {name: available[name] for name in names if name in available}


def not_offered(name: str, wanted: str | None) -> str:
    """What to tell whoever publishes ``name`` on a server that offers other models; empty where it offers this one."""
    names = _names(wanted)
    if not names or name in names:
        return ""
    return (
        f"the model {name} is kept, and this server does not offer it: --conf models names {', '.join(names)}; add it "
        "there, or use 'all', and start the server again"
    )


def offers_all(wanted: str | None) -> bool:
    """Whether ``--conf models`` leaves open which models there are."""
    return not _names(wanted)


def _defaults_first(available: Mapping[str, ModelEntry]) -> list[str]:
    first = [name for name in DEFAULTS.values() if name in available]
    return list(dict.fromkeys([*first, *available]))


def _names(wanted: str | None) -> list[str]:
    """In the order given; none for all."""
    names = [name.strip() for name in (wanted or "all").split(",") if name.strip()]
    return [] if "all" in names else names
