"""Karlo's prior: the reference's outputs and samples, its steps' closed form, its folder, texts, refusals.

golden/prior.npz holds what diffusers' PriorTransformer, UnCLIPScheduler and DDPMScheduler (float64 tables) make of a
small prior.
"""

import json

import jax
import numpy as np
import parity_towers
import pytest
from safetensors.numpy import save_file

from sdjax import convert
from sdjax.config import ConfigError, PriorConfig, ScheduleConfig, TextConfig
from sdjax.convert import CheckpointError
from sdjax.convert.names import naming
from sdjax.convert.parts.priors import prior_from_diffusers
from sdjax.nn.prior import PriorTransformer, ProjectedTextEncoder
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.schedule import alphas_cumprod
from sdjax.tasks.prior import Prior, make_rows

import reference
from checks import relative_error

D = 16
SMALL = PriorConfig(width=64, heads=2, layers=2, embedding=D, text=TextConfig(width=D, layers=1, heads=1))
PRIOR_FILE = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "embedding_dim": D,
              "num_embeddings": 77, "additional_embeddings": 4}  # fmt: skip
SCHEDULER = {"_class_name": "UnCLIPScheduler", "clip_sample": True, "clip_sample_range": 5.0,
             "num_train_timesteps": 1000, "prediction_type": "sample", "variance_type": "fixed_small_log"}  # fmt: skip
TEXT_FILE = {"hidden_size": D, "intermediate_size": 4 * D, "num_hidden_layers": 1, "num_attention_heads": 1,
             "hidden_act": "quick_gelu", "projection_dim": D, "model_type": "clip_text_model",
             "architectures": ["CLIPTextModelWithProjection"], "eos_token_id": 49407}  # fmt: skip


@pytest.fixture(scope="module")
def case():
    """Returns (arrays, specifications, tensors) of the kit's prior."""
    arrays = reference.golden("prior")
    specs = json.loads(str(arrays["spec"]))
    return arrays, specs, reference.fill_spec(specs["prior"])


def shapes(network, *args):
    """Returns {name as in diffusers' file: shape} of a network."""
    tree = jax.eval_shape(lambda: network.init(jax.random.key(0), *args))["params"]
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        kernel = path.endswith("kernel")
        out[naming.torch_name(path)] = leaf.shape[::-1] if kernel else leaf.shape
    return out


def prior_shapes():
    x, text = np.zeros((1, D), np.float32), np.zeros((1, 77, D), np.float32)
    return shapes(PriorTransformer(SMALL), x, np.zeros(1, np.float32), x, text, np.ones((1, 77), bool))


def text_shapes():
    return shapes(ProjectedTextEncoder(SMALL.text), np.zeros((1, 77), np.int32))


def karlo(folder, text="text_encoder"):
    """Writes a small prior as Karlo's folder has it, or StableUnCLIPPipeline's."""
    for name, file, tensors in (
        ("prior", PRIOR_FILE, reference.fill_all(prior_shapes())),
        (text, TEXT_FILE, reference.fill_all(text_shapes(), 1)),
        ("decoder", {}, {"conv_in.weight": np.ones((1, 1), np.float32)}),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(file))
        save_file(tensors, folder / name / "model.safetensors")
    (folder / "prior_scheduler").mkdir()
    (folder / "prior_scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text('{"_class_name": "UnCLIPPipeline"}')
    return folder


def test_the_network_equals_diffusers(case):
    arrays, specs, tensors = case
    names = ("x", "t", "text_embedding", "text_hidden", "text_mask")
    got = parity_towers.prior(specs["prior"], tensors, *(arrays[f"prior/{name}"] for name in names))
    assert relative_error(got, arrays["prior/out"]) < 2e-5  # float32 rounding of two implementations


@pytest.mark.parametrize("name", ["prior_unclip", "prior_ddpm"])
def test_sampling_equals_diffusers(case, name):
    arrays, specs, tensors = case
    spec = {**specs["prior"], "scheduler": specs[name]["scheduler"]}
    names = ("x_T", "noises", "text_embedding", "text_hidden", "text_mask", "uncond_embedding", "uncond_hidden",
             "uncond_mask")  # fmt: skip
    args = (arrays[f"sample/{n}"] for n in names)
    got = parity_towers.prior_sample(spec, tensors, specs[name]["num_steps"], *args, specs[name]["scale"])
    assert relative_error(got, arrays[f"{name}/out"]) < 2e-5  # float32; a hundredth more of x makes 1e-4


def test_timesteps_are_those_of_diffusers():
    assert make_rows(SMALL, 5).timestep.tolist() == [999, 749, 500, 250, 0]  # round(i * 999 / (n - 1))
    ddpm = PriorConfig(scheduler="ddpm")
    assert make_rows(ddpm, 5).timestep.tolist() == [800, 600, 400, 200, 0]
    assert make_rows(SMALL, 1).timestep.tolist() == [999]


@pytest.mark.parametrize("steps", [1, 2, 25, 1000])
def test_the_right_guess_leads_to_itself(steps):
    """If the network knows x0, the last step leaves x0 exactly, and on the way x is as noisy as it should be."""
    rows = make_rows(SMALL, steps)
    a, coef = alphas_cumprod(ScheduleConfig(kind="squaredcos")), rows.coef
    mean, variance = 1.0, 1 / a[int(rows.timestep[0])] - 1
    for i in range(steps):
        mean = float(coef.calls[i, 0]) + float(coef.base[i]) * mean
        variance = float(coef.base[i]) ** 2 * variance + float(coef.noise[i]) ** 2
        after = a[int(rows.timestep[i + 1])] if i + 1 < steps else 1
        assert mean == pytest.approx(1, abs=1e-5)
        assert variance == pytest.approx(1 / after - 1, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("steps", [0, 1001])
def test_numbers_of_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match=f"1 to 1000 steps; got {steps}"):
        make_rows(SMALL, steps)


@pytest.mark.parametrize("text", ["text_encoder", "prior_text_encoder"])
def test_a_folder_is_read_whole(tmp_path, text):
    folder = karlo(tmp_path / "karlo", text)
    config, params, tokenizer = convert.load_prior(folder)
    assert config == SMALL
    assert tokenizer.encode("a cat") == Tokenizer().encode("a cat")
    stored = reference.fill_all(prior_shapes())
    assert np.array_equal(params["prior"]["clip_std"], stored["clip_std"])
    assert np.array_equal(params["prior"]["proj_in"]["kernel"], stored["proj_in.weight"].T)
    words = reference.fill_all(text_shapes(), 1)
    assert np.array_equal(params["text"]["text_projection"]["kernel"], words["text_projection.weight"].T)


def test_a_folder_that_is_no_prior_is_refused_by_name(tmp_path):
    folder = karlo(tmp_path / "karlo")
    tensors = dict(convert.read(folder / "prior"))
    del tensors["transformer_blocks.1.ff.net.0.proj.bias"]
    tensors["norm_in.weight"] = np.ones(64, np.float32)
    save_file({name: np.array(array) for name, array in tensors.items()}, folder / "prior/model.safetensors")
    with pytest.raises(CheckpointError, match="2 .*net.0.proj.bias is missing; prior/norm_in.weight .64. is unk"):
        convert.load_prior(folder)
    with pytest.raises(CheckpointError, match="holds no prior"):
        convert.load_prior({"weight": np.ones(3, np.float32)})


@pytest.mark.parametrize(
    ("file", "scheduler", "message"),
    [
        ({"added_emb_type": None}, {}, "added_emb_type is 'prd'"),
        ({"num_embeddings": 729}, {}, "num_embeddings is 77"),
        ({}, {"prediction_type": "epsilon"}, "prediction_type is 'sample'"),
        ({}, {"_class_name": "DDIMScheduler"}, "its class is UnCLIPScheduler or DDPMScheduler"),
    ],
)
def test_other_priors_are_refused(file, scheduler, message):
    with pytest.raises(ConfigError, match=message):
        prior_from_diffusers({**PRIOR_FILE, **file}, {**SCHEDULER, **scheduler}, SMALL.text)


@pytest.mark.slow
def test_an_embedding_depends_on_its_own_seed_and_prompt(tmp_path):
    prior = Prior.load(karlo(tmp_path / "karlo"))
    both = prior.embed(["a cat", "a dog"], [1, 2], num_steps=3)
    assert both.shape == (2, D)
    np.testing.assert_allclose(prior.embed(["a dog"], [2], num_steps=3)[0], both[1], rtol=1e-4, atol=1e-4)
    assert np.abs(prior.embed(["a dog"], [3], num_steps=3)[0] - both[1]).max() > 1e-2
    assert np.abs(prior.embed(["a cat"], [2], num_steps=3)[0] - both[1]).max() > 1e-4
    unguided = prior.embed(["a dog"], [2], num_steps=3, guidance_scale=1)
    np.testing.assert_allclose(  # the empty prompt's guess and the prompt's are mixed: of equal ones nothing changes
        prior.embed([""], [2], num_steps=3, guidance_scale=7.0), prior.embed([""], [2], num_steps=3, guidance_scale=1),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    assert np.abs(unguided[0] - both[1]).max() > 1e-4
    with pytest.raises(ValueError, match="one seed and one negative prompt for each prompt"):
        prior.embed(["a", "b"], [1])


def test_the_mask_ends_with_the_first_end_token(tmp_path):
    prior = Prior.load(karlo(tmp_path / "karlo"))
    told = prior.encode(["a cat", ""])
    assert told.context_length.tolist() == [4, 2]  # start, words, end


@pytest.mark.torch
@pytest.mark.filterwarnings("default")
def test_network_and_text_encoder_equal_diffusers_and_transformers(tmp_path):
    import diffusers
    import torch
    import transformers

    folder = karlo(tmp_path / "karlo")
    (folder / "prior/model.safetensors").rename(folder / "prior/diffusion_pytorch_model.safetensors")
    config, params, tokenizer = convert.load_prior(folder)
    peer, info = diffusers.PriorTransformer.from_pretrained(folder / "prior", output_loading_info=True)
    assert not [names for names in info.values() if names]
    words, info = transformers.CLIPTextModelWithProjection.from_pretrained(
        folder / "text_encoder", output_loading_info=True
    )
    assert not [names for names in info.values() if names]
    prior = Prior(config, params, tokenizer)
    told = prior.encode(["a photograph of a cat", "trees"])
    mask = np.arange(77) < np.asarray(told.context_length)[:, None]
    ids = tokenizer(["a photograph of a cat", "trees"], length=77, pad_token_id=49407)
    x, t = np.random.default_rng(0).normal(size=(2, D)).astype(np.float32), np.array([999, 40])
    with torch.no_grad():
        theirs = words(torch.from_numpy(ids.astype(np.int64)))
        assert relative_error(told.label, theirs.text_embeds.numpy()) < 2e-5
        assert relative_error(told.context, theirs.last_hidden_state.numpy()) < 2e-5
        want = peer(torch.from_numpy(x), torch.from_numpy(t), theirs.text_embeds, theirs.last_hidden_state,
                    torch.from_numpy(mask)).predicted_image_embedding.numpy()  # fmt: skip
    got = PriorTransformer(config).apply(
        {"params": params["prior"]}, x, t.astype(np.float32), told.label, told.context, mask
    )
    assert relative_error(got, want) < 2e-5
