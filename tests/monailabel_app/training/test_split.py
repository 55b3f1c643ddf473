"""Splitting by patient: never on both sides, the same each time, and stable while a site collects more."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.training.split import split_by_patient

KEY = b"the site's key"


def people(count, scans_each=1):
    return [f"patient{i}" for i in range(count) for _ in range(scans_each)]


def held_out(patients, share=0.2, **options):
    return {patients[i] for i in split_by_patient(patients, share, key=KEY, **options).held_out}


def test_all_scans_of_a_patient_are_on_one_side_and_none_is_lost():
    patients = [*people(30, 2), *people(15)]
    training, held = split_by_patient(patients, 0.3, key=KEY)
    assert sorted([*training, *held]) == list(range(len(patients)))
    assert not {patients[i] for i in training} & {patients[i] for i in held}
    assert list(training) == sorted(training)


def test_the_split_does_not_depend_on_the_order_of_the_scans_but_on_the_key():
    patients = people(40)
    shuffled = [patients[i] for i in np.random.default_rng(0).permutation(40)]
    assert held_out(patients) == held_out(shuffled)
    other = split_by_patient(patients, 0.2, key=b"another").held_out
    assert {patients[i] for i in other} != held_out(patients)


def test_about_the_share_is_held_out_and_never_fewer_than_the_minimum():
    assert len(held_out(people(2000), 0.2)) == pytest.approx(400, abs=60)
    assert len(held_out(people(12), 0.01)) == 5
    assert len(held_out(people(60), 0.01, minimum=20)) == 20
    assert len(held_out(people(12), 0.99)) == 7


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
def test_while_patients_are_added_nobody_who_was_trained_on_is_ever_held_out(share):
    everybody = people(300)
    before: set[str] = set()
    trained: set[str] = set()
    for count in range(12 if share < 0.3 else 30, 300):
        now = held_out(everybody[:count], share)
        assert not now & trained
        if len(before) > 5:
            assert before <= now
        trained |= set(everybody[:count]) - now
        before = now


def test_too_few_patients_are_refused_with_what_there_is_and_what_is_needed():
    with pytest.raises(TrainingFailed, match=r"at least 10 patients .*20 held-out ones or more.* got 18 scans of 9"):
        split_by_patient(people(9, 2), 0.2, key=KEY)
    assert [len(side) for side in split_by_patient(people(10), 0.2, key=KEY)] == [5, 5]
    with pytest.raises(InvalidSettings, match="share"):
        split_by_patient(people(20), 1.0, key=KEY)
