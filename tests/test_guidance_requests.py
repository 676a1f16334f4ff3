"""Guidance of requests: names, rules and options of each picture in one batch, in every task."""

import dataclasses
import warnings

import flax.struct
import jax
import numpy as np
import pytest

import sdjax
from sdjax.checks.notes import Note
from sdjax.diffusion import rules
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.scripts.main import main
from sdjax.tasks.computing import Computing
from sdjax.tasks.make_batch import batch_of

import models
from checks import count_compilations, near

ONE = {"devices": jax.devices()[:1]}


def make(*requests, pipe=None):
    return sdjax.generate(pipe or models.pipeline(), list(requests), **ONE)


def request(seed=1, **settings):
    return sdjax.Request("a cat", seed=seed, **{"num_steps": 3, "guidance_scale": 4.0, **settings})


def batch(*requests, pipe=None):
    return batch_of(pipe or models.pipeline(), list(requests), Computing(**ONE))


def test_other_numbers_in_a_batch_compile_nothing_and_each_picture_is_its_own():
    first = request(1, guidance="apg", guidance_options={"eta": 0.2}), request(2, guidance=rules.APG(momentum=-0.5))
    made = [make(*first)]
    other = request(5, guidance="apg", guidance_options={"threshold": 3.0}, guidance_scale=9.0, num_steps=4)
    assert count_compilations(lambda: made.append(make(first[0], other))) == 0
    assert near(made[1][:1], made[0][:1])
    assert not near(made[1][1:], made[0][1:])


def test_pictures_with_other_rules_are_other_groups():
    apg = request(1, guidance="apg", guidance_options={"eta": 0.0})
    assert batch(request(1), apg, request(2), request(3, guidance="apg")).groups() == [[0, 2], [1, 3]]
    spaces = [request(guidance=rules.APG(space=space)) for space in ("output", "x0", "output")]
    assert batch(*spaces).groups() == [[0, 2], [1]]  # a name is static, a number is not


def test_a_batch_has_the_guidance_of_its_requests():
    numbers = (0.2, 0.9)
    two = batch(*(request(guidance="interval+apg", guidance_options={"apg.eta": eta}) for eta in numbers))
    assert isinstance(two.guidance, ClassifierFree)
    interval, apg = two.guidance.rules
    np.testing.assert_allclose(apg.eta, numbers, rtol=1e-6)
    assert len(two.groups()) == 1
    assert [given.context.shape[0] for given in two.conditionings()] == [2, 2]


def test_each_branch_gets_its_text():
    pipe = models.pipeline()
    one = batch(request(guidance="perp_neg+pag", negative_prompt="a dog"), pipe=pipe)
    assert one.guidance.branches == ("unconditional", "conditional", "empty", "perturbed")
    texts = ["a dog", "a cat", "", "a cat"]
    for text, given in zip(texts, one.conditionings(), strict=True):
        np.testing.assert_allclose(given.context, pipe.encode_prompt([text], mesh=one.how.mesh), atol=1e-5)


def test_a_sampler_in_cfg_plus_plus_form_gets_the_unconditional_answer_at_scale_one():
    assert batch(request(guidance_scale=1.0, sampler="euler_cfg_pp")).guidance.branches == (
        "unconditional", "conditional",
    )  # fmt: skip
    assert batch(request(guidance_scale=1.0)).guidance.branches == ("conditional",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": "apgg"}, "did you mean apg"),
        ({"guidance": 3}, "guidance is a name"),
        ({"guidance": rules.APG}, "pass APG()"),
        ({"guidance": rules.APG(eta="much")}, "eta of APG is a finite number"),
        ({"guidance_options": {"eta": 1}}, "name a rule"),
        ({"guidance": "apg", "guidance_options": ["eta"]}, "names and values"),
        ({"guidance": rules.APG(), "guidance_options": {"eta": 1}}, "set the fields of the rule"),
    ],
)
def test_wrong_guidance_is_refused_when_a_request_is_made(settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        request(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"guidance": "pag", "guidance_options": {"layers": "down_blocks.7"}},
            "no self-attention down_blocks.7; it has",
        ),
        ({"guidance": "autoguidance"}, "second, weaker model"),
        ({"guidance": "edit"}, "given a picture"),
        ({"guidance": ClassifierFree(3.0)}, "has its own scale"),
        ({"guidance": rules.Interval(stop=0.5), "sampler": "dpm_solver_adaptive"}, "Interval of guidance counts steps"),
        ({"guidance": "cfg_zero_star", "sampler": "dpm_solver_adaptive"}, "counts steps"),
    ],
)
def test_guidance_that_the_model_cannot_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        batch(request(**settings))


def test_rules_without_effect_at_scale_one_are_noted():
    with pytest.warns(Note, match="guidance has no effect at guidance_scale 1"):
        batch(request(guidance_scale=1.0, guidance="apg"))


HALVED = {"guidance": "interval", "guidance_options": {"stop": 0.5}}
PLUS = {"guidance_scale": 1.0, "sampler": "euler_cfg_pp"}


def test_an_interval_with_cfg_plus_plus_is_not_noted_at_scale_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        batch(request(**HALVED, **PLUS))
    with pytest.warns(Note, match="guidance has no effect at guidance_scale 1"):
        batch(request(guidance="apg", **PLUS))


@pytest.mark.slow  # compiles two programs
def test_an_interval_acts_on_cfg_plus_plus_at_scale_one():
    pictures = make(request(**HALVED, **PLUS), request(**PLUS))
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.slow  # each compiles the network again
@pytest.mark.parametrize("name", ["pag", "seg", "sag", "freeu", "nag", "perp_neg", "autoguidance", "interval+pag"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_rule_of_the_network_changes_the_picture_and_its_zero_does_not(name, scale):
    pipe = models.pipeline()
    weak = dataclasses.replace(
        pipe, params={**pipe.params, "unet": jax.tree.map(lambda a: 0.9 * a, pipe.params["unet"])}
    )
    pipe = pipe.guided_by(weak)
    nothing = {
        "pag": {"strength": 0}, "seg": {"strength": 0}, "sag": {"strength": 0}, "nag": {"strength": 1},
        "freeu": {"b1": 1, "b2": 1, "s1": 1, "s2": 1}, "perp_neg": {"negative": 0}, "autoguidance": {"strength": 1},
        "interval+pag": {"strength": 0},
    }  # fmt: skip
    more = {"negative_prompt": "" if name == "perp_neg" else "a dog", "guidance_scale": scale}
    if scale == 1 and name not in ("nag", "perp_neg"):
        more["negative_prompt"] = ""
    plain = make(request(**more), pipe=pipe)
    strong = {"interval+pag": {"strength": 9.0}, "pag": {"strength": 9.0}}.get(name)
    changed = make(request(guidance=name, guidance_options=strong, **more), pipe=pipe)
    same = make(request(guidance=name, guidance_options=nothing[name], **more), pipe=pipe)
    assert near(same, plain)
    if name != "perp_neg":
        assert np.abs(changed.astype(int) - plain).max() > 2


def test_all_rules_are_listed_with_their_options(capsys):
    assert main(["guidance"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in rules.GUIDANCE)
    for name, rule in rules.GUIDANCE.items():
        assert main(["guidance", name]) == 0
        out = capsys.readouterr().out
        assert "Source:" in out
        assert all(field.name in out for field in dataclasses.fields(rule))
    assert main(["guidance", "apgg"]) == 2
    assert "did you mean apg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--guidance", "apgg"], "did you mean apg"),
        (["--guidance-option", "eta=1"], "--guidance-option has no effect without --guidance"),
        (["--guidance", "apg", "--guidance-option", "eta"], "--guidance-option is NAME=VALUE"),
        (["--guidance", "apg", "--guidance-option", "eta=x"], "eta of the guidance apg is a finite number"),
        (["--guidance", "autoguidance"], "name it with --weak-ckpt"),
        (["--guidance", "apg", "--weak-ckpt", "builtin"], "--weak-ckpt has no effect without --guidance autoguidance"),
    ],
)
def test_wrong_flags_are_explained(flags, message, capsys):
    assert main(["txt2img", "--device", "cpu", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_rule_must_be_a_dataclass_that_jax_knows():
    class Same(rules.Rule):
        pass

    with pytest.raises(ValueError, match="the rule Same must be a flax.struct.dataclass"):
        request(guidance=Same())
    assert flax.struct.dataclass(Same)() in batch(request(guidance=flax.struct.dataclass(Same)())).guidance.rules


def test_a_list_as_guidance_is_named_as_the_fault_even_beside_options():
    with pytest.raises(ValueError, match="guidance is a name"):
        sdjax.Request(guidance=["apg"], guidance_options={"eta": 0.5})
