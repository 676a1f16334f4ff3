import dataclasses
import functools
import json
import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import picture_sets
import pytest

import sdjax
from sdjax.config import ConfigError
from sdjax.nn import latent_from_moments
from sdjax.pipeline.placement import make_mesh
from sdjax.scripts.cache_latents import make_parser
from sdjax.scripts.main import main
from sdjax.train import training_set
from sdjax.train.config import DataConfig
from sdjax.train.data import cache
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.cache import CacheSettings, LatentWriter, cache_statistics, write_shards
from sdjax.train.data.cached import Cached
from sdjax.train.data.loader import Loader, TooManyBadPictures
from sdjax.train.data.pictures import Part, Pictures
from sdjax.train.data.records import SourceError
from sdjax.train.data.tags import CaptionConfig

import models

SIZES = ((64, 64), (64, 64), (128, 64))


def writer(folder, count=13, broken=(), parts=None, crop="random", **settings):
    source = picture_sets.Numbers(count, SIZES, broken=broken)
    pictures = Pictures(parts or [Part(source)], Buckets(((64, 64), (96, 48))), crop=crop, flip=0.5)
    settings = CacheSettings(**({"shard_size": 5} | settings))
    return LatentWriter(models.pipeline(), pictures, folder, settings, batch_size=8)


def records(folder):
    """Everything in a cache, by key and variant."""
    cached = Cached(folder)
    return {
        (loaded["key"], visit): loaded
        for stream in cached.streams
        for index in stream.members
        for visit in range(cached.caches[0].manifest["variants"])
        for loaded in [cached.load(0, int(index), stream.size, visit, 0)]
    }


def test_moments_are_the_autoencoder_s_of_the_pictures_that_training_would_see(tmp_path):
    one = writer(tmp_path, variants=2, seed=3)
    write_shards(one)
    found = records(tmp_path)
    assert len(found) == 26
    pipe = models.pipeline()
    for stream in one.pictures.streams[1:]:  # the wide ones
        for index in stream.members[:2]:
            for visit in range(2):
                example = one.pictures.load(0, int(index), stream.size, visit, 3)
                latent = np.asarray(
                    pipe.encode_image(example["image"][None] / np.float32(127.5) - 1, mesh=make_mesh(jax.devices()[:1]))
                )[0]
                loaded = found[example["key"], visit]
                moments = loaded["moments"].astype(np.float32)[None]
                again = latent_from_moments(moments, None, pipe.config.vae.scale_factor)
                np.testing.assert_allclose(again[0], latent, rtol=2**-10, atol=1e-5)  # float16 keeps 11 bits
    key = "numbers/5"
    ids = pipe.tokenizer(["numbers 5"], length=77, pad_token_id=pipe.config.text.pad_token_id)[0]
    assert found[key, 0]["ids"].tolist() == list(ids)
    assert found[key, 0]["moments"].tobytes() != found[key, 1]["moments"].tobytes()  # another crop


def test_text_can_be_kept_encoded(tmp_path):
    write_shards(writer(tmp_path, count=4, text="context"))
    found = records(tmp_path)
    pipe = models.pipeline()
    expected = pipe.encode_prompt(["numbers 2"], mesh=make_mesh(jax.devices()[:1]))[0]
    np.testing.assert_allclose(found["numbers/2", 0]["context"], expected, rtol=2**-10, atol=1e-4)
    assert found["numbers/2", 0]["context"].dtype == np.float16


def test_shards_are_the_same_in_any_order_on_any_machine_and_after_a_stop(tmp_path):
    whole = writer(tmp_path / "a")
    write_shards(whole)
    for share in ((2, 3), (0, 3)):
        write_shards(writer(tmp_path / "b"), share)
    with pytest.raises(SourceError, match="is not finished: 1 of 3 shards are missing, such as latents-00001"):
        Cached(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").glob("*.array_record")}
    write_shards(writer(tmp_path / "b"))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    a, b = records(tmp_path / "a"), records(tmp_path / "b")
    assert a.keys() == b.keys()
    for key in a:
        assert a[key]["moments"].tobytes() == b[key]["moments"].tobytes()
    assert cache_statistics(tmp_path / "a") == cache_statistics(tmp_path / "b")


def test_a_shard_that_was_interrupted_leaves_no_name_behind(tmp_path, monkeypatch):
    one = writer(tmp_path)

    def stop(self, captions):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LatentWriter, "_texts", stop)
        with pytest.raises(KeyboardInterrupt):
            one.make(0)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    one.make(0)
    assert one.done(0)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"variants": 2}, {"text": "context"}, {"shard_size": 4}, {"count": 14}]
)
def test_a_folder_of_other_settings_or_data_is_refused(tmp_path, change):
    writer(tmp_path)
    with pytest.raises(SourceError, match="made with other settings .*; use the old settings"):
        writer(tmp_path, **change)


def test_another_autoencoder_is_refused_and_another_text_encoder_only_where_it_matters(tmp_path):
    one = writer(tmp_path / "ids")
    two = writer(tmp_path / "context", text="context")
    for part, refused in (("text", [two]), ("vae", [one, two])):
        params = dict(models.pipeline().params)
        params[part] = jax.tree.map(lambda leaf: leaf + np.float32(2**-20), params[part])
        for old in (one, two):
            pipe = sdjax.pipeline.model.Pipeline(config=models.TINY, params=params, tokenizer=old.pipe.tokenizer)
            arguments = (pipe, old.pictures, old.folder, old.settings)
            if old in refused:
                with pytest.raises(SourceError, match="other settings .model"):
                    LatentWriter(*arguments)
            else:
                LatentWriter(*arguments)


def test_too_many_bad_pictures_leave_their_shard_to_be_made_again(tmp_path):
    one = writer(tmp_path, count=40, broken=range(12), shard_size=40)
    with pytest.raises(TooManyBadPictures, match="12 of shard 0's 40 pictures .* more than 1.00%"):
        one.make(0)
    assert not one.done(0)
    mended = writer(tmp_path, count=40, shard_size=40)
    mended.make(0)
    assert mended.done(0)


def test_a_cache_of_another_model_is_not_trained_on(tmp_path):
    one = writer(tmp_path / "ids", count=9)
    two = writer(tmp_path / "context", count=9, text="context")
    for made in (one, two):
        for k in range(made.shards):
            made.make(k)
    pipe = models.pipeline()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pipe.params)  # held in another type it is the same

    def open_cache(folder, params=half, config=pipe.config):
        data = DataConfig(cached=(str(folder),))
        return training_set.make_loader(data, config, pipe.tokenizer, batch_size=2, seed=0, params=params)

    for made in (one, two):
        open_cache(made.folder)
    other = jax.tree.map(lambda leaf: leaf * 1.01, pipe.params)
    with pytest.raises(ConfigError, match="latents of another autoencoder"):
        open_cache(one.folder, {**half, "vae": other["vae"]})
    open_cache(one.folder, {**half, "text": other["text"]})
    with pytest.raises(ConfigError, match="output of another text encoder"):
        open_cache(two.folder, {**half, "text": other["text"]})
    text = dataclasses.replace(pipe.config.text, pad_token_id=0)
    with pytest.raises(ConfigError, match="tokens for another text encoder"):
        open_cache(one.folder, config=dataclasses.replace(pipe.config, text=text))


def test_statistics_are_those_of_the_latents(tmp_path):
    write_shards(writer(tmp_path, broken=(2, 7)))
    found = cache_statistics(tmp_path)
    moments = [loaded["moments"].astype(np.float64).reshape(-1, 8) for loaded in records(tmp_path).values()]
    mean, logvar = np.split(np.concatenate(moments), 2, axis=-1)
    assert found["records"] == 11
    assert sum(found["bad"].values()) == 2
    np.testing.assert_allclose(found["mean"], mean.mean(0), rtol=1e-9)
    variance = np.exp(logvar).mean(0) + mean.var(0)
    np.testing.assert_allclose(found["std"], np.sqrt(variance), rtol=1e-9)
    drawn = mean + np.exp(logvar / 2) * np.random.default_rng(0).normal(size=mean.shape)
    assert 1 / found["scale_factor"] == pytest.approx(drawn.std(), rel=0.05)  # of 11 x 64 x 4 draws


def test_the_loader_takes_latents_as_it_takes_pictures(tmp_path):
    write_shards(writer(tmp_path, count=40, variants=2))

    def loader(process=(0, 1), **options):
        return Loader(Cached(tmp_path, least=4, **options), batch_size=4, seed=1, process=process)

    one = loader()
    shapes = set()
    for n in range(2 * one.batches_per_epoch):
        batch = one.batch(n)
        shapes.add(batch["moments"].shape)
        halves = [loader((p, 2)).batch(n) for p in range(2)]
        np.testing.assert_array_equal(np.concatenate([half["moments"] for half in halves]), batch["moments"])
        assert batch["ids"].shape == (4, 77)
        assert batch["caption"] == [key.replace("/", " ") for key in batch["key"]]
    assert shapes == {(4, 8, 8, 8), (4, 6, 12, 8)}
    few = loader(where="number < 20")
    assert few.examples.left_out["filtered by number < 20"] == 20
    assert {float(key.split("/")[1]) < 20 for n in range(9) for key in few.batch(n)["key"]} == {True}
    again = pickle.loads(pickle.dumps(one.make))
    np.testing.assert_array_equal(again(3).batch["moments"], one.batch(3)["moments"])


def test_captions_of_a_cache_change_too(tmp_path):
    write_shards(writer(tmp_path / "ids", count=8))
    pipe, captions = models.pipeline(), CaptionConfig(prefix="a photo of")

    def loader(name, captions):
        data = DataConfig(cached=(str(tmp_path / name),), captions=captions)
        return training_set.make_loader(data, pipe.config, pipe.tokenizer, batch_size=4, seed=1)

    plain, changed = (loader("ids", how).batch(0) for how in (CaptionConfig(), captions))
    assert changed["caption"] == [f"a photo of {caption}" for caption in plain["caption"]]
    ids = pipe.tokenizer(changed["caption"], length=77, pad_token_id=pipe.config.text.pad_token_id)
    np.testing.assert_array_equal(changed["ids"], ids)
    write_shards(writer(tmp_path / "context", count=8, text="context"))
    with pytest.raises(SourceError, match="holds captions as context, which cannot change"):
        loader("context", captions)


def test_sizes_with_too_few_latents_are_left_out(tmp_path):
    write_shards(writer(tmp_path, count=9))
    cached = Cached(tmp_path, least=4)
    assert [stream.size for stream in cached.streams] == [(64, 64)]
    assert cached.left_out == {"96 x 48 has fewer than 4": 3}
    with pytest.raises(SourceError, match="hold no size of which there are 7"):
        Cached(tmp_path, least=7)


def test_flipped_bits_never_load(tmp_path):
    """Each record is read whole or refused; one that another stands in for is counted."""
    write_shards(writer(tmp_path, count=4, shard_size=4))
    before = records(tmp_path)
    (path,) = tmp_path.glob("*.array_record")
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(data), 40):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            cached = Cached(tmp_path)
        except SourceError:
            refused += 1
            continue
        for stream in cached.streams:
            for index in stream.members:
                try:
                    loaded = cached.load(0, int(index), stream.size, 0, 0)
                except cache.BadPicture:
                    refused += 1
                    continue
                assert loaded["moments"].tobytes() == before[loaded["key"], 0]["moments"].tobytes()
    assert refused > 0


def test_caches_of_different_models_do_not_go_together(tmp_path):
    for name in ("a", "b"):
        write_shards(writer(tmp_path / name, count=4))
    Cached([tmp_path / "a", tmp_path / "b"], repeats=[1, 3])
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest | {"model": "another"}))
    with pytest.raises(SourceError, match="made with another model"):
        Cached([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(SourceError, match="is no cache of latents"):
        Cached(tmp_path)


def test_the_command_makes_a_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sdjax, "load", lambda path, dtype: models.pipeline())
    folder = picture_sets.write_folder(tmp_path / "in", 7, sizes=((64, 64), (128, 64)), score=[1, 2, 3, 4, 5, 6, 7])
    arguments = [str(tmp_path / "out"), "--folder", str(folder), "--where", "score > 1", "--buckets", "--side", "64",
                 "--bucket-step", "16", "--shard-size", "4"]  # fmt: skip
    assert main(["cache-latents", *arguments, "--shard", "1/2"]) == 0
    assert "1 of 2 shards" in capsys.readouterr().out
    assert main(["cache-latents", *arguments]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 shards, 6 records" in out
    assert "the model's scale factor: 0.18215" in out
    assert {stream.size for stream in Cached(tmp_path / "out").streams} == {(64, 64), (80, 48)}
    for wrong, sentence in (
        (["--shard", "2/2"], "--shard must be I/N with I from 0"),
        (["--bucket-step", "20"], "step is a multiple of 8"),
        (["--where", "scores > 1"], "did you mean 'score'"),
        (["--flip", "0.5"], "made with other settings"),
        (["--seed", "4"], "--seed has no effect because nothing is random"),
    ):
        given = (
            arguments
            if wrong[0] not in arguments
            else [*arguments[: (at := arguments.index(wrong[0]))], *arguments[at + 2 :]]
        )
        assert main(["cache-latents", *given, *wrong]) == 2
        assert sentence in capsys.readouterr().err


def test_the_manual_names_flags_that_there_are():
    flags = {flag for action in make_parser()._actions for flag in action.option_strings}
    page = Path(__file__).parents[2] / "docs" / "training-data.md"
    assert (
        set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text())) - {"--runner", "--set"} <= flags
    )  # Beam's, and that of `sdjax train`


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_beam_makes_the_same_shards(tmp_path):
    pytest.importorskip("apache_beam")
    from sdjax.train.data.beam import make_shards

    write_shards(writer(tmp_path / "a"))
    make_shards(functools.partial(writer, tmp_path / "b"), range(3))
    a, b = records(tmp_path / "a"), records(tmp_path / "b")
    assert a.keys() == b.keys()
    assert all(a[key]["moments"].tobytes() == b[key]["moments"].tobytes() for key in a)
