"""Adapters in pictures: merged or one for each picture of a batch, by file, from Python and by tags in prompts."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import sdjax
from sdjax import convert
from sdjax.adapters import Difference, LowRank, Strength
from sdjax.adapters.delta import AdapterError
from sdjax.adapters.families import LoHa
from sdjax.convert import CheckpointError
from sdjax.convert.adapters.write import write_adapter
from sdjax.convert.names import tables
from sdjax.prompts.extra_networks import read_tags
from sdjax.scripts.main import main
from sdjax.tasks import text_encoders
from sdjax.tasks.adapter_files import find_file
from sdjax.tasks.adapter_spans import arrays, timesteps_of
from sdjax.tasks.adapters import (
    AdapterUse,
    named_uses,
    read_use,
    split_weights,
    strength_of,
    text_params,
    unet_adapter,
    uses_in_prompt,
)
from sdjax.tasks.computing import Computing
from sdjax.tasks.group import Group
from sdjax.tasks.resolve import resolve
from sdjax.tasks.settings import from_json
from sdjax.tasks.sweep import read_axis

import models
from checks import count_compilations

FEW = {"num_steps": 3, "height": 64, "width": 64, "sampler": "euler"}


def lora(seed, rank, parts=("unet", "text"), kind=LowRank):
    """Returns random changes of the attention's projections that show in a picture."""
    rng, adapter = np.random.default_rng(seed), {}
    for part in parts:
        for leaf in tables.part_parameters(part, getattr(models.TINY, part)):
            if leaf.path.endswith(("to_q/kernel", "to_v/kernel", "q_proj/kernel", "v_proj/kernel")):
                c, d = leaf.shape
                draw = [rng.normal(size=s).astype("f") for s in ((c, rank), (rank, d), (d, rank), (rank, c)) * 2]
                if kind is LowRank:
                    adapter[leaf.path] = LowRank(draw[0] / c**0.5, draw[1] / rank**0.5, 0.8)
                else:
                    adapter[leaf.path] = LoHa(draw[2], draw[3], draw[6], draw[7], scale=0.5 / c**0.5)
    return adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    write_adapter(place / "one.safetensors", lora(1, 2), models.TINY)
    (place / "below").mkdir()
    write_adapter(place / "below" / "two.safetensors", lora(2, 3, ("unet",)), models.TINY)
    write_adapter(place / "three.safetensors", lora(3, 4), models.TINY)
    return place


def level(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


def made(pipe, *prompts, **options):
    return np.stack(list(sdjax.text_to_image(pipe, list(prompts), seed=[5] * len(prompts), **{**FEW, **options})))


def test_each_picture_of_a_batch_has_its_own_adapter_as_if_it_were_merged(folder):
    pipe = models.pipeline()
    prompts = "a cat <lora:one:0.7>", "a cat", "a cat <lora:two:-1.2><lora:one:0.2:0.5>"
    got = made(pipe, *prompts, lora_dir=str(folder))
    one, two = (convert.load_adapter(folder / name, models.TINY).adapter
                for name in ("one.safetensors", "below/two.safetensors"))  # fmt: skip
    want = [
        made(pipe.with_adapters((one, 0.7)), "a cat")[0], made(pipe, "a cat")[0],
        made(pipe.with_adapters((two, -1.2), (one, Strength(0.5, 0.2))), "a cat")[0],
    ]  # fmt: skip
    np.testing.assert_array_equal(got[1], want[1])
    for i in 0, 2:
        assert level(got[i], want[i]) <= 1
        assert level(got[i], want[1]) > 20


def test_another_adapter_and_weight_compile_nothing(folder):
    pipe = models.pipeline()
    made(pipe, "a cat <lora:one:0.7>", "a dog <lora:one>", lora_dir=str(folder))
    other = ("a cat <lora:one:1.5>", "a bird <lora:one:-0.2:0.4>")
    assert count_compilations(lambda: made(pipe, *other, lora_dir=str(folder))) == 0


def test_kinds_that_are_not_low_rank_may_differ_from_picture_to_picture_too():
    pipe, adapter = models.pipeline(), lora(4, 2, ("unet",), LoHa)
    uses = [[AdapterUse(adapter, Strength(0.9))], [AdapterUse(lora(1, 2, ("unet",)), Strength(0.6))]]
    got = made(pipe, "a cat", "a cat", adapters=uses)
    assert level(got[0], made(pipe.with_adapters((adapter, 0.9)), "a cat")[0]) <= 1
    assert level(got[1], made(pipe.with_adapters((lora(1, 2, ("unet",)), 0.6)), "a cat")[0]) <= 1
    assert level(got[0], got[1]) > 20


def test_the_command_line_merges_files_and_reads_tags(folder, tmp_path, capsys):
    convert.save(models.TINY, jax.tree.map(np.asarray, models.pipeline().params), tmp_path / "model.safetensors")
    pictures = []
    for words in (["a cat", "--lora", f"{folder / 'one.safetensors'}:0.7"],
                  ["a cat <lora:one:0.7>", "--lora-dir", str(folder)]):  # fmt: skip
        out = tmp_path / str(len(pictures))
        assert main(["txt2img", "--ckpt", str(tmp_path / "model.safetensors"), "--outdir", str(out), "--n_samples", "1",
                     "--n_iter", "1", "--skip_grid", "--steps", "3", "--H", "64", "--W", "64", "--seed", "5",
                     "--sampler", "euler", "--prompt", *words]) == 0  # fmt: skip
        picture = Image.open(next((out / "samples").glob("*.png")))
        pictures.append(np.asarray(picture))
        data = (folder / "one.safetensors").read_bytes()
        tensors = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
        prompt, *_, pairs = picture.text["parameters"].split("\n")
        assert prompt == "a cat <lora:one:0.7>"  # also of --lora: A1111 reads it so
        assert f'Lora hashes: "one: {tensors[:12]}"' in pairs
        assert json.loads(picture.text["sdjax"])["hashes"] == {"lora": {"one": tensors[:12]}}
    assert level(*pictures) <= 1
    assert "another tool" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence", "status"),
    [
        (["--prompt", "a <lora:onee>", "--lora-dir", "DIR"], "no adapter of the name 'onee'; did you mean 'one'", 2),
        (["--prompt", "a <lora:../one>", "--lora-dir", "DIR"], "no adapter of the name", 2),
        (["--prompt", "a [b:<lora:one>:1.0]", "--lora-dir", "DIR"], "is at none of the steps", 2),
        (["--prompt", "a <lora:one:x>", "--lora-dir", "DIR"], "has a number as weight", 2),
        (["--prompt", "a <lora:one:lbw=1,2>", "--lora-dir", "DIR"], "17 or 26 numbers", 2),
        (["--prompt", "a <lora:one:te=>", "--lora-dir", "DIR"], "has a weight without a number", 2),
        (["--prompt", "a", "--lora", "DIR/one.safetensors:1e30"], "from -1000 to 1000; got 1e+30", 2),
        (["--prompt", "a", "--lora", "DIR/none.safetensors"], "none.safetensors", 3),
        (["--prompt", "a <lora:one> [<lora:one:2>:0.5]", "--lora-dir", "DIR"], "the adapter one is given twice", 2),
        (
            ["--prompt", "a", *["--lora", "DIR/one.safetensors", "--lora", "DIR/./one.safetensors:0.5"]],
            "given twice",
            2,
        ),
    ],
)
def test_bad_adapters_are_one_sentence(words, sentence, status, folder, tmp_path, capsys):
    words = [word.replace("DIR", str(folder)) for word in words]
    convert.save(models.TINY, jax.tree.map(np.asarray, models.pipeline().params), tmp_path / "m.safetensors")
    got = main(["txt2img", "--ckpt", str(tmp_path / "m.safetensors"), "--outdir", str(tmp_path / "out"), "--steps", "1",
                "--n_samples", "1", "--n_iter", "1", "--H", "64", "--W", "64", *words])  # fmt: skip
    said = capsys.readouterr().err
    assert sentence in said
    assert got == status
    assert "Traceback" not in said


def test_an_adapter_works_from_its_start_to_its_end(folder):
    """Two spans that follow one another are together as the whole run."""
    pipe, plain = models.pipeline(), made(models.pipeline(), "a cat")[0]
    adapter = lora(1, 2, ("unet",))
    spans = [(0.0, 1 / 3), (1 / 3, 1.0), (0.0, 1.0)]
    uses = [[AdapterUse(adapter, Strength(2.0), "one", *span)] for span in spans]
    early, late, whole = made(pipe, *["a cat"] * 3, adapters=uses)
    assert level(whole, made(pipe.with_adapters((adapter, 2.0)), "a cat")[0]) <= 1
    pairs = (early, whole), (late, whole), (early, plain), (late, plain)
    assert min(level(a, b) for a, b in pairs) > 2  # rounding is at most 1
    both = [AdapterUse(adapter, Strength(2.0), "one", *spans[0]), AdapterUse(adapter, Strength(2.0), "one", *spans[1])]
    assert level(made(pipe, "a cat", adapters=[both])[0], whole) <= 1
    text = "[<lora:two:1>::0.4] a [cat:dog:0.5] [<lora:one:0.5>:0.7]"
    left, found = uses_in_prompt(text, str(folder), models.TINY, 10)
    assert [use.span for use in found] == [(0.0, 0.5), (0.8, 1.0)]  # A1111 changes after step `when`
    assert "<" not in left
    with pytest.raises(ValueError, match="starts or ends once"):
        uses_in_prompt("[<lora:one>|a cat]", str(folder), models.TINY, 4)
    with pytest.raises(ValueError, match="ends after its start"):
        AdapterUse(adapter, start=0.5, end=0.5)


def test_spans_of_adaptive_samplers_are_shares_of_the_timesteps():
    asked = [sdjax.Request(sampler=name, num_steps=4) for name in ("dpm_solver_adaptive", "ddim")]
    pipe = models.pipeline()
    adaptive, fixed = Group(resolve(pipe, asked), [], pipe, Computing()).timesteps
    assert len(fixed) == 4
    assert timesteps_of((0.25, 0.5), adaptive) == (749, 499)  # calls at t with 749 >= t > 499: a quarter of 1000


def test_tags_have_weights_of_networks_and_blocks(folder):
    def strength(text):
        return strength_of(read_tags(text).tags[0])

    assert strength("<lora:a>") == Strength(1.0, 1.0)
    assert strength("<lora:a:0.5>") == Strength(0.5, 0.5)
    assert strength("<lyco:a:0.5:0.2>") == Strength(0.2, 0.5)  # as in A1111: text encoder, UNet
    assert strength("<lora:a:unet=0.3:te=0.4>") == Strength(0.3, 0.4)
    assert strength(f"<lora:a:0.5:lbw={','.join('1' * 17)}>") == Strength(0.5, 0.5, (1.0,) * 17)
    text, uses = uses_in_prompt("a <lora:one:0.5> b", str(folder), models.TINY)
    assert (text, uses[0].strength, uses[0].name) == ("a  b", Strength(0.5, 0.5), "one")
    assert uses_in_prompt("a <lora:one:0.5> b", None, models.TINY) == ("a <lora:one:0.5> b", ())


def test_files_are_found_below_the_folder_and_weights_are_split_off(folder):
    assert find_file(str(folder), "two") == folder / "below" / "two.safetensors"
    file = str(folder / "one.safetensors")
    assert split_weights(file) == (file, Strength())
    assert split_weights(f"{file}:0.5") == (file, Strength(0.5))
    assert split_weights(f"{file}:0.5:0") == (file, Strength(0.5, 0.0))
    with pytest.raises(ValueError, match="FILE:WEIGHT"):
        split_weights(f"{file}:much")


def test_of_two_files_of_one_name_that_of_the_first_folder_by_name_is_found(tmp_path):
    for name in "bcdae":
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.safetensors").touch()
    assert find_file(str(tmp_path), "one") == tmp_path / "a" / "one.safetensors"


def test_an_escaped_bracket_before_a_tag_opens_nothing(folder):
    text, uses = uses_in_prompt(r"a \[ sign <lora:one:0.7>", str(folder), models.TINY)
    assert text == r"a \[ sign"
    assert [use.strength.unet for use in uses] == [0.7]


def test_a_change_of_a_layer_that_the_unet_lacks_is_refused_by_name():
    [delta, *_] = lora(4, 2, ("unet",), LoHa).values()
    with pytest.raises(AdapterError, match="changes nowhere/kernel, which this UNet does not have"):
        unet_adapter([AdapterUse({"unet/nowhere/kernel": delta})], models.pipeline().params["unet"])


def test_an_adapter_that_one_picture_has_with_all_others_is_kept_once(folder):
    """Pictures with weights of their own, and without it; other weights compile nothing."""
    pipe, adapter = models.pipeline(), lora(1, 2)

    def uses(*weights):
        return [[AdapterUse(adapter, Strength(one))] if one else [] for one in weights]

    own = [list(one) for one in uses(0.7, 0.0, -1.0)]
    ((shared, factors),) = arrays([*own[:1], own[2]], [np.arange(3)] * 2, pipe.params["unet"])
    assert {leaf.ndim for leaf in jax.tree.leaves(shared.layers)} == {0, 2}  # no axis for pictures
    assert {one.shape[0] for one in factors.of_shared.values()} == {2}
    ((nothing, _),) = arrays([own[0], [AdapterUse(lora(2, 2))]], [np.arange(3)] * 2, pipe.params["unet"])
    assert nothing is None
    got = made(pipe, *["a cat"] * 2, adapters=uses(0.7, -1.0))
    want = made(pipe.with_adapters((adapter, -1.0)), "a cat")[0]
    assert level(got[1], want) <= 1
    assert count_compilations(lambda: made(pipe, *["a cat"] * 2, adapters=uses(0.2, 1.5))) == 0


def test_the_text_encoder_is_merged_once_for_all_groups_and_calls(monkeypatch):
    pipe, merged = models.pipeline(), []
    adapter, other = lora(1, 2), lora(2, 2)
    monkeypatch.setattr(text_encoders, "text_params", lambda *args: merged.append(1) or text_params(*args))

    def use(one, weight=1.0):
        return [AdapterUse(one, Strength(weight))]

    for _ in range(2):
        made(pipe, *["a cat"] * 4, adapters=[use(adapter), use(adapter), use(other), use(adapter)], at_once=2)
    assert len(merged) == 2
    made(pipe, "a cat", adapters=[use(adapter, 0.5)])
    assert len(merged) == 3


def test_changes_of_biases_and_norms_differ_from_picture_to_picture(folder):
    pipe = models.pipeline()
    bias = pipe.params["unet"]["conv_out"]["bias"]
    change = {"unet/conv_out/bias": Difference(np.linspace(-1, 1, len(bias), dtype="f"))}
    got = made(pipe, "a cat", "a cat", adapters=[[AdapterUse(change, Strength(0.5))], []])
    assert level(got[0], made(pipe.with_adapters((change, 0.5)), "a cat")[0]) <= 1
    np.testing.assert_array_equal(got[1], made(pipe, "a cat")[0])
    assert level(got[0], got[1]) > 20


def test_names_in_a_setting_are_as_tags_in_the_prompt(folder):
    def uses(names):
        return [(use.name, use.strength) for use in named_uses(names, str(folder), models.TINY)]

    assert uses("one:0.7 + two:-1:0.5") == [("one", Strength(0.7)), ("two", Strength(-1.0, 0.5))]
    assert uses(None) == []
    assert [axis.values for axis in [read_axis("lora=one:0.7,one+two,null")]] == [("one:0.7", "one+two", None)]
    assert from_json('{"prompt": "a", "loras": "one:0.7"}') == {"prompt": "a", "loras": "one:0.7"}
    for names, said in (("onee", "did you mean 'one'"), ("one:x", "a LoRA is NAME"), ("one:1:1:1", "a LoRA is NAME")):
        with pytest.raises(ValueError, match=said):
            uses(names)
    pipe = models.pipeline()
    with pytest.raises(ValueError, match="loras are names of files in lora_dir"):
        resolve(pipe, [sdjax.Request(loras="one")])
    by_name, by_tag = (resolve(pipe, [sdjax.Request(lora_dir=str(folder), **given)])[0].adapters[0]
                       for given in ({"loras": "one:0.7"}, {"prompt": "<lora:one:0.7>"}))  # fmt: skip
    assert by_name.adapter is by_tag.adapter
    assert by_name.strength.unet == by_tag.strength.unet == 0.7


def test_the_folder_of_a_training_is_its_adapter_with_the_words_that_it_learned(folder, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "base.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has written no adapter.safetensors: .* \(--ckpt\)"):
        read_use(str(tmp_path), models.TINY)
    shutil.copy(folder / "one.safetensors", tmp_path / "adapter.safetensors")
    (tmp_path / "embeddings").mkdir()
    save_file({"<cat>": np.ones((2, models.TINY.text.width), "f")}, tmp_path / "embeddings" / "cat.safetensors")
    use = read_use(f"{tmp_path}:0.5", models.TINY)
    assert (use.name, use.strength) == (tmp_path.name, Strength(0.5))
    assert {word: rows.shape for word, rows in use.embeddings.items()} == {"<cat>": (2, models.TINY.text.width)}
    assert use.adapter.keys() == lora(1, 2).keys()


def test_what_an_alpha_of_0_and_dora_mean_can_be_chosen(folder):
    """Also by --compat diffusers, which has DoRA as PEFT trains it."""

    def read_as(**given):
        pipe = models.pipeline()
        return resolve(pipe, [sdjax.Request(adapters=[str(place)], **given)])[0].adapters[0].adapter[path]

    path = "unet/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
    (leaf,) = (one for one in tables.part_parameters("unet", models.TINY.unet) if one.path == path)
    c, d = leaf.shape
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    place = folder.parent / "special.safetensors"
    ones = {"lora_down.weight": np.ones((2, c), "f"), "lora_up.weight": np.ones((d, 2), "f")}
    save_file({f"{name}.{key}": value for key, value in {**ones, "alpha": np.zeros((), "f")}.items()}, place)
    assert [read_as(**given).scale for given in ({}, {"alpha_0": "rank"})] == [0, 1]
    save_file({f"{name}.{key}": value for key, value in {**ones, "dora_scale": np.ones((d, 1), "f")}.items()}, place)
    kinds = [read_as(**given).convention for given in ({}, {"dora": "trainer"}, {"compat": "diffusers"},
                                                       {"compat": "diffusers", "dora": "linear"})]  # fmt: skip
    assert kinds == ["linear", "lycoris", "lycoris", "linear"]
    with pytest.raises(ValueError, match="dora is one of linear, trainer; got 'half'"):
        sdjax.Request(dora="half")
