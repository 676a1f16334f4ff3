"""What learns beside a fixed model: low-rank changes and vectors of new words."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters import patched
from sdjax.adapters.attached import ROWS, Attached
from sdjax.config import ConfigError
from sdjax.convert.adapters.load import load_adapter
from sdjax.description import build
from sdjax.loading.trainable import attach, by_path, trainable_of
from sdjax.loading.trainable.low_rank import LoRATraining
from sdjax.loading.trainable.products import LoHaTraining, LoKrTraining, OFTTraining
from sdjax.nn.layers.conv import Conv
from sdjax.nn.layers.dense import Dense
from sdjax.train.config import TrainConfig
from sdjax.train.optim import OptimConfig, make_optimizer

from tests.train.models_to_train import TINY

KEY = jax.random.key(0)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


BASE = {
    "unet": {
        "attentions_0": {"to_q": {"kernel": normal(0, 6, 8)}, "proj_in": {"kernel": normal(1, 6, 6)}},
        "resnets_0": {"conv1": {"kernel": normal(2, 3, 3, 5, 7), "bias": normal(3, 7)}},
    },
    "text": {"self_attn": {"q_proj": {"kernel": normal(4, 4, 4), "bias": normal(5, 4)}}},
}


def moved(trained, seed=9):
    """The same tree after some training: every factor is somewhere else."""
    leaves = by_path(trained).items()
    return {
        path: leaf + ("start_" not in path) * normal(seed + i, *leaf.shape) for i, (path, leaf) in enumerate(leaves)
    }


def nested(leaves):
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(leaves, sep="/")


KINDS = [
    {"kind": "lora"}, {"kind": "lora", "dora": True}, {"kind": "lora", "pissa": True},
    {"kind": "lora", "rslora": True, "alpha": 3.0}, {"kind": "loha"}, {"kind": "lokr"}, {"kind": "lokr", "full": True},
    {"kind": "oft", "size": 4, "constraint": 0.1}, {"kind": "oft"},
]  # fmt: skip


@pytest.mark.parametrize("options", KINDS)
def test_an_adapter_changes_nothing_at_first(options):
    what = trainable_of({"targets": "all", **({} if options["kind"] == "oft" else {"rank": 1}), **options})
    whole = what.assemble(what.init(BASE, KEY), BASE)
    for path, leaf in by_path(BASE).items():
        np.testing.assert_allclose(by_path(whole)[path], leaf, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"pissa": True, "alpha": 1.0}, {"dora": True, "pissa": True}])
@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_beside_the_kernel_is_as_inside_it(layer, options):
    if layer == "dense":
        x, module, path = normal(1, 2, 4), Dense(4), ("text", "self_attn", "q_proj")
    else:
        x, module, path = normal(1, 1, 4, 4, 5), Conv(7, strides=(2, 2)), ("unet", "resnets_0", "conv1")
    what = LoRATraining("all", rank=2, **options)
    trained = nested(moved(what.init(BASE, KEY)))

    def run(trees):
        for name in path:
            trees = trees[name]
        with patched([Attached()]):
            return module.apply({"params": trees}, x)

    inside, beside = run(what.assemble(trained, BASE)), run(what.attach(trained, BASE))
    assert float(jnp.abs(inside - run(BASE)).max()) > 0.1
    np.testing.assert_allclose(beside, inside, rtol=1e-4, atol=1e-4)


def test_loha_is_the_product_of_two_low_rank_changes_and_lokr_the_kronecker_product():
    kernel = BASE["unet"]["attentions_0"]["to_q"]["kernel"]
    for what, product in (
        (
            LoHaTraining("to_q", rank=2, alpha=1.0),
            lambda f: 0.5 * (f["down_1"] @ f["up_1"]) * (f["down_2"] @ f["up_2"]),
        ),
        (LoKrTraining("to_q", rank=1, alpha=3.0), lambda f: 3.0 * np.kron(f["first"], f["down"] @ f["up"])),
        (LoKrTraining("to_q", rank=9, alpha=3.0), lambda f: np.kron(f["first"], f["second"])),
    ):
        trained = nested(moved(what.init(BASE, KEY)))
        factors = trained["unet"]["attentions_0"]["to_q"]["kernel"]
        got = what.assemble(trained, BASE)["unet"]["attentions_0"]["to_q"]["kernel"]
        np.testing.assert_allclose(got - kernel, product(factors), rtol=1e-4, atol=1e-5)


def test_oft_rotates_and_its_constraint_limits_the_rotation():
    kernel = BASE["unet"]["attentions_0"]["to_q"]["kernel"]
    what = OFTTraining("to_q", size=4)
    trained = nested(moved(what.init(BASE, KEY)))
    got = what.assemble(trained, BASE)["unet"]["attentions_0"]["to_q"]["kernel"]
    q = np.asarray(trained["unet"]["attentions_0"]["to_q"]["kernel"]["blocks"])
    q = q - q.swapaxes(1, 2)
    rotations = (np.eye(4) + q) @ np.linalg.inv(np.eye(4) - q)
    wanted = np.concatenate([kernel[:, :4] @ rotations[0], kernel[:, 4:] @ rotations[1]], axis=1)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got @ got.T, kernel @ kernel.T, rtol=1e-4, atol=1e-5)  # lengths and angles stay
    near = OFTTraining("to_q", size=4, constraint=1e-4).assemble(trained, BASE)
    assert float(jnp.abs(near["unet"]["attentions_0"]["to_q"]["kernel"] - kernel).max()) < 0.01


def test_targets_ranks_and_scales():
    what = LoRATraining(rank=4, alpha=2.0, conv_rank=2, conv_alpha=4.0, ranks=(("^text/", 1),))
    trained = by_path(what.init(BASE, KEY))
    shapes = {path: leaf.shape for path, leaf in trained.items()}
    assert shapes["unet/attentions_0/to_q/kernel/down"] == (6, 4)
    assert shapes["unet/resnets_0/conv1/kernel/down"] == (3, 3, 5, 2)
    assert shapes["text/self_attn/q_proj/kernel/up"] == (1, 4)
    assert not any("proj_in" in path for path in shapes)
    assert what.scale_of("unet/attentions_0/to_q/kernel", (6, 8)) == 0.5
    assert what.scale_of("unet/resnets_0/conv1/kernel", (3, 3, 5, 7)) == 2.0
    assert LoRATraining(rank=4, alpha=4.0, rslora=True).scale_of("unet/to_q/kernel", (6, 8)) == 2.0
    with pytest.raises(ConfigError, match="'nowhere' matches no kernel's path"):
        LoRATraining("nowhere").init(BASE, KEY)


def test_dora_sets_the_length_of_each_output():
    what = LoRATraining("to_q", rank=2, dora=True)
    trained = nested(moved(what.init(BASE, KEY)))
    lengths = trained["unet"]["attentions_0"]["to_q"]["kernel"]["magnitude"]
    kernel = what.assemble(trained, BASE)["unet"]["attentions_0"]["to_q"]["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), jnp.abs(lengths), rtol=1e-5)


def test_pissa_starts_from_the_largest_singular_values():
    what = LoRATraining("to_q", rank=2, alpha=8.0, pissa=True)
    factors = what.init(BASE, KEY)["unet"]["attentions_0"]["to_q"]["kernel"]
    u, s, v = np.linalg.svd(np.asarray(BASE["unet"]["attentions_0"]["to_q"]["kernel"]), full_matrices=False)
    product = 4.0 * factors["down"] @ factors["up"]
    np.testing.assert_allclose(product, (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)


def test_rates_of_unknown_parts_are_refused():
    data = {"parts": [{"source": {"folder": "pictures"}}]}
    with pytest.raises(ConfigError, match="part_rates has rates of unet, text, .*; got 'txet'"):
        build(TrainConfig, {"data": data, "optim": {"steps": 1, "part_rates": {"txet": 1e-4}}})


def test_rates_of_parts_and_of_up():
    params = {"unet": {"kernel": {"down": jnp.ones((2, 2)), "up": jnp.ones((2, 2))}}, "text": {"up": jnp.ones((2, 2))}}
    config = OptimConfig(
        steps=10, learning_rate=1e-3, weight_decay=0.0, clip=None, part_rates={"text": 5e-4}, up_rate=16.0
    )
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    # AdamW's first step is as long as the rate
    np.testing.assert_allclose(updates["unet"]["kernel"]["down"], -1e-3, rtol=1e-4)
    np.testing.assert_allclose(updates["unet"]["kernel"]["up"], -16e-3, rtol=1e-4)
    np.testing.assert_allclose(updates["text"]["up"], -8e-3, rtol=1e-4)


def test_words_start_from_the_tokens_of_a_text_and_are_read_beside_the_table():
    table = {"text": {"embeddings": {"token_embedding": {"embedding": normal(0, 10, 3)}}}}
    what = trainable_of({"kind": "textual_inversion", "words": {"<cat>": 3, "sks": 1}, "initial": {"<cat>": [4, 7]}})
    trained = what.init(table, KEY)
    rows = trained["text"]["embeddings"]["token_embedding"][ROWS]
    embedding = table["text"]["embeddings"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(rows[:3], embedding[jnp.array([4, 7, 4])])
    found = what.embeddings(trained)
    assert [found[word].shape for word in what.words] == [(3, 3), (1, 3)]
    import flax.linen as nn

    params = attach(what, trained, table)["text"]["embeddings"]["token_embedding"]
    with patched([Attached()]):
        out = nn.Embed(10, 3).apply({"params": params}, jnp.array([[0, 9, 10, 13]]))
    np.testing.assert_array_equal(out[0], jnp.stack([embedding[0], embedding[9], rows[0], rows[3]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lora", "rank": 0}, "rank is a whole number from 1 up; got 0"),
        ({"kind": "lora", "alpha": -1.0}, "above 0; got -1.0"),
        ({"kind": "lora", "targets": "("}, "targets takes regular expressions"),
        ({"kind": "lora", "conv_alpha": 1.0}, "conv_alpha needs conv_rank"),
        ({"kind": "textual_inversion", "words": {"a b": 1}}, "words are texts without spaces; got 'a b'"),
        ({"kind": "textual_inversion", "words": {"cat": 76}}, "from 1 to 75 vectors; got 76"),
        ({"kind": "textual_inversion", "words": {"cat": 1}, "initial": {"dog": "x"}}, "'dog', which is none of words"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(settings, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        trainable_of(settings)


@pytest.mark.parametrize("options", KINDS)
def test_the_file_of_a_run_holds_what_it_learned(options, tmp_path):
    from sdjax.convert.containers.reading import read
    from sdjax.loading.adapter_files import write_files
    from sdjax.nn import init_params

    base = jax.eval_shape(lambda key: init_params(TINY, key), KEY)
    base = {
        part: jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), base[part]) for part in ("unet", "text")
    }
    what = trainable_of({"targets": "(attn2/to_k|q_proj|conv_in)/kernel", **options})
    trained = jax.tree.map(np.asarray, nested(moved(what.init(base, KEY))))
    settings = {"train": ["unet", "text"], "optim": {"steps": 3, "learning_rate": 1e-3, "part_rates": {"text": 5e-4}},
                "data": {}, "model": {"path": None}}  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (path,) = write_files(tmp_path, what, trained, TINY, 3)
    file = read(path)
    names = {name.partition(".")[0] for name in file.tensors}
    assert {"lora_unet_conv_in", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"} <= names
    assert len(names) == len(what.changes(trained))
    assert file.metadata["ss_text_encoder_lr"] == "0.0005"
    loaded = load_adapter(path, TINY).adapter
    for leaf, delta in what.changes(trained).items():
        kernel = by_path(base)[leaf]
        np.testing.assert_allclose(loaded[leaf].difference(kernel), delta.difference(kernel), rtol=1e-4, atol=1e-5)


def test_the_file_of_a_word_holds_its_vectors(tmp_path):
    from sdjax.convert.containers.reading import read
    from sdjax.loading.adapter_files import write_files

    table = {"text": {"embeddings": {"token_embedding": {"embedding": normal(0, 10, 16)}}}}
    what = trainable_of({"kind": "textual_inversion", "words": {"<cat>": 3, "a/b": 1, "/cat": 1}})
    trained = what.init(table, KEY)
    settings = {"train": ["text"], "optim": {"steps": 3, "learning_rate": 1e-3}, "data": {}, "model": {"path": None}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    paths = write_files(tmp_path, what, trained, TINY, 3)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "embeddings/cat.safetensors", "embeddings/ab.safetensors", "embeddings/cat-2.safetensors"
    ]  # fmt: skip
    tensors = read(paths[0])
    np.testing.assert_array_equal(tensors["<cat>"], what.embeddings(trained)["<cat>"])


@pytest.mark.parametrize("options", KINDS)
def test_every_kind_has_slopes_at_its_start(options):
    what = trainable_of({"targets": "to_q", **({} if options["kind"] == "oft" else {"rank": 2}), **options})

    def size(trained):
        kernel = what.assemble(trained, BASE)["unet"]["attentions_0"]["to_q"]["kernel"]
        return (kernel * jnp.arange(8)).sum()

    slopes = by_path(jax.grad(size)(what.init(BASE, KEY)))
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    assert any(np.any(slope) for slope in slopes.values())
