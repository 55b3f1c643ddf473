"""Parameters of a request are a JSON object of finite numbers, or refused by name."""

import pytest

from lib.endpoints.infer import read_params
from lib.errors import InvalidRequest


def test_an_object_is_read_and_nothing_is_no_parameters():
    assert read_params('{"age": 61.5, "n": 3, "deep": {"x": [1e3, null]}}') == {
        "age": 61.5,
        "n": 3,
        "deep": {"x": [1000.0, None]},
    }
    assert read_params("") == read_params(None) == {}


@pytest.mark.parametrize("text", ['{"age": NaN}', '{"age": [1.0, -Infinity]}', '{"a": {"b": 1e999}}'])
def test_numbers_that_no_client_could_be_sent_back_are_refused(text):
    with pytest.raises(InvalidRequest, match="finite numbers"):
        read_params(text)


@pytest.mark.parametrize("text", ["[1]", "3", "{", "nothing"])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(InvalidRequest, match="JSON object"):
        read_params(text)


@pytest.mark.parametrize("text", ['{"n": ' + "9" * 5000 + "}", "[" * 100_000, '{"a": ["\\ud800"]}', '{"\\udfff": 1}'])
def test_what_no_answer_could_hold_is_refused(text):
    with pytest.raises(InvalidRequest, match="digits, with too many levels, or with text that is no Unicode"):
        read_params(text)
