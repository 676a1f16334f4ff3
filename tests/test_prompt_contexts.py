"""Prompts in pictures: lengths, stages and emphasis share a batch, and change nothing for prompts without syntax."""

import jax
import numpy as np
import pytest

import sdjax
from sdjax.pipeline.contexts import encode_texts, read_text
from sdjax.prompts.language import Language
from sdjax.samplers import make_start
from sdjax.tasks.computing import Computing
from sdjax.tasks.contexts import NEGATIVE, Prompts
from sdjax.tasks.prompting import make_plan
from sdjax.tasks.request import Request
from sdjax.tasks.resolve import resolve

import models

LONG = "word, " * 60  # two chunks


def prompts_of(*requests: Request) -> Prompts:
    pipe = models.pipeline()
    whole = resolve(pipe, requests)
    starts = [make_start(one.sampler, pipe.schedule, one.num_steps) for one in whole]
    return Prompts(pipe, whole, starts, Computing(devices=jax.devices()[:1]))


def test_a_plain_prompt_has_the_same_context_in_every_syntax() -> None:
    pipe, text = models.pipeline(), "a photo of a cat, in the grass"
    want = np.asarray(pipe.encode_prompt([text]))
    for syntax in "weights", "comfyui", "plain":
        (branch,) = prompts_of(Request(text, prompt_syntax=syntax)).contexts([0])
        np.testing.assert_array_equal(branch.context, want)
        assert branch.length is None


def test_contexts_of_unequal_length_share_a_batch_by_their_lengths() -> None:
    prompts = prompts_of(
        Request("a cat", "bad"), Request(LONG, "a BREAK b BREAK c"), Request("a [cat:dog:0.5]", num_steps=8)
    )
    conditional, negative = prompts.contexts([0, NEGATIVE])
    assert conditional.context.shape == negative.context.shape == (3, 2, 231, 32)
    assert conditional.length.tolist() == [[77, 77], [154, 154], [77, 77]]
    assert negative.length.tolist() == [[77, 77], [231, 231], [77, 77]]
    pipe = models.pipeline()
    want = encode_texts(pipe, [read_text(pipe, "a dog", Language())], at_a_time=1)[0]
    np.testing.assert_allclose(conditional.context[2, 1, :77], want, atol=1e-5)
    assert np.all(conditional.context[2, :, 77:] == 0)


def test_stages_change_at_the_calls_at_which_a1111_changes() -> None:
    def stage(prompt: str, **options) -> list[int]:
        (rows,) = prompts_of(Request(prompt, **options)).rows()
        return rows.stage.tolist()

    assert stage("a [cat:dog:0.5]", num_steps=10) == [0] * 6 + [1] * 4
    assert stage("a [cat:dog:3]", num_steps=6) == [0] * 4 + [1] * 2
    assert stage("[a|b]", num_steps=5) == [0, 0, 1, 0, 1]
    assert stage("a cat", num_steps=3) == [0] * 3
    heun = stage("a [cat:dog:0.5]", num_steps=10, sampler="heun")
    assert heun == [0] * 11 + [1] * 8  # 19 calls, counted as 20 steps
    assert stage("a [cat:dog:0.5]", negative_prompt="[x::0.3]", num_steps=10) == [0] * 4 + [1] * 2 + [2] * 4


def test_a_second_pass_counts_on() -> None:
    plan = make_plan(Language(), "[a:b:0.5][c:d:1.5]", "", steps=10, calls=10, after=10)
    assert plan.prompts == (("bc", "bd"),)
    assert plan.stage.tolist() == [0] * 6 + [1] * 4


@pytest.mark.slow
def test_pictures_of_changing_prompts_are_between_those_of_their_texts() -> None:
    prompts = ["a cat", "a dog", "a [cat:dog:0]", "a [cat:dog:9]", "a [cat:dog:1]", LONG]
    pipe, options = models.pipeline(), {"num_steps": 4, "devices": jax.devices()[:1]}
    made = sdjax.text_to_image(pipe, prompts, seed=[3] * 6, **options).astype(int)
    assert np.abs(made[2] - made[1]).max() <= 1
    assert np.abs(made[3] - made[0]).max() <= 1
    assert np.abs(made[0] - made[1]).max() > 3
    assert all(np.any(made[4] != made[k]) for k in (0, 1))
    alone = sdjax.text_to_image(pipe, ["a cat"] * 6, seed=3, **options).astype(int)
    assert np.abs(alone[0] - made[0]).max() <= 1  # without the others no length is needed


def test_old_editing_and_comma_backtrack_reach_the_pictures() -> None:
    """Of A1111's old timelines: 1.0 is step 1, and a second pass counts like a first one."""
    old = Request("[a:b:1.0]", num_steps=10, old_prompt_editing=True)
    near, far = (Request("word " * 70 + ", " + "word " * 9, comma_backtrack=n) for n in (4, 5))
    prompts = prompts_of(old, near, far, Request("[a:b:1.0]", num_steps=10))
    assert [plan.stage.tolist() for plan in prompts.plans[::3]] == [[0] * 2 + [1] * 8, [0] * 10]
    used = [[chunk.used for chunk in own[0][0].chunks] for own in prompts.texts[1:3]]
    assert used == [[75, 5], [71, 9]]  # the comma is the fifth token from the end of a full chunk
    second = make_plan(Language(old_editing=True), "[a:b:0.5]", "", steps=10, calls=10, after=10)
    assert second.prompts == (("a", "b"),)
    for name in "comma_backtrack", "old_prompt_editing":
        with pytest.raises(ValueError, match=f"{name} has no effect with prompt_syntax comfyui"):
            Request(prompt_syntax="comfyui", **{name: 1})


def test_padding_of_prompts_reaches_the_context() -> None:
    prompts = prompts_of(
        Request("a cat", LONG, pad_contexts="a1111_empty"), Request("a cat", LONG, pad_contexts="comfyui")
    )
    conditional, negative = prompts.contexts([0, NEGATIVE])
    assert conditional.length is None
    one, two = np.asarray(conditional.context)
    np.testing.assert_array_equal(two[:77], two[77:])
    empty = np.asarray(models.pipeline().encode_prompt([""]))[0]
    np.testing.assert_allclose(one[77:], empty, atol=1e-5)


def test_embeddings_of_several_chunks_are_contexts() -> None:
    own = np.random.default_rng(0).normal(size=(154, 32)).astype(np.float32)
    conditional, negative = prompts_of(Request(prompt_embeds=own), Request("a cat")).contexts([0, NEGATIVE])
    np.testing.assert_array_equal(conditional.context[0], own)
    assert conditional.length.tolist() == [154, 77]
    with pytest.raises(ValueError, match=r"prompt_embeds must have the shape \[77, 32\]"):
        prompts_of(Request(prompt_embeds=own[:100]))


def test_exact_pictures_of_other_lengths_are_groups() -> None:
    prompts = prompts_of(Request("a cat"), Request(LONG), Request("a dog"), Request("[a:b:1]"))
    shapes = [prompts.shape(i) for i in range(4)]
    assert shapes[0] == shapes[2]
    assert len(set(shapes)) == 3


def test_every_sampler_s_steps_are_counted_once_or_twice() -> None:
    for name in "ddim", "plms", "dpm2", "dpm_solver_singlestep", "dpmpp_2s_ancestral", "lms":
        (rows,) = prompts_of(Request("[a:b:0.5]", sampler=name, num_steps=8)).rows()
        assert rows.stage.tolist() == sorted(rows.stage.tolist())
        assert 0.4 < np.mean(rows.stage == 0) < 0.75


@pytest.mark.slow
def test_prompts_joined_by_and_are_weighted() -> None:
    pipe, options = models.pipeline(), {"num_steps": 2, "seed": 3, "devices": jax.devices()[:1]}
    prompts = ["a cat", "a cat AND a dog :0", "a dog :0 AND a cat", "a dog", "a dog AND a dog :-1 AND a dog"]
    made = sdjax.text_to_image(pipe, prompts, **{**options, "seed": [3] * 5}).astype(int)
    assert np.abs(made[1] - made[0]).max() <= 1
    assert np.abs(made[2] - made[0]).max() <= 1
    assert np.abs(made[4] - made[3]).max() <= 1
    assert np.abs(made[3] - made[0]).max() > 1
