import pytest

from monailabel_app.errors import EvaluationFailed, InvalidSettings
from monailabel_app.pipelines.evaluation.score_table import parse_columns, read_results

HEADER = "model,set,split,id,patient,healthy,scan_score,false_ml_balanced,sex"


def table(tmp_path, text):
    path = tmp_path / "scans.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_evaluate_is_read(tmp_path):
    path = table(tmp_path, f"{HEADER}\nddpm,ixi,val,a,p,1,2.5,10.25,F\nddpm,ixi,val,b,p,0,7,,\n")
    healthy, ill = read_results(path)
    assert (healthy.model, healthy.set, healthy.split, healthy.patient, healthy.healthy) == (
        "ddpm", "ixi", "val", "p", True,
    )  # fmt: skip
    assert healthy.values == {"scan_score": 2.5, "false_ml_balanced": 10.25}
    assert healthy.cells["sex"] == "F"
    assert not ill.healthy
    assert ill.values == {"scan_score": 7.0}
    assert ill.line == "scans.csv, line 3"


def test_a_semicolon_table_with_a_byte_order_mark_and_other_names_is_read(tmp_path):
    path = table(tmp_path, "\ufeffWho;Normal;Volume\nx;yes;3.5\ny;no;4\n")
    rows = read_results(path, parse_columns("patient=Who, healthy=Normal, false_ml=Volume"))
    assert [row.patient for row in rows] == ["x", "y"]
    assert [row.healthy for row in rows] == [True, False]
    assert rows[0].values == {"false_ml_given": 3.5}
    assert rows[0].model == "model"


def test_a_column_may_mark_the_anomalies_instead(tmp_path):
    path = table(tmp_path, "patient,scan_score,lesion\nx,1,0\ny,2,1\n")
    assert [row.healthy for row in read_results(path, positives="lesion")] == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,scan_score\na,1\n", "column 'healthy'"),
        ("healthy,scan_score\n1,1\n", "column 'patient'"),
        ("id,healthy,score\na,1,1\n", "name yours with --columns scan_score"),
        ("id,healthy,scan_score\na,1,high\n", "line 2: expected a number in scan_score, got 'high'"),
        ("id,healthy,scan_score\na,1,inf\n", "line 2: expected a number"),
        ("id,healthy,scan_score\na,perhaps,1\n", "line 2: expected 1 or 0 .* in healthy, got 'perhaps'"),
        ("id,healthy,scan_score\na,1\n", "line 2: expected 3 cells, got 2"),
        ("id,id,healthy,scan_score\na,a,1,1\n", "'id' twice"),
        ("id,healthy,scan_score\n,1,1\n", "whom the scan shows in patient"),
        ("id,healthy,scan_score\n", "at least one scan"),
        ("", "at least one scan"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line_and_column(tmp_path, text, message):
    with pytest.raises(EvaluationFailed, match=message):
        read_results(table(tmp_path, text))


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(EvaluationFailed, match="FileNotFoundError"):
        read_results(tmp_path / "absent.csv")
    (tmp_path / "image.csv").write_bytes(b"\x1f\x8b\xff\xfe\x00")
    with pytest.raises(EvaluationFailed, match="UnicodeDecodeError"):
        read_results(tmp_path / "image.csv")


def test_columns_that_nothing_reads_are_refused(tmp_path):
    with pytest.raises(InvalidSettings, match="NAME=COLUMN"):
        parse_columns("score=x")
    with pytest.raises(EvaluationFailed, match="'Volume'"):
        read_results(table(tmp_path, "id,healthy,scan_score\na,1,1\n"), {"false_ml": "Volume"})
