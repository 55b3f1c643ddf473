"""A differentially private training at a site: what is shown before it, and what is recorded after it.

Two records come out. One may leave the site with the model: the budget spent. The other may not, because it is computed
from the private scans themselves: the check by membership inference, which stays in the run folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monailabel_app.registry import load_method
from monailabel_app.training.accounting import feasibility_text
from monailabel_app.training.checkpoint import TrainingState
from monailabel_app.training.membership import membership_inference
from monailabel_app.training.privacy import feasibility_of

from .config_io import config_from_plain
from .training_run import Plan, device_of

CHECK = "membership.json"


def feasibility_lines(plan: Plan) -> list[str]:
    """What a budget costs with the plan's number of patients, to be read before the training starts."""
    options = plan.options
    config = config_from_plain(load_method(options.method).Config, dict(plan.config))
    patients = len({scan.patient for scan in plan.train})
    rows = feasibility_of(options.method, config, options.privacy, patients)
    head = f"what a privacy budget costs with {patients} patients, delta {options.privacy.delta:g}:"
    return [head, *feasibility_text(rows).splitlines()]


def membership_line(run_folder: Path) -> str:
    """The check by membership inference in a sentence, for whoever ran the training."""
    figures = json.loads((run_folder / CHECK).read_text())
    low, high = figures["auroc_interval"]
    return (
        f"membership inference by loss: AUROC {figures['auroc']:.3f} [{low:.3f}, {high:.3f}] (0.5 is guessing), "
        f"advantage {figures['advantage']:.3f}, p {figures['p_value']:.2f}, {figures['members']} members and "
        f"{figures['others']} others; computed from the private scans: keep it to yourselves"
    )


def check_membership(root: Path, run_folder: Path, plan: Plan, state: TrainingState) -> dict[str, Any]:
    """Can one tell from the loss who was trained on? Written to the run folder only."""
    method = load_method(plan.options.method)
    config = config_from_plain(method.Config, dict(plan.config))
    network = method.build(config)
    network.load_state_dict(state.ema)
    figures = membership_inference(
        plan.options.method,
        config,
        network,
        plan.cache(root, plan.train),
        plan.cache(root, plan.held_out),
        device=device_of(plan.options),
    ).to_json()
    (run_folder / CHECK).write_text(json.dumps(figures, indent=1))
    return figures
