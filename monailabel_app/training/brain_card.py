"""The card of the brain extraction model, written from its measured numbers so that the two cannot drift apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GOAL_MEAN, GOAL_LOWEST = 0.97, 0.94

_GROUPS = {
    "ixi_t1_val": "IXI T1, validation, whole heads",
    "painted_t1": "painted as T1",
    "painted_t2": "painted as T2",
    "painted_flair": "painted as FLAIR",
    "painted_pd": "painted as PD",
    "painted_random": "painted in random grey values",
}

_TEMPLATE = """# Brain extraction, 2 mm

A 3-D residual U-Net that marks the brain in a head scan of any contrast, orientation and voxel size, in one pass at
2 mm. Method after SynthStrip (Hoopes et al., NeuroImage 2022); code and weights are our own. Research use only; not a
medical device.
{state}
## Data and licence

Trained on 134 T1 scans of healthy adults (IXI, Imperial College London, brain-development.org/ixi-dataset,
CC BY-SA 3.0) with automatic DLMUSE region labels (research use): regions, closed and filled, are the mask. The weights
carry **CC BY-SA 3.0**. Half of the samples are painted from the labels with random grey values, half are the real scan
with its grey values remapped; pose, field of view, slice thickness, blur, noise, bias field, lesions and stripping are
random. {steps} steps of one head each, AdamW, averaged weights stored as float16, seed {seed}; the encoder started from
750 earlier steps under another last layer, so the training command alone does not repeat these weights exactly.

## Measured

Dice on the scan's own grid, network alone, by

    python -m monailabel_app.training.brain_training evaluate --data DATA --folder model_weights/brain_extraction --card

| scans | number | mean | sd | lowest |
|---|---|---|---|---|
{groups}

Painted heads are drawn from IXI validation label maps; a refused scan counts as 0. Worst validation scan:
{worst}, in `worst_case.png`.

Scans that arrive stripped (reference: BraTS 2015, its brain mask; MSLUB, filled non-zero voxels). The mask they were
stripped with is recognised and kept; the last column is the network without that.

| scan | method | Dice | Dice, network alone |
|---|---|---|---|
{stripped}

The first validation scan stored or sampled differently, against its own mask:

| change | Dice |
|---|---|
{geometry}

Without a reference, so only volumes ({described} scans; LGG has a placeholder voxel size, its ml are not real):
{found} gave a mask of {low} to {high} ml, {cut} of these with the warning that the field of view cuts the brain;
{refused} were refused. studyforrest T1 (DICOM, de-faced): {dicom}.

## Limits

At the base of the skull and the upper neck the mask tends to be too large. Contrasts unlike any MRI (the random grey
values above) can fail; a result of implausible size is refused, not returned. Trained on healthy adults: children, large resections
and hydrocephalus are untested. No real T2 or FLAIR whole head with a reference mask was at hand. A wrong voxel size in the header makes the brain implausibly small or large, and the
scan is refused. The mask follows DLMUSE: cerebrum, cerebellum and upper medulla, with the CSF between the gyri.
"""


def brain_card(result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The text of card.md from what ``evaluate_brain_extraction`` returned and the model's config.yaml."""
    main = result["ixi_t1_val"]
    state = ""
    if main["mean"] < GOAL_MEAN or main["min"] < GOAL_LOWEST:
        state = (
            f"\n**Below its goal.** On the IXI validation scans a mean Dice of {GOAL_MEAN} and a lowest of "
            f"{GOAL_LOWEST} were aimed at;\nthese weights reach {main['mean']:.3f} and {main['min']:.3f}. "
            "Check the mask in the viewer, or give your own.\n"
        )
    unlabelled = result["without_reference"]
    thick = [entry for name, entry in unlabelled.items() if name.startswith("TCGA")]
    volumes = sorted(entry["volume_ml"] for entry in thick if "error" not in entry)
    dicom = [_outcome(entry) for name, entry in unlabelled.items() if "DICOM" in name]
    return _TEMPLATE.format(
        state=state,
        steps=config["training"]["trained_steps"],
        seed=config["training"]["seed"],
        groups="\n".join(
            f"| {text} | {result[key]['scans']} | {result[key]['mean']:.3f} | {result[key]['sd']:.3f} "
            f"| {result[key]['min']:.3f} |"
            for key, text in _GROUPS.items()
            if key in result
        ),
        worst=f"{main['worst']}, Dice {main['min']:.3f}",
        stripped="\n".join(
            f"| {name.replace('_', ' ')} | {entry['method']} | {entry['dice']:.3f} "
            f"| {entry['dice_network_alone']:.3f} |"
            for name, entry in result["stripped"].items()
        ),
        geometry="\n".join(
            f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in result["changed_geometry"].items()
        ),
        described=len(unlabelled),
        found=len(volumes),
        low=volumes[0] if volumes else 0,
        high=volumes[-1] if volumes else 0,
        cut=sum(bool(entry.get("warnings")) for entry in thick),
        refused=len(thick) - len(volumes),
        dicom="; ".join(dicom) or "not measured",
    )


def _outcome(entry: Mapping[str, Any]) -> str:
    if "error" in entry:
        return f"refused ({entry['error']})"
    return f"{entry['volume_ml']} ml, " + ("; ".join(entry["warnings"]) or "no warning")
