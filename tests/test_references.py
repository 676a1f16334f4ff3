"""Reference pictures and StyleAligned in tasks: batches, what compiles, what is refused, and texts."""

import jax
import numpy as np
import pytest

import sdjax
from sdjax.tasks.flag_texts import quoted, read_options
from sdjax.tasks.references import Reference, parse, read_reference
from sdjax.tasks.style_aligned import groups_with_reference

import models
from checks import count_compilations, near

FEW = {"num_steps": 2, "height": 64, "width": 64, "sampler": "euler", "devices": jax.devices()[:1]}
OTHER = models.picture(48, 80, seed=3)


def made(**options):
    return np.asarray(sdjax.text_to_image(models.pipeline(), "a cat", **{**FEW, "seed": [5, 6, 7], **options}))


@pytest.mark.slow  # compiles the network twice
def test_pictures_of_a_batch_have_references_of_their_own_in_one_program():
    plain = made()
    each = [
        [Reference(OTHER)],
        [Reference(OTHER, weight=0)],
        [Reference(OTHER, 0.8, 0.2, "reference_adain+attn", end=0.5)],
    ]
    got = made(references=each)
    assert near(got[1], plain[1])
    assert not near(got[0], plain[0])
    assert not near(got[2], plain[2])
    again = models.picture(64, 64, seed=4)
    others = [[Reference(again, 0.5, 1.0, "reference_adain")], [Reference(OTHER, start=0.5)], [Reference(again)]]
    assert count_compilations(lambda: made(references=others)) == 0
    assert near(made(references=each[0])[0], got[0])  # one list is for all pictures


def test_pictures_follow_the_style_of_the_first():
    plain, got = made(), made(style_aligned=[1.0, 0.0, 1.0])
    assert near(got[0], plain[0])
    assert near(got[1], plain[1])
    assert not near(got[2], plain[2])


@pytest.mark.slow  # compiles the network again
def test_a_batch_in_parts_follows_the_same_picture():
    assert near(made(style_aligned=1.0, at_once=2), made(style_aligned=1.0))


@pytest.mark.slow  # compiles the network again
def test_style_and_references_in_other_tasks_and_with_other_guidance():
    pipe = models.pipeline()
    few = {name: FEW[name] for name in ("num_steps", "sampler", "devices")}
    both = {"style_aligned": 1.0, "references": [Reference(OTHER)], **few}
    start = models.picture()
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    for run in (
        lambda **o: sdjax.image_to_image(pipe, start, ["a cat"] * 2, strength=0.9, **o),
        lambda **o: sdjax.inpaint(pipe, start, mask, ["a cat"] * 2, **o),
        lambda **o: sdjax.two_pass(pipe, ["a cat"] * 2, height=64, width=64, enlarge=1.5, **o),
        lambda **o: sdjax.text_to_image(pipe, ["a cat"] * 2, height=64, width=128, window=64, **o),
    ):
        assert not near(np.asarray(run(**few)), np.asarray(run(**both)))
    for guidance in "pag", "seg", "sag", "freeu", "nag":
        plain, got = made(guidance=guidance), made(guidance=guidance, style_aligned=1.0)
        assert near(plain[0], got[0])
        assert not near(plain[1], got[1])
    merged = made(style_aligned=1.0, patches=["token_merging"])
    assert near(merged[0], made(patches=["token_merging"])[0])


@pytest.mark.slow  # compiles the network for two devices
def test_every_device_has_the_reference():
    two = made(style_aligned=1.0, devices=jax.devices()[:2])
    assert near(two, made(style_aligned=1.0))


def test_groups_begin_with_the_reference_on_every_device():
    group = [4, 5, 6, 7]
    assert groups_with_reference([group], False, None, 1) == [group]
    assert groups_with_reference([group], False, None, 2) == [[4, 5, 6, 4, 7, 7]]
    assert groups_with_reference([group], False, 2, 1) == [[4, 5], [4, 6], [4, 7]]
    assert groups_with_reference([group], False, 3, 1) == [[4, 5, 6], [4, 7, 7]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"style_aligned": 1.0, "seed": [1]}, "this batch has one picture: make several at once"),
        ({"style_aligned": 1.0, "exact": True}, "exact computes pictures one by one"),
        ({"style_aligned": 1.0, "at_once": 1}, "at_once is 2 or more; got 1"),
        ({"style_aligned": 1.0, "height": [64, 64, 128]}, "follow its first one, so they have one size"),
        ({"style_aligned": 2.0}, "style_aligned is a number from 0 to 1"),
        ({"style_aligned": 1.0, "patches": "window_attention"}, "window_attention only a part"),
        ({"references": OTHER, "guidance": "pag"}, "change the same attention"),
        ({"references": "none.png"}, "no file 'none.png', which was given as a reference"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(options, said):
    with pytest.raises(ValueError, match=said) as error:
        made(**options)
    assert "\n" not in str(error.value)


def test_an_animation_is_not_style_aligned():
    with pytest.raises(ValueError, match="style_aligned is for separate pictures"):
        sdjax.animate(models.pipeline(), ["a", "b"], frames=2, style_aligned=1.0, **FEW)


def test_texts():
    one = parse("a, b.png,weight=0.5, fidelity=1,mode=reference_adain,end=0.8")
    assert (one.picture, one.weight, one.fidelity, one.mode, one.span) == (
        "a, b.png", 0.5, 1, "reference_adain", (0, 0.8),
    )  # fmt: skip
    assert parse('"a,weight=1.png",weight=0.5').picture == "a,weight=1.png"
    assert read_options("x", f"{quoted('a,b=c.png')},n=1,2", ["n"]) == ("a,b=c.png", [("n", "1,2")])
    assert read_reference(OTHER).picture is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a reference names a file first"),
        ("a.png,weigth=1", "a reference has no 'weigth'; it has weight, fidelity"),
        ("a.png,weight=x", "a reference's weight is a number"),
        ("a.png,weight=3", "a reference's weight is a number from 0 to 2"),
        ("a.png,weight=1,weight=1", "gives weight twice"),
        ("a.png,weight=", "gives weight no value"),
        ('"a.png,weight=1', "a quote that is not closed"),
        ("a.png,mode=only", "a reference's mode is one of reference_only"),
        ("a.png,start=0.5,end=0.5", "a reference ends after its start"),
    ],
)
def test_bad_texts_are_refused_in_a_sentence(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)
