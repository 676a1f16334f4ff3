"""Animation: what keyframes are, how frames lie between them, batches, shared steps, refusals."""

import jax
import numpy as np
import pytest

import sdjax
from sdjax.checks.notes import Note
from sdjax.tasks import animate as module
from sdjax.tasks.animate import animate
from sdjax.tasks.keyframes import between, check_keyframes, frame_positions, straight, turn, turn_tokens

import models
from checks import count_compilations, near

ONE = {"devices": jax.devices()[:1], "num_steps": 3, "batch": 3}  # batches of three everywhere: few compilations


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
def test_keyframes_are_the_pictures_of_text_to_image(sampler):
    pipe, prompts, seeds = models.pipeline(), ["a cat", "a dog", "a horse"], [3, 1, 4]
    frames = animate(pipe, prompts, seeds=seeds, frames=5, sampler=sampler, **ONE)
    assert frames.shape == (5, 64, 64, 3)
    assert frames.dtype == np.uint8
    few = {"num_steps": 3, "devices": ONE["devices"], "sampler": sampler}
    pictures = sdjax.text_to_image(pipe, prompts, seed=seeds, **few)
    assert near(frames[::2], pictures)
    for i in (1, 3):  # what lies between is neither of its neighbours
        assert not near(frames[i], frames[i - 1])
        assert not near(frames[i], frames[i + 1])


def test_a_loop_goes_back_to_the_first_keyframe_without_repeating_it():
    pipe = models.pipeline()
    there = animate(pipe, ["a cat", "a dog"], frames=3, **ONE)
    round_trip = animate(pipe, ["a cat", "a dog"], frames=4, loop=True, **ONE)
    assert near(round_trip[:3], there)
    assert near(round_trip[3], there[1])  # half way back, with one seed


def test_a_seed_gives_another_tools_noise():
    pipe, options = models.pipeline(), {"noise_source": "torch_cpu", "sampler": "euler_ancestral"}
    frames = animate(pipe, ["a cat", "a dog"], seeds=[3, 3], frames=3, **options, **ONE)
    few = {"num_steps": 3, "devices": ONE["devices"]}
    pictures = sdjax.text_to_image(pipe, ["a cat", "a dog", "a dog"], seed=[3, 3, 3], **options, **few)
    assert near(frames[::2], pictures[:2])


def test_prompts_may_say_their_frames():
    assert frame_positions(3, 6, numbers=[0, 1, 4]).tolist() == pytest.approx([0, 1, 4 / 3, 5 / 3, 2, 2])
    assert frame_positions(2, 6, loop=True, numbers=[1, 3]).tolist() == [1.75, 0, 0.5, 1, 1.25, 1.5]
    for numbers, sentence in ([0, 6], "0 to 5"), ([0], "1 seeds"):
        with pytest.raises(ValueError, match=sentence):
            frame_positions(2, 6, numbers=numbers)


@pytest.mark.slow
def test_batches_and_devices_do_not_change_frames():
    pipe, options = models.pipeline(), {"num_steps": 2, "frames": 5, "seeds": [1, 2]}
    whole = animate(pipe, "a cat", devices=ONE["devices"], batch=3, **options)
    assert near(animate(pipe, "a cat", devices=jax.devices()[:2], batch=3, **options), whole)  # 2 x 2 at a time


def test_every_batch_runs_one_program_and_another_animation_compiles_nothing():
    pipe, options = models.pipeline(), ONE
    animate(pipe, ["a cat", "a dog"], frames=4, **options)
    changes = [(["a fox", "an owl"], {"frames": 7}), ("a cat", {"seeds": [1, 2], "frames": 10}),
               (["a", "b", "c"], {"frames": 5, "num_steps": 6, "interpolation": "spherical"}),
               (["a", "b"], {"frames": 9, "loop": True, "prompt_strength": 0.5, "num_steps": 6})]  # fmt: skip
    for prompts, change in changes:
        again = {**options, **change}
        assert count_compilations(lambda p=prompts, o=again: animate(pipe, p, **o)) == 0


def test_prompt_strength_zero_still_lets_one_step_look_at_its_prompt_and_frames_grow_alike():
    pipe, prompts, spread = models.pipeline(), ["a cat", "a dog"], {}
    for strength in (1.0, 0.5, 0.0):
        frames = animate(pipe, prompts, frames=3, prompt_strength=strength, **{**ONE, "num_steps": 6}).astype(int)
        spread[strength] = np.abs(frames[0] - frames[2]).mean()
    assert 0 < spread[0.0] < spread[0.5] < spread[1.0]


@pytest.mark.few(3)
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 6), ("heun", 6), ("euler_ancestral", 6), ("lcm", 6)])
@pytest.mark.parametrize("seeds", [7, [7, 8]])
def test_shared_steps_of_equal_prompts_change_nothing(sampler, steps, seeds):
    """One-step methods: where they stop in between makes no difference. Noise goes on where it stopped."""
    options = {**ONE, "sampler": sampler, "num_steps": steps, "frames": 5, "seeds": seeds}
    prompts = ["a cat", "a cat"]
    whole = animate(models.pipeline(), prompts, **options)
    assert near(animate(models.pipeline(), prompts, prompt_strength=0.5, **options), whole)


def test_every_sampler_but_the_adaptive_one_can_share_steps():
    from sdjax import samplers

    pipe = models.pipeline()
    for name, make in samplers.SAMPLERS.items():
        if isinstance(make().rule, samplers.Linear):
            common, rest = module.split_steps(make(), pipe.schedule, 7, 0.5)
            whole = make().steps(pipe.schedule, 7)
            assert common.sigma_next[-1] == rest.sigma[0], name  # the second part begins where the first one ends
            assert rest.sigma_next[-1] == whole.sigma_next[-1], name
            assert rest.index[0] == len(common.index), name
        else:
            with pytest.raises(ValueError, match="adaptive"):
                module.split_steps(make(), pipe.schedule, 7, 0.5)


def test_progress_counts_calls_of_the_network():
    for seeds, total in (0, 2 + 2 * 2), ([0, 1], 2 * 4):  # one seed: the first half of the steps is made once
        seen = []
        animate(models.pipeline(), ["a cat", "a dog"], seeds=seeds, frames=6, prompt_strength=0.5, batch=3, num_steps=4,
                devices=ONE["devices"], progress=lambda *counts, seen=seen: seen.append(counts))  # fmt: skip
        assert seen[-1] == (total, total)
        assert all(a < b for (a, _), (b, _) in zip(seen, seen[1:]))


def test_turned_noise_stays_unit_normal_where_a_straight_line_shrinks():
    a, b = np.random.default_rng(0).normal(size=(2, 64, 64, 4)).astype(np.float32)
    half = turn(a, b, 0.5)
    assert half.std() == pytest.approx(1, abs=0.02)  # 16384 numbers: 0.6 % standard error
    assert straight(a, b, 0.5).std() == pytest.approx(0.5**0.5, abs=0.02)
    for share in (0.25, 0.5, 0.75):  # the angle grows with the share
        angle = np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))
        v = turn(a, b, share)
        found = np.arccos(np.sum(a * v) / np.linalg.norm(a) / np.linalg.norm(v))
        assert found == pytest.approx(share * angle, abs=1e-4)
        assert np.linalg.norm(v) == pytest.approx((1 - share) * np.linalg.norm(a) + share * np.linalg.norm(b), rel=1e-5)


def test_turning_is_defined_for_equal_opposite_and_empty_vectors():
    a = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(turn_tokens(a, b, 0.5)[:2], [[1.5, 0], [0, 0]], atol=1e-12)
    assert np.isfinite(turn_tokens(a, b, 0.3)).all()
    np.testing.assert_allclose(turn_tokens(np.array([[2.0, 0]]), np.array([[0, 4.0]]), 0.5), [[3 / 2**0.5] * 2])


def test_frames_lie_at_equal_distances_and_keyframes_are_met_exactly():
    np.testing.assert_allclose(frame_positions(3, 5), [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(frame_positions(2, 4, loop=True), [0, 0.5, 1, 1.5])
    ring = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(between(ring, np.array([0.0, 1.0, 2.0]), None), ring)
    np.testing.assert_allclose(between(ring, np.array([2.5]), straight), [[2, 3]])  # between the last and the first


def test_one_of_a_kind_serves_all_keyframes():
    assert check_keyframes("a", "", [1, 2]) == (["a", "a"], ["", ""], [1, 2])
    assert check_keyframes(["a", "b", "c"], ["x", "y", "z"], 5) == (["a", "b", "c"], ["x", "y", "z"], [5, 5, 5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a cat"]}, "two prompts or two seeds"),
        ({"prompts": []}, "1 or 1 prompts"),
        ({"prompts": ["a", "b"], "seeds": [1, 2, 3]}, "1 or 3 prompts"),
        ({"negative_prompt": ["x", "y", "z"]}, "1 or 2 negative prompts"),
        ({"frames": 1}, "at least the number of keyframes, 2"),
        ({"interpolation": "cubic"}, "unknown interpolation"),
        ({"prompt_strength": 1.5}, "prompt_strength"),
        ({"batch": 0}, "batch is a whole number from 1 up; got 0"),
        ({"seeds": -1}, "a seed lies between"),
        ({"guidance_scale": float("inf")}, "finite"),
        ({"height": 100}, "nearest"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        animate(models.pipeline(), **{"prompts": ["a cat", "a dog"], **ONE, **arguments})


@pytest.mark.slow
def test_keyframes_that_are_all_alike_are_said():
    with pytest.warns(Note, match="all keyframes have the same prompt and seed"):
        sdjax.animate(models.pipeline(), "a", seeds=[1, 1], frames=2, num_steps=1)
