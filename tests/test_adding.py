"""What people add from outside sdjax: a sampler, a rule of guidance and an adapter, each of one small class.

Objectives and trainables are in train/test_extensions.py, in whole runs and from the command line.
"""

import dataclasses
import inspect
import json
import pathlib
import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax import samplers
from sdjax.adapters import path_of
from sdjax.diffusion import guidance, rules
from sdjax.diffusion.conditioning import Conditioning
from sdjax.pipeline import placement
from sdjax.pipeline.model import make_keys
from sdjax.schedule import NoiseSchedule
from sdjax.scripts.main import main
from sdjax.scripts.shared import sampler_flags

import models

SETTINGS = {"num_steps": 2, "guidance_scale": 1.0, "devices": jax.devices()[:1]}


@dataclasses.dataclass(frozen=True)
class HalfNoise(samplers.Sampler):
    """The example of the docstring of sdjax.samplers, word for word."""

    def rows(self, schedule, grid):
        t, sigma = grid
        keep = 0.5 * sigma[1:] / sigma[:-1]  # half of the noise stays, the other half is drawn again
        fresh = 0.75**0.5 * sigma[1:]
        return samplers.stack([
            samplers.row(t[i], sigma[i], sigma[i + 1], base=keep[i], calls=[1 - keep[i]], noise=fresh[i])
            for i in range(len(keep))
        ])  # fmt: skip


def test_the_sampler_is_the_docstrings():
    for line in inspect.getsource(HalfNoise.rows).strip().splitlines():
        assert line.strip().removesuffix("# fmt: skip").strip() in samplers.__doc__


@pytest.fixture
def half_noise(monkeypatch):
    monkeypatch.setitem(samplers.SAMPLERS, "half_noise", HalfNoise)


def test_a_sampler_has_a_name_in_python_and_on_the_command_line(half_noise, tmp_path, capsys):
    pipe = models.pipeline()
    made = sdjax.text_to_image(pipe, "a", seed=1, sampler=HalfNoise(), **SETTINGS)
    np.testing.assert_array_equal(sdjax.text_to_image(pipe, "a", seed=1, sampler="half_noise", **SETTINGS), made)
    assert not np.array_equal(sdjax.text_to_image(pipe, "a", seed=1, sampler="ddim", **SETTINGS), made)

    pipe.save(tmp_path / "model")
    flags = {"--ckpt": tmp_path / "model", "--outdir": tmp_path / "out", "--prompt": "a", "--sampler": "half_noise",
             "--steps": 2, "--scale": 1, "--seed": 1, "--n_samples": 1, "--n_iter": 1, "--H": 64, "--W": 64,
             "--device": "cpu:0", "--dtype": "float32"}  # fmt: skip
    command = ["txt2img", "--skip_grid", *(str(part) for pair in flags.items() for part in pair)]
    assert main(command) == 0
    with Image.open(capsys.readouterr().out.strip()) as picture:
        np.testing.assert_array_equal(np.asarray(picture), made[0])


def test_the_schedule_of_the_docs_has_a_name(monkeypatch):
    page = pathlib.Path(__file__).parents[1] / "docs" / "samplers.md"
    code = re.search(r"```python\n(import dataclasses\n.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    monkeypatch.setitem(samplers.SCHEDULES, "halving", None)  # removed again after the test
    exec(code, {})
    made = samplers.make_schedule("halving", {"share": "0.25"})
    sigma = made.grid(NoiseSchedule(), 3, end="zero").sigma
    np.testing.assert_allclose(sigma[1:] / sigma[:-1], [0.25, 0.25, 0])
    assert sampler_flags.known_schedule("halving") == "halving"


def test_a_command_offers_the_samplers_of_the_table(half_noise, capsys):
    with pytest.raises(SystemExit):
        main(["txt2img", "--sampler", "half_nois"])
    assert "half_noise" in capsys.readouterr().err


def inputs(pipe, prompts):
    """Returns two pictures' rows, starting latents, keys and conditioning by each of the prompts, on one device."""
    mesh = placement.make_mesh(jax.devices()[:1])
    rows, keys = samplers.repeat(samplers.DDIM().steps(pipe.schedule, 3), 2), make_keys([1, 2])
    x = 14.6 * pipe.noise(keys, 64, 64, mesh=mesh)
    return rows, x, keys, [Conditioning(pipe.encode_prompt([prompt] * 2, mesh=mesh)) for prompt in prompts], mesh


@pytest.fixture
def halfway(monkeypatch):
    """The rule of the docstring of sdjax.diffusion.guidance, run word for word, and in the table for one test."""
    table = dict(rules.GUIDANCE)
    monkeypatch.setattr(rules, "GUIDANCE", table)
    names = dict(vars(guidance), flax=__import__("flax.struct"), GUIDANCE=table)
    code = guidance.__doc__[guidance.__doc__.index("    @flax") :]
    exec(textwrap.dedent(code), names)
    return names["Halfway"]


def test_a_rule_of_guidance_is_half_of_the_way(halfway):
    pipe = models.pipeline()
    rows, x, keys, branches, mesh = inputs(pipe, ["", "a cat"])

    def run(rule):
        return pipe.sample(samplers.Linear(), rows, x, keys, branches, rule, mesh=mesh).x

    plain = guidance.ClassifierFree(jnp.array([2.5, 2.0]))
    made = run(guidance.ClassifierFree(4.0, rules=(halfway(jnp.array([0.5, 1 / 3])),)))
    np.testing.assert_allclose(made, run(plain), atol=1e-3)  # 1 + 0.5 (4 - 1) and 1 + (4 - 1) / 3
    assert np.abs(made[1] - run(guidance.ClassifierFree(4.0))[1]).max() > 1e-2


def test_a_rule_has_a_name_in_python_and_on_the_command_line(halfway, tmp_path, capsys):
    pipe = models.pipeline()
    settings = SETTINGS | {"guidance_scale": 4.0, "seed": 1}
    made = sdjax.text_to_image(pipe, "a", guidance=halfway(0.25), **settings)
    named = sdjax.text_to_image(pipe, "a", guidance="halfway", guidance_options={"share": 0.25}, **settings)
    np.testing.assert_array_equal(named, made)
    assert not np.array_equal(sdjax.text_to_image(pipe, "a", guidance="halfway", **settings), made)

    pipe.save(tmp_path / "model")
    flags = {"--ckpt": tmp_path / "model", "--outdir": tmp_path / "out", "--prompt": "a", "--guidance": "halfway",
             "--guidance-option": "share=0.25", "--steps": 2, "--scale": 4, "--seed": 1, "--n_samples": 1,
             "--n_iter": 1, "--H": 64, "--W": 64, "--device": "cpu:0", "--dtype": "float32"}  # fmt: skip
    command = ["txt2img", "--skip_grid", *(str(part) for pair in flags.items() for part in pair)]
    assert main(command) == 0
    with Image.open(capsys.readouterr().out.strip()) as picture:
        np.testing.assert_array_equal(np.asarray(picture), made[0])
        assert json.loads(picture.text["sdjax"])["guidance_options"] == {"share": 0.25}
    assert main(["guidance", "halfway"]) == 0
    assert "share" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Louder:
    """Multiplies the output of one layer by a number of all images and one of each."""

    layer: str

    def intercept(self, shared, own):
        def intercept(method, args, kwargs, context):
            out = method(*args, **kwargs)
            return out * (shared * own)[:, None, None, None] if path_of(context) == self.layer else out

        return intercept


def test_an_adapter_is_a_patch():
    pipe = models.pipeline()
    rows, x, keys, [told], mesh = inputs(pipe, ["a cat"])

    def run(shared, *own):
        patched = dataclasses.replace(told, patches=(jnp.array(own),))
        how = {"patches": [Louder("conv_out")], "shared": [jnp.float32(shared)], "mesh": mesh}
        return np.asarray(pipe.sample(samplers.Linear(), rows, x, keys, [patched], **how).x)

    made = run(2.0, 0.0, 0.5)
    np.testing.assert_allclose(made[0], x[0], rtol=1e-5)  # a network that sees no noise moves nothing
    np.testing.assert_allclose(made[1], run(1.0, 1.0, 1.0)[1], rtol=1e-4, atol=1e-4)
    assert np.abs(made[1] - run(2.0, 0.0, 1.0)[1]).max() > 1e-2
