"""Rules of guidance against their formulas, written again with numpy; and how rules compose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion import rules
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import Weak, make_denoiser
from sdjax.diffusion.guidance import Call, ClassifierFree, Unguided, make_guidance
from sdjax.diffusion.network import FunctionNetwork
from sdjax.diffusion.rules import GUIDANCE, make_rules
from sdjax.samplers import row

RNG = np.random.default_rng(3)
C, U, E, X = RNG.standard_normal((4, 2, 6, 8, 4)).astype(np.float32)
AXES = (1, 2, 3)
TOL = {"rtol": 2e-4, "atol": 2e-5}  # float32 against float64


def at(step=0, num_steps=10, sigma=1.5, timestep=400.0):
    return row(timestep, sigma, 0.0, calls=[1.0])._replace(step=np.int32(step), num_steps=np.int32(num_steps))


@jax.jit
def compiled(guidance, where, outputs, x, memory):
    call = Call(x, where, 0.0, 1.0, "x0")
    denoised, memory = guidance.combine(outputs, call._replace(on=guidance.on(call)), memory)
    return denoised.x0, memory


def combine(guidance, where=None, memory=None, **outputs):
    """Returns the guided x0 and the memory of a network that predicts x0."""
    where = at() if where is None else where
    named = {"conditional": C, "unconditional": U, **outputs}
    memory = guidance.init(jnp.asarray(X)) if memory is None else memory
    x0, memory = compiled(guidance, where, named, X, memory)
    return np.asarray(x0), memory


def guided(names, scale=5.0, where=None, rescale=0.0, outputs=None, **options):
    batched = jax.tree.map(lambda a: np.asarray(a)[None], make_rules(names, options))
    return combine(ClassifierFree(scale, rescale, batched), where, **(outputs or {}))[0]


def of(update, vector):
    """Returns the part of an array along another one, picture by picture."""
    return (update * vector).sum(AXES, keepdims=True) / (vector**2).sum(AXES, keepdims=True) * vector


CHANGES = [
    name for name in GUIDANCE if name not in ("scales", "edit", "pag", "seg", "sag", "freeu", "nag", "autoguidance")
]
HARSH = {"apg": {"threshold": 2.5, "eta": 0.2, "momentum": -0.5}, "dynamic_thresholding": {"percentile": 0.9}}


@pytest.mark.few(7)
@pytest.mark.parametrize("name", CHANGES)
def test_every_rule_is_of_each_picture_alone(name):
    guidance = ClassifierFree(np.float32([5.0, 2.0]), 0.0, make_rules(name, HARSH.get(name)))
    both, _ = combine(guidance, empty=E)
    for i, scale in enumerate([5.0, 2.0]):
        outputs = {"conditional": C[i : i + 1], "unconditional": U[i : i + 1], "empty": E[i : i + 1]}
        one, x = ClassifierFree(scale, 0.0, guidance.rules), X[i : i + 1]
        alone, _ = compiled(one, at(), outputs, x, one.init(jnp.asarray(x)))
        np.testing.assert_allclose(both[i], alone[0], **TOL)


@pytest.mark.parametrize("name", [name for name in CHANGES if GUIDANCE[name].applies == "guided"])
def test_at_scale_one_a_rule_leaves_exactly_the_conditional_answer(name):
    options = {"curve": "Constant"} if name == "curve" else {}
    np.testing.assert_array_equal(guided(name, 1.0, **options), C)


def test_apg_projects_limits_and_remembers():
    update = C - U
    got = guided("apg", eta=0.0, threshold=0.0) - U
    np.testing.assert_allclose((got * C).sum(AXES), 0, atol=1e-3)  # nothing along the conditional answer
    np.testing.assert_allclose(got, 5 * (update - of(update, C)), **TOL)
    short = guided("apg", eta=1.0, threshold=1.5) - U
    np.testing.assert_allclose(np.sqrt((short**2).sum(AXES)), 5 * 1.5, rtol=1e-4)
    np.testing.assert_allclose(guided("apg", threshold=0.0), U + 5 * update, **TOL)
    guidance = ClassifierFree(5.0, 0.0, make_rules("apg", {"momentum": -0.5, "threshold": 0.0, "eta": 1.0}))
    _, memory = combine(guidance, at(0, sigma=3.0))
    second, memory = combine(guidance, at(1, sigma=2.0), memory)
    np.testing.assert_allclose(second, U + 5 * 0.5 * update, **TOL)  # update - 0.5 update
    again, _ = combine(guidance, at(2, sigma=9.0), memory)
    np.testing.assert_allclose(again, U + 5 * update, **TOL)  # more noise than before: a new start


def test_apg_has_the_forms_of_paper_and_comfyui():
    update = C - U
    part = update - 0.3 * of(update, C)
    for form, want in ("paper", C + 4 * part), ("comfyui", C + 5 * part), ("diffusers", U + 5 * part):
        np.testing.assert_allclose(guided("apg", eta=0.7, threshold=0.0, form=form), want, **TOL)


def test_cfg_zero_star_fits_the_unconditional_answer_and_begins_with_zero():
    fit = of(C, U)
    np.testing.assert_allclose(guided("cfg_zero_star", where=at(1)), fit + 5 * (C - fit), **TOL)
    np.testing.assert_array_equal(guided("cfg_zero_star", where=at(0), rescale=0.5), 0)
    np.testing.assert_array_equal(guided("cfg_zero_star", where=at(1), zero_steps=2), 0)


def test_tcfg_keeps_the_main_direction():
    for i in range(2):
        main = np.linalg.svd(np.stack([C[i].ravel(), U[i].ravel()]), full_matrices=False)[2][0]
        damped = ((U[i].ravel() @ main) * main).reshape(U[i].shape)
        np.testing.assert_allclose(guided("tcfg")[i], damped + 5 * (C[i] - damped), rtol=1e-3, atol=1e-3)


def test_a_perpendicular_negative_prompt_takes_nothing_from_the_prompt():
    positive, negative = C - E, U - E
    want = E + 5 * (positive - 0.8 * (negative - of(negative, positive)))
    got = guided("perp_neg", negative=0.8, outputs={"empty": E})
    np.testing.assert_allclose(got, want, **TOL)
    both = guided("perp_neg", outputs={"unconditional": 2 * C - E, "empty": E})  # a negative prompt like the prompt
    np.testing.assert_allclose(both, E + 5 * positive, rtol=1e-3, atol=1e-3)


def test_dynamic_thresholding_has_the_smaller_scales_range():
    def deviation(x):
        return x - x.mean((1, 2), keepdims=True)

    small, large = U + 2 * (C - U), U + 5 * (C - U)
    got = guided("dynamic_thresholding", mimic_scale=2.0, percentile=0.9)
    around = got - large.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(abs(around).max((1, 2)), abs(deviation(small)).max((1, 2)), rtol=1e-4)
    spread = guided("dynamic_thresholding", mimic_scale=2.0, measure="STD")
    np.testing.assert_allclose(spread.std((1, 2)), small.std((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(guided("dynamic_thresholding", mimic_scale=5.0), large, **TOL)
    half = guided("dynamic_thresholding", mimic_scale=2.0, percentile=0.9, mix=0.25)
    np.testing.assert_allclose(half, 0.25 * got + 0.75 * large, **TOL)


def test_no_pixel_is_longer_than_the_conditional_one():
    norm = lambda x: np.linalg.norm(x, axis=-1)  # noqa: E731
    plain, got = U + 5 * (C - U), guided("cfg_norm")
    np.testing.assert_allclose(norm(got), np.minimum(norm(plain), norm(C)), rtol=1e-4)
    np.testing.assert_allclose(guided("cfg_norm", strength=0.5), got / 2, **TOL)


def test_mahiro_mixes_by_the_cosine_of_signed_roots():
    root = lambda x: np.sign(x) * np.sqrt(abs(x))  # noqa: E731
    plain, leap = U + 5 * (C - U), 5 * C
    a, b = root(5 * U), root((leap + plain) / 2)
    cos = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    s = 2 * (1 + cos.mean((1, 2)))[:, None, None, None]
    np.testing.assert_allclose(guided("mahiro"), (s * plain + (4 - s) * leap) / 4, **TOL)


def test_fresca_scales_low_and_high_frequencies():
    np.testing.assert_allclose(guided("fresca", low=1.0, high=1.0), U + 5 * (C - U), **TOL)
    flat = U + 0.5
    got = guided("fresca", low=2.0, high=9.0, cutoff=1, outputs={"conditional": flat})
    np.testing.assert_allclose(got, U + 5 * 2 * 0.5, **TOL)  # a constant update is low
    sign = (-1.0) ** (np.arange(6)[:, None] + np.arange(8))[..., None]
    got = guided("fresca", low=9.0, high=2.0, cutoff=1, outputs={"conditional": U + sign})
    np.testing.assert_allclose(got, U + 5 * 2 * sign, **TOL)  # a chequerboard is high


def test_epsilon_scaling_divides_the_noise():
    np.testing.assert_allclose(guided("epsilon_scaling", factor=1.25), X - (X - (U + 5 * (C - U))) / 1.25, **TOL)


def test_rescaling_in_another_space_gives_it_the_conditional_deviation():
    sigma = 1.5
    v = lambda x0: (X / (1 + sigma**2) - x0) * (1 + sigma**2) ** 0.5 / sigma  # noqa: E731
    got = guided("rescale", share=1.0, space="v")
    np.testing.assert_allclose(v(got).std(AXES), v(C).std(AXES), rtol=1e-4)


def test_and_adds_the_prompts_updates():
    guidance = ClassifierFree(3.0, 0.0, (rules.And(np.float32([[0.8, -0.4], [1.0, 0.0]]), 2),))
    assert guidance.branches == ("unconditional", "conditional", "conditional 2")
    got, _ = combine(guidance, **{"conditional 2": E})
    np.testing.assert_allclose(got[0], (U + 3 * (0.8 * (C - U) - 0.4 * (E - U)))[0], **TOL)
    np.testing.assert_allclose(got[1], (U + 3 * (C - U))[1], **TOL)  # a picture with one prompt


def test_edit_has_a_scale_for_the_picture():
    got = guided("edit", strength=1.5, outputs={"nothing": E})
    np.testing.assert_allclose(got, E + 5 * (C - U) + 1.5 * (U - E), **TOL)


def test_an_interval_counts_steps_and_noise():
    plain = U + 5 * (C - U)
    for step, on in (2, False), (3, True), (8, True), (9, False):
        got = guided("interval", where=at(step), start=0.3, stop=0.9)
        np.testing.assert_allclose(got, plain if on else C, rtol=2e-4 if on else 0, atol=2e-5 if on else 0)
    for sigma, on in (0.4, False), (1.0, True), (3.0, False):
        got = guided("interval", where=at(sigma=sigma), sigma_low=0.5, sigma_high=2.0)
        assert np.array_equal(got, C) != on


def test_the_scale_follows_a_list_or_a_curve():
    for step, scale in (0, 7.0), (1, 3.0), (2, 1.0), (9, 1.0):
        np.testing.assert_allclose(guided("scales", 1.0, at(step), scales=(7, 3, 1)), U + scale * (C - U), **TOL)
    np.testing.assert_array_equal(guided("scales", 4.0, at(5), scales="2,1"), C)
    for step, scale in (0, 5.0), (9, 2.0), (3, 4.0):
        got = guided("curve", where=at(step), curve="Linear Down", lowest=2.0)
        np.testing.assert_allclose(got, U + scale * (C - U), **TOL)


def test_rules_apply_in_order():
    one = guided("cfg_norm+mahiro")
    assert np.abs(one - guided("mahiro+cfg_norm")).max() > 0.1
    halved = guided("cfg_norm", strength=0.5)
    rescaled = guided("cfg_norm", strength=0.5, rescale=1.0)
    np.testing.assert_allclose(rescaled.std(AXES), C.std(AXES), rtol=1e-4)  # guidance_rescale comes last
    assert halved.std() < 0.9 * rescaled.std()


def network(calls):
    """Returns a network whose answer is a picture of its context's number, and which notes the batch of each call."""

    def apply(x, t, conditioning):
        jax.debug.callback(lambda: calls.append(len(x)))
        return conditioning.context[:, :1, None, :1] * jnp.ones_like(x) + 0.1 * x

    return FunctionNetwork(apply)


def told(*values):
    return [Conditioning(jnp.full((2, 1, 1), value)) for value in values]


def test_only_the_passes_that_a_step_needs_are_run():
    calls: list[int] = []
    guidance = make_guidance(3.0, 0.0, make_rules("interval", {"start": 0.5}))
    denoiser = make_denoiser(network(calls), {}, "x0", told(1.0, 2.0), guidance)
    x = jnp.asarray(X)
    for step in range(4):
        x0, _ = denoiser(x, at(step, 4), denoiser.init(x))
        scale = 3.0 if step >= 2 else 1.0
        seen = 0.1 * X / (1 + 1.5**2) ** 0.5
        np.testing.assert_allclose(x0.x0, 1 + scale * (2 - 1) + seen, rtol=1e-5, atol=1e-5)
    jax.effects_barrier()
    assert calls == [2, 2, 4, 4]


def test_a_batch_rests_only_if_all_its_pictures_do():
    calls: list[int] = []
    rule = make_rules("interval", {"start": 0.5})[0].replace(start=np.float32([0.5, 0.0]))
    denoiser = make_denoiser(network(calls), {}, "x0", told(1.0, 2.0), ClassifierFree(3.0, 0.0, (rule,)))
    x = jnp.zeros((2, 4, 4, 1))
    x0, _ = denoiser(x, at(0, 4), denoiser.init(x))
    jax.effects_barrier()
    assert calls == [4]
    np.testing.assert_allclose(x0.x0[:, 0, 0, 0], [2.0, 4.0], rtol=1e-6)


def test_scale_one_runs_the_branches_of_the_rules_alone():
    assert make_guidance(1.0, 0.0, make_rules("pag")).branches == ("conditional", "perturbed")
    assert make_guidance([1.0, 2.0], 0.0, make_rules("pag")).branches == ("unconditional", "conditional", "perturbed")
    assert make_guidance(1.0, 0.0, make_rules("perp_neg")).branches == ("unconditional", "conditional", "empty")
    assert make_guidance(1.0, 0.0, make_rules("cfg")) == Unguided()
    assert make_guidance(1.0, needs_unconditional=True).branches == ("unconditional", "conditional")


def test_autoguidance_goes_away_from_the_weaker_network():
    weak = Weak(FunctionNetwork(lambda x, t, c: 0.5 * c.context[:, :1, None, :1] * jnp.ones_like(x)), {}, "x0")
    guidance = make_guidance(1.0, 0.0, make_rules("autoguidance", {"strength": 3.0}))
    strong = FunctionNetwork(lambda x, t, c: c.context[:, :1, None, :1] * jnp.ones_like(x))
    denoiser = make_denoiser(strong, {}, "x0", told(2.0), guidance, weak)
    x = jnp.zeros((2, 4, 4, 1))
    np.testing.assert_allclose(denoiser(x, at(), denoiser.init(x))[0].x0, 1 + 3 * (2 - 1), rtol=1e-6)
    with pytest.raises(ValueError, match="second, weaker model"):
        make_denoiser(strong, {}, "x0", told(2.0), guidance)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("apgg", {}, "did you mean apg"),
        ("apg+apg", {}, "twice"),
        ("apg", {"etas": 1}, "has no option 'etas'; it has apg.eta"),
        ("apg", {"eta": float("nan")}, "eta of the guidance apg is a finite number"),
        ("apg", {"form": "other"}, "one of diffusers, comfyui, paper"),
        ("apg", {"tcfg.space": "x0"}, "has no option"),
        ("apg+tcfg", {"space": "x0"}, "write apg.space"),
        ("apg", {"apg.eta": 1, "eta": 1}, "given twice"),
        ("interval", {"start": 1.5}, "from 0 to 1"),
        ("pag", {"layers": "(a+)+$"}, "names of layers"),
        ("pag", {"layers": "(mid"}, "names of layers"),
        ("scales", {}, "needs its option scales"),
        ("scales", {"scales": "7,x"}, "1 to 256 numbers"),
        ("+".join(list(GUIDANCE)[:9]), {}, "at most 8"),
    ],
)
def test_wrong_names_and_options_are_explained(names, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make_rules(names, options)


def test_rules_add_up():
    both = rules.APG(eta=0.5) + rules.Interval(stop=0.5)
    assert [type(rule) for rule in both.rules] == [rules.APG, rules.Interval]
    assert [type(rule) for rule in (both + rules.PAG()).rules] == [rules.APG, rules.Interval, rules.PAG]
