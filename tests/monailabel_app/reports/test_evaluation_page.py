"""The report page: everything of the record in it, nothing of it obeyed, nothing fetched."""

import base64
import copy
import hashlib
import re
from html.parser import HTMLParser

import pytest

from monailabel_app.errors import EvaluationFailed
from monailabel_app.reports.evaluation_page import evaluation_html
from monailabel_app.reports.evaluation_rows import MOST_DRAWN, drawn_rows, focus
from tests.monailabel_app.reports.page_record import evaluation_record, picture

HOSTILE = "\"><img src=x onerror=alert(1)><script>alert('x')</script>&amp;'"
EMPTY_TAGS = {"br", "col", "hr", "img", "input", "meta", "wbr"}


class Page(HTMLParser):
    """The elements of a page: (tag, attributes, text in it), and whether every one is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open, [self.elements[i][0] for i in self._open]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in EMPTY_TAGS:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        for index in self._open:
            self.elements[index][2].append(data)

    def of(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of every element of a tag with these attributes."""
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]


def made_hostile(value, at: str = ""):
    """The record with every text replaced, but for the few words that the page looks up."""
    kept = {"method", "kind", "picture", "model", "default_model", "beats_intensity", "beats_atlas", "sign"}
    if isinstance(value, dict):
        return {key: made_hostile(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [made_hostile(item, at) for item in value]
    return HOSTILE if isinstance(value, str) and at not in kept else value


def blind_spots(model: str = "ddpm_0_t1") -> dict:
    group = {"n": 8, "found": 3, "recall": 0.375, "interval": [0.2, 0.55]}
    return {
        "version": 1,
        "model": {"id": model, "hash": "0" * 64},
        "data": {"name": "site", "scans": 6},
        "manifest": {"rule": "a rule", "anomalies": 96},
        "default_point": "balanced",
        "sentences": ["Does not see lesions of 0.3 ml and smaller."],
        "points": {
            "balanced": {
                "matrix": {
                    "volumes_ml": [0.3, 3.0],
                    "contrasts": [-0.25, 0.25],
                    "n": [[4, 4], [4, 0]],
                    "found": [[0, 1], [4, 0]],
                    "recall": [[0.0, 0.25], [1.0, None]],
                    "interval": [[[0.0, 0.5], [0.05, 0.7]], [[0.5, 1.0], None]],
                },
                "smallest_contrast": [
                    {"volume_ml": 0.3, "sign": "darker", "contrast": None, "interval": [None, None],
                     "recall_at_strongest": 0.0, "n": 4},
                    {"volume_ml": 3.0, "sign": "darker", "contrast": 0.18, "interval": [0.1, None],
                     "recall_at_strongest": 1.0, "n": 4},
                ],
                "by_sign": [{"sign": "darker", **group}],
                "by_texture": [{"texture": "soft edge", **group}],
                "by_region": [{"region": "cortex", **group}],
                "by_region_and_volume": [{"region": "cortex", "volume_ml": 0.3, **group}],
                "by_kind": [{"kind": "swelling", **group}],
                "chance": {"n": 24, "found": 1},
                "not_judged": 2,
            }
        },
        "whole_pipeline": {"scans": 2, "lesions": 9, "same_verdict": 0.89, "recall_model_grid": 0.5,
                           "recall_raw_head": 0.4},
        "corruptions": [
            {"name": "noise 10 %", "scans": 6, "refused": 1, "caught": {"n": 5, "found": 0, "recall": 0.0},
             "reasons": [], "scan_score": {"clean": 2.0, "corrupted": 5.0, "ratio": 2.5, "interval": [2.1, 3.3]},
             "p_value": 0.05, "points": {"balanced": {"false_ml": {"clean": 3.0, "corrupted": 61.5}, "ratio": 20.2,
                                                      "interval": [8.0, 40.0]}}},
        ],
    }  # fmt: skip


def fairness() -> dict:
    figures = {"false_ml_balanced": {"value": 8.7377, "interval": [3.2, 16.1]}, "sauroc": {"value": 0.9125}}
    return {
        "version": 1,
        "options": {"min_group": 10, "point": "balanced", "resamples": 2000},
        "explained": {"sauroc": "subgroup AUROC"},
        "models": [
            {
                "model": "ddpm_0_t1",
                "set": "set_0",
                "split": "val",
                "kind": "held-out",
                "scans": 20,
                "patients": 20,
                "positives": 40,
                "figures": ["false_ml_balanced", "sauroc"],
                "overall": figures,
                "attributes": [
                    {
                        "name": "sex",
                        "groups": [{"group": "F", "title": "women", "patients": 14, "figures": figures}],
                        "not_reported": [{"group": "M", "title": "men", "patients": 6}],
                        "test": {"p_value": 0.2166, "p_corrected": 0.2803, "tests": 3},
                        "sentences": ["It shows no clear difference."],
                    }
                ],
            }
        ],
        "laws": [
            {
                "set": "set_0",
                "figure": "sauroc",
                "share_of": "F",
                "groups": [{"group": "F", "intercept": 0.7, "slope": 0.1, "mean_absolute_error": 0.01, "runs": 5}],
                "sentences": ["Parity is met at a share of 0.4."],
            }
        ],
    }


@pytest.fixture(scope="module")
def record() -> dict:
    return evaluation_record()


@pytest.fixture(scope="module")
def text(record) -> str:
    pictures = {f"{number}.png": picture(40 + number) for number in range(4)}
    return evaluation_html(record, blind_spots=[blind_spots()], fairness=fairness(), pictures=pictures)


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def section(text: str, name: str) -> Page:
    """The one section with that id."""
    (found,) = re.findall(rf'<section id="{name}">.*?</section>', text, re.DOTALL)
    return Page(found)


def test_the_numbers_of_the_table_are_those_of_the_record(record, text):
    for index, entry in enumerate(record["sets"]):
        cells = {}
        for row in re.findall(r"<tr.*?</tr>", text[text.index(f'id="set-set-{index}"') :], re.DOTALL):
            name = re.search(r'<th scope="row" data-value="([^"]+)"', row)
            if name and name[1] not in cells:
                cells[name[1]] = {float(value) for value in re.findall(r'<td[^>]* data-value="(-?[\d.e-]+)"', row)}
        for row in entry["rows"]:
            wanted = [row["figures"][key]["value"] for key in ("pooled_ap", "mean_case_ap", "best_dice_oracle")]
            figures = row["points"]["balanced"]["figures"]
            wanted += [figures[key]["value"] for key in ("dice", "recall", "false_positives_per_scan")]
            if entry["healthy"]:
                wanted += [figures["healthy_false_ml"]["value"], row["figures"]["scan_auroc"]["value"]]
            if row["differences"]:
                wanted.append(row["differences"]["best_baseline"]["pooled_ap"]["value"])
                wanted.append(row["differences"]["best_baseline"]["mean_case_ap"]["p_value"])
            assert set(wanted) <= cells[row["model"]]


def test_values_are_shown_with_their_intervals_and_p_values(record, text):
    row = record["sets"][0]["rows"][0]
    figure = row["figures"]["pooled_ap"]
    assert f"{figure['value']:.3f}" in text
    assert f"[{figure['interval'][0]:.3f}, {figure['interval'][1]:.3f}]" in text
    assert f"p = {row['differences']['best_baseline']['mean_case_ap']['p_value']:.3f}" in text


def test_every_operating_point_and_every_threshold_protocol_is_there(record, page):
    lines = [attributes for attributes, _ in page.of("tr") if attributes.get("data-point")]
    for entry in record["sets"]:
        for name in entry["rows"][0]["points"]:
            assert sum(a["data-point"] == name for a in lines) >= len(record["sets"]) * len(entry["rows"])
    heads = [text for _, text in page.of("th", scope="col")]
    for words in (
        "healthy operating point",
        "healthy 99.5 % quantile",
        "label-tuned (papers only)",
        "best Dice (oracle)",
    ):
        assert any(words in head for head in heads)


def test_a_model_that_does_not_beat_a_baseline_says_so_in_words(record, text):
    row = copy.deepcopy(record["sets"][0]["rows"][0])
    row["verdict"] = {"beats_intensity": "no", "beats_atlas": "yes", "sentence": "AP 0.1: NOT above intensity_t1."}
    changed = {**record, "sets": [{**record["sets"][0], "rows": [row, *record["sets"][0]["rows"][1:]]}]}
    shown = section(evaluation_html(changed), "set-set-0")
    assert "does not beat intensity; beats atlas" in [text for _, text in shown.of("td")]
    assert any("NOT above intensity_t1" in text for _, text in shown.of("p"))
    (lead,) = [text for _, text in shown.of("p", class_="verdict bad") if text.startswith("Does not beat a baseline")]
    assert row["model"] in lead


def test_baselines_and_the_model_offered_first_are_marked(record, page):
    marked = {kind: [text for _, text in page.of("tr", class_=kind)] for kind in ("baseline", "default")}
    assert sum("intensity_t1" in text for text in marked["baseline"]) >= len(record["sets"])
    assert all(record["sets"][0]["default_model"] in text for text in marked["default"])
    assert marked["default"]


def test_no_text_of_a_record_becomes_markup():
    record = made_hostile(evaluation_record())
    for entry in record["sets"]:
        entry["rows"][0]["model"] = HOSTILE
        entry["curves"][HOSTILE] = next(iter(entry["curves"].values()))
        entry["examples"][0]["model"] = HOSTILE
    others = {"blind_spots": [made_hostile(blind_spots(HOSTILE))], "fairness": made_hostile(fairness())}
    page = Page(evaluation_html(record, pictures={"1.png": picture()}, **others))
    assert len(page.of("script")) == 1
    assert all((attributes.get("src") or "").startswith("data:image/png;base64,") for attributes, _ in page.of("img"))
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]
    assert any(HOSTILE in text for _, text in page.of("td"))


def test_the_page_needs_nothing_but_itself(text, page):
    assert not page.of("link")
    assert not page.of("iframe")
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "srcset", "action", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/png;base64,")), (tag, target)
    (style,), (script,) = page.of("style"), page.of("script")
    assert not re.search(r"https?:|@import|url\(", style[1])
    assert not re.search(r"https?:|fetch|XMLHttpRequest|innerHTML|eval", script[1])
    assert not re.search(r"https?://", text)


def test_a_policy_forbids_all_but_this_style_and_this_script(page):
    (policy,) = [a["content"] for a, _ in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    for kind in ("style", "script"):
        ((_, content),) = page.of(kind)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not [a for _, a, _ in page.elements if "style" in a]


def test_links_in_the_page_lead_somewhere(page):
    names = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for attributes, _ in page.of("a"):
        assert attributes["href"].removeprefix("#") in names


def test_what_is_missing_is_said(text):
    last = section(text, "set-set-1")
    assert any("No healthy scans in this set" in words for _, words in last.of("li"))
    bare = evaluation_html({"sets": [{"name": "empty", "rows": []}]})
    assert "No model was measured on this set." in bare
    assert "Not measured here." in section(bare, "blind-spots").of("section")[0][1]
    assert "Not measured here." in section(bare, "fairness").of("section")[0][1]


def test_few_patients_failures_and_skipped_scans_are_told(record):
    changed = copy.deepcopy(record)
    for row in changed["sets"][0]["rows"]:
        row["figures"]["pooled_ap"]["interval"] = None
    text = evaluation_html(changed)
    assert "Too few patients for intervals" in text
    assert "expected a finite image, got NaN" in text
    assert "broken_t1" in section(text, "failures").of("section")[0][1]


def test_lesions_that_the_model_grid_loses_are_told(record, text):
    assert "voxel on the model grid" not in text
    changed = copy.deepcopy(record)
    changed["sets"][0]["lost_on_grid"] = {"lesions": 3, "of": 16, "cases": 1}
    assert "3 of 16; scans without any left, and so without a Dice: 1" in evaluation_html(changed)


def test_drift_of_a_calibration_is_told(record):
    changed = copy.deepcopy(record)
    changed["sets"][0]["rows"][0]["drift"] = "Scores of 20 healthy scans drift from the calibration (p = 0.001)."
    text = evaluation_html(changed)
    assert "drift from the calibration" in section(text, "calibration").of("li")[0][1]
    assert "drift from the calibration" in section(text, "set-set-0").of("section")[0][1]


def test_a_check_that_found_no_drift_is_no_warning(record):
    changed = copy.deepcopy(record)
    told = {"drifted": False, "sentence": "no difference of the scores shows", "p_value": 0.4}
    changed["sets"][0]["rows"][0]["drift"] = told
    assert "no difference of the scores" not in evaluation_html(changed)
    told |= {"drifted": True, "sentence": "the scores are distributed otherwise, higher on the whole"}
    assert "distributed otherwise" in evaluation_html(changed)


def test_pictures_are_inside_and_described(page):
    images = page.of("img")
    assert [base64.b64decode(a["src"].partition(",")[2]) for a, _ in images] == [picture(40 + n) for n in range(4)]
    assert all("scan_" in attributes["alt"] for attributes, _ in images)


def test_pictures_beyond_the_budget_are_named_not_shown(record, monkeypatch):
    monkeypatch.setattr("monailabel_app.reports.evaluation_page.PICTURES_MB", 2.5 * len(picture()) * 4 / 3 / 1e6)
    text = evaluation_html(record, pictures={f"{number}.png": picture() for number in range(4)})
    assert len(Page(text).of("img")) == 2
    assert "2 pictures left out" in text
    assert "2.png, 3.png" in text


def test_charts_say_in_words_what_they_show_and_leave_out(page):
    charts = page.of("svg")
    assert len(charts) == 6  # two of the set without healthy scans
    assert len(page.of("desc")) == len(charts)
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes, _ in charts)
    crowded = evaluation_record(models=20, sets=1)
    shown = drawn_rows(crowded["sets"][0])
    assert len(shown) == MOST_DRAWN
    assert {"intensity", "atlas_zscore"} <= {row["method"] for row in shown}
    assert crowded["sets"][0]["default_model"] in [row["model"] for row in shown]
    (notes,) = [text for _, text in Page(evaluation_html(crowded)).of("p", class_="note") if "Not drawn" in text]
    assert notes.count("_t1") == 20 + 2 - MOST_DRAWN


def test_a_model_with_two_calibrations_is_drawn_and_summed_up_once_by_its_own(record):
    changed = copy.deepcopy(record["sets"][0])
    own = next(row for row in changed["rows"] if row["model"] == changed["default_model"])
    other = copy.deepcopy(own)
    other["calibration"] = {"id": None, "kind": "set", "scans": 20}
    other["figures"]["pooled_ap"]["value"] = own["figures"]["pooled_ap"]["value"] + 0.3
    changed["rows"].insert(0, other)
    assert focus(changed) is own
    names = [row["model"] for row in drawn_rows(changed)]
    assert len(names) == len(set(names))
    assert "calibrated on this set's healthy scans" in evaluation_html({"sets": [changed]})


def test_the_blind_spot_map_shows_recall_and_counts(text):
    shown = section(text, "blind-spots")
    cells = [words for _, words in shown.of("td")]
    assert "25 %n = 4" in cells
    assert "–n = 0" in cells
    assert "18 %[10 %, not reached]" in cells
    assert "not reached0 % at the strongest" in cells
    assert {"0 of 5", "1 of 6"} <= set(cells)
    assert any(a.get("data-value") == "61.5" for a, _ in shown.of("td"))
    assert "Does not see lesions of 0.3 ml and smaller." in [words for _, words in shown.of("li")]
    assert any("No blind-spot map here for" in words for _, words in shown.of("p"))


def test_the_fairness_table_shows_groups_and_those_too_small(text):
    shown = section(text, "fairness")
    assert any(a.get("data-value") == "8.7377" for a, _ in shown.of("td"))
    assert "too few to report" in [words for _, words in shown.of("td")]
    assert "p = 0.217; 0.280 corrected for 3" in [words for _, words in shown.of("td")]
    assert "Parity is met at a share of 0.4." in [words for _, words in shown.of("li")]


def test_scans_without_a_split_are_not_called_held_out(record, text):
    assert "held-out scans" in text
    table = fairness()
    table["models"][0]["split"] = ""
    page = evaluation_html(record, fairness=table)
    assert "held-out scans" not in page
    assert "is not known" in page


def test_identities_are_short_to_read_and_whole_to_copy(record, text):
    digest = record["sets"][0]["rows"][0]["hash"]
    shown = section(text, "identities").of("code", title=digest)
    assert [words for _, words in shown] == [digest]
    assert f">{digest[:12]}<" in text


def test_it_says_what_it_is_not_for(page):
    assert any("Research use only. Not a medical device" in text for _, text in page.of("header"))


def test_a_file_of_another_command_is_refused():
    with pytest.raises(EvaluationFailed, match="give evaluation"):
        evaluation_html({"models": []})
