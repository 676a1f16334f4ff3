"""Guidance of requests: names, rules and options of each picture in one batch, in every task."""

import dataclasses

import flax.struct
import jax
import numpy as np
import pytest

import sdjax
from sdjax.checks.notes import Note
from sdjax.diffusion import rules
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.scripts.main import main

import models
from checks import count_compilations, near

ONE = {"devices": jax.devices()[:1]}


def make(*requests, pipe=None):
    return sdjax.generate(pipe or models.pipeline(), list(requests), **ONE)


def request(seed=1, **settings):
    return sdjax.Request("a cat", seed=seed, **{"num_steps": 3, "guidance_scale": 4.0, **settings})


def test_other_numbers_in_a_batch_compile_nothing_and_each_picture_is_its_own():
    first = request(1, guidance="apg", guidance_options={"eta": 0.2}), request(2, guidance=rules.APG(momentum=-0.5))
    make(*first)
    again = (
        request(1, guidance="apg", guidance_options={"eta": 0.2}),
        request(5, guidance="apg", guidance_options={"threshold": 3.0, "eta": 0.9}, guidance_scale=9.0, num_steps=4),
    )
    made = []
    assert count_compilations(lambda: made.append(make(*again))) == 0
    assert near(made[0][:1], make(*first)[:1])


def test_pictures_with_other_rules_share_no_program_but_a_session():
    plain, apg = request(1), request(1, guidance="apg", guidance_options={"eta": 0.0})
    got = make(plain, apg, request(2))
    assert near(got[[0, 2]], make(plain, request(2)))
    assert not near(got[1:2], got[:1])


def test_a_batch_has_the_guidance_of_its_requests():
    from sdjax.tasks.batch import batch_of
    from sdjax.tasks.computing import Computing

    numbers = (0.2, 0.9)
    requests = [request(guidance="interval+apg", guidance_options={"apg.eta": eta}) for eta in numbers]
    batch = batch_of(models.pipeline(), requests, Computing(**ONE))
    assert isinstance(batch.guidance, ClassifierFree)
    interval, apg = batch.guidance.rules
    np.testing.assert_allclose(apg.eta, numbers, rtol=1e-6)
    assert len(batch.groups()) == 1
    assert [given.context.shape[0] for given in batch.conditionings()] == [2, 2]


def test_a_cfg_plus_plus_sampler_gets_the_unconditional_answer_at_scale_one():
    from sdjax import samplers
    from sdjax.tasks.batch import batch_of
    from sdjax.tasks.computing import Computing

    @dataclasses.dataclass(frozen=True)
    class Unconditional(samplers.Sampler):
        def steps(self, schedule, num_steps, *, skip=0):
            t, sigma = self.grid(schedule, num_steps, skip=skip)
            return samplers.stack(
                [samplers.row(t[0], sigma[0], sigma[1], base=0.0, calls=[1.0], remember=(0.0, 0.0, 1.0))]
            )

    settings = {"guidance_scale": 1.0, "sampler": Unconditional()}
    batch = batch_of(models.pipeline(), [request(**settings)], Computing(**ONE))
    assert batch.guidance.branches == ("unconditional", "conditional")


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
    ],
)
def test_guidance_that_the_model_cannot_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(request(**settings))


def test_rules_without_effect_at_scale_one_are_noted():
    with pytest.warns(Note, match="guidance has no effect at guidance_scale 1"):
        make(request(guidance_scale=1.0, guidance="apg"))


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
        (["--guidance", "apg", "--weak-ckpt", "builtin"], "--weak-ckpt has no effect without --guidance autoguidance"),
    ],
)
def test_wrong_flags_are_explained(flags, message, capsys):
    assert main(["txt2img", "--device", "cpu", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_rule_from_outside_needs_no_options():
    @flax.struct.dataclass
    class Same(rules.Rule):
        pass

    with pytest.warns(Note):
        made = make(request(guidance=Same(), guidance_scale=1.0))
    assert near(made, make(request(guidance_scale=1.0)))
