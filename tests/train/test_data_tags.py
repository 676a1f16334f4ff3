"""Captions that change each time that they are shown."""

from collections import Counter

import numpy as np
import picture_sets
import pytest

from sdjax.train.config import DataConfig
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.pictures import Part, Pictures
from sdjax.train.data.tags import UNCHANGED, CaptionConfig
from sdjax.train.training_set import held_out

TAGS = "cat, red , , sofa,window"


def shown(config, caption=TAGS, count=4000):
    return [config(caption, 7, "a.png", visit) for visit in range(count)]


def test_without_settings_a_caption_stays_as_it_is():
    assert UNCHANGED(TAGS, 0, "a", 0) == TAGS
    assert not UNCHANGED.changes


def test_shuffled_tags_come_in_every_order_equally_often():
    orders = Counter(shown(CaptionConfig(shuffle=True)))
    assert len(orders) == 24
    # 4000 / 24 = 167 each, with a standard deviation of 12.6
    assert all(abs(count - 4000 / 24) < 4.5 * 12.6 for count in orders.values())
    assert all(sorted(order.split(", ")) == ["cat", "red", "sofa", "window"] for order in orders)


def test_kept_tags_stay_first():
    assert {text.split(", ")[0] for text in shown(CaptionConfig(shuffle=True, keep=1), count=100)} == {"cat"}
    assert len(Counter(shown(CaptionConfig(shuffle=True, keep=2), count=100))) == 2


def test_dropped_tags_are_the_asked_share_of_those_that_are_not_kept():
    texts = [text.split(", ") for text in shown(CaptionConfig(tag_dropout=0.3, keep=1))]
    assert all(
        tags[0] == "cat" and tags == [t for t in ("cat", "red", "sofa", "window") if t in tags] for tags in texts
    )
    for tag in ("red", "sofa", "window"):
        assert np.mean([tag in tags for tags in texts]) == pytest.approx(0.7, abs=4 * (0.21 / 4000) ** 0.5)
    assert set(shown(CaptionConfig(tag_dropout=1.0), count=3)) == {""}


def test_a_separator_keeps_what_is_before_and_after():
    config = CaptionConfig(shuffle=True, keep=3, keep_separator="|||")
    texts = Counter(shown(config, "sks cat ||| red, sofa ||| photo, 4k", 100))
    assert set(texts) == {"sks cat, red, sofa, photo, 4k", "sks cat, sofa, red, photo, 4k"}
    assert config(TAGS, 0, "a", 0).startswith("cat, red, sofa, ")  # without the mark `keep` counts
    plain = CaptionConfig(keep_separator="|||")
    assert plain("sks cat ||| red", 0, "a", 0) == "sks cat, red"
    assert plain("sks, cat", 0, "a", 0) == "sks, cat"


def test_a_second_separator_holds_tags_together():
    config = CaptionConfig(shuffle=True, second_separator=";;;")
    assert set(shown(config, "a;;;b,c", 50)) == {"a,b, c", "c, a,b"}


def test_texts_before_and_after_come_first():
    config = CaptionConfig(prefix="sks cat,", suffix=", photo", shuffle=True, keep=1)
    assert config("red", 0, "a", 0) in ("sks cat, red, photo", "sks cat, photo, red")
    assert CaptionConfig(prefix="a photo of", suffix="here")("", 0, "a", 0) == "a photo of here"


def test_a_caption_depends_on_seed_picture_and_visit_alone():
    config = CaptionConfig(shuffle=True, tag_dropout=0.2)
    assert shown(config, count=20) == shown(config, count=20)
    others = [[config(TAGS, seed, key, v) for v in range(20)] for seed, key in ((7, "a.png"), (8, "a.png"), (7, "b"))]
    assert len({tuple(texts) for texts in others}) == 3


def test_a_part_changes_some_of_the_settings():
    data = DataConfig(
        parts=({"source": {"folder": "a"}}, {"source": {"folder": "b"}, "captions": {"prefix": "p", "shuffle": False}}),
        captions=CaptionConfig(shuffle=True, keep=1),
    )
    assert [data.captions_of(part) for part in data.parts] == [
        CaptionConfig(shuffle=True, keep=1), CaptionConfig(prefix="p", keep=1)
    ]  # fmt: skip
    fixed = held_out(data)
    assert [fixed.captions_of(part) for part in fixed.parts] == [UNCHANGED, CaptionConfig(prefix="p")]


def test_pictures_are_shown_with_changed_captions():
    source = picture_sets.Numbers(3)
    pictures = Pictures([Part(source, captions=CaptionConfig(prefix="p"))], Buckets.square(48))
    plain = Pictures([Part(source)], Buckets.square(48))
    at = (0, 1, (48, 48), 0, 5)
    assert pictures.load(*at)["caption"] == f"p {plain.load(*at)['caption']}"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tag_dropout": 1.2}, "tag_dropout lies between 0 and 1"),
        ({"keep": -1}, "keep is a number of tags"),
        ({"separator": ""}, "at least one character"),
    ],
)
def test_values_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        CaptionConfig(**settings)
    with pytest.raises(ValueError, match=rf"data.parts\[0\].captions: .*{sentence}"):
        DataConfig(parts=({"source": {"folder": "a"}, "captions": settings},))
