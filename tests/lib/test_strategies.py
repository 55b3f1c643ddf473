import time

from lib.strategies import First, Random


class Store:
    def __init__(self, info):
        self.info = info

    def get_unlabeled_images(self):
        return list(self.info)

    def get_image_info(self, image_id):
        return self.info[image_id]


def given(seconds_ago):
    return {"strategy": {"random": {"ts": int(time.time()) - seconds_ago}}}


def test_first_follows_the_order_of_the_ids():
    assert First()({}, Store({"b": {}, "a": {}, "c": {}})) == {"id": "a"}


def test_nothing_left_gives_nothing():
    assert First()({}, Store({})) is None
    assert Random()({}, Store({})) is None


def test_random_works_when_all_were_just_given():
    assert Random(seed=0)({"strategy": "random"}, Store({"a": given(0), "b": given(0)}))["id"] in {"a", "b"}


def test_random_prefers_what_was_given_long_ago():
    strategy, store = Random(seed=0), Store({"recent": given(1), "old": given(10**6)})
    drawn = [strategy({"strategy": "random"}, store)["id"] for _ in range(50)]
    assert drawn.count("old") == 50


def test_random_reaches_every_scan():
    strategy, store = Random(seed=0), Store({name: {} for name in "abc"})
    assert {strategy({"strategy": "random"}, store)["id"] for _ in range(50)} == set("abc")
