"""Kinds of paths: local paths, addresses that can be reached, and addresses that are refused with a message."""

import os
import pathlib

import numpy as np
import pytest

import sdjax
from sdjax import convert, pictures
from sdjax.loading.run_layout import is_run, workdir
from sdjax.pictures import image
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.scripts.main import main
from sdjax.storage import addresses, buckets, files
from sdjax.storage.addresses import AddressError
from sdjax.train.data.sources import open_source

OF_BUCKETS = ("gs://bucket/run", "GS://bucket/run", "s3://bucket/run/", b"gs://bucket/run")
REFUSED = (
    "gs:/bucket/run", "s3:/run", "gs://", "gs:///run", "file:///tmp/x", "file:/tmp/x", "http://a.org/x", "HTTP://a/x",
    "https:/a.org/x", "ftp://a/x", "hf:/owner/name", "az://a/x", "memory://x", "sftp://h/x", "simplecache::gs://b/x",
    " gs:/bucket/x", "abfss://a/b", "dbfs:/x", "gs:bucket/run", "gs:",
)  # fmt: skip
LOCAL = ("run", "./gs:/bucket", "C:/x", "C:\\x", "c:x", "/a/gs://b", "a b:c", "16:9/x", "", "tfds:name", "~/x")


@pytest.mark.parametrize("path", OF_BUCKETS)
def test_gs_and_s3_can_be_reached(path):
    assert addresses.remote(path)
    with pytest.raises(AddressError, match="a path of this computer"):
        addresses.local(path)


@pytest.mark.parametrize("path", REFUSED)
def test_every_other_address_is_refused(path):
    for given in (path, pathlib.PurePosixPath(path)):
        with pytest.raises(AddressError) as error:
            addresses.remote(given)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", LOCAL)
def test_paths_of_this_computer_are_none(path):
    assert not addresses.remote(path)
    assert addresses.local(path) == path


def test_pathlib_leaves_one_slash_and_is_told_so():
    with pytest.raises(AddressError, match="gs://bucket/run, as text"):
        addresses.remote(pathlib.Path("gs://bucket/run"))


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty folder to be in, which has to be empty afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert os.listdir(tmp_path) == []


PIXELS = np.zeros((1, 8, 8, 3), np.uint8)
CALLS = {
    "save_png": lambda path: image.save_png(path, PIXELS[0]),
    "save_numbered": lambda path: image.save_numbered(path, PIXELS[0]),
    "new_folder": image.new_folder,
    "write_file": lambda path: files.write_file(path, b""),
    "check_folder": lambda path: files.check_folder(path, "writing into"),
    "tokenizer": Tokenizer.load,
    "save tokenizer": lambda path: Tokenizer().save(path),
    "vocabulary": Tokenizer.from_vocabulary,
    "open": pictures.open_picture,
    "list_pictures": pictures.list_pictures,
    "config": lambda path: convert.load({}, config=path),
}


@pytest.mark.parametrize("scheme", ["gs", "s3", "http", "file", "az"])
@pytest.mark.parametrize("name", CALLS)
def test_what_needs_a_path_of_this_computer_says_so(name, scheme, nowhere):
    with pytest.raises(ValueError, match=f"{scheme}://bucket/x is an address"):
        CALLS[name](f"{scheme}://bucket/x")


MODELS = {
    "load": sdjax.load,
    "convert.load": convert.load,
    "read": convert.read,
    "inspect": convert.inspect,
    "Prior": lambda path: sdjax.Prior.load(path),
    "safety": lambda path: sdjax.SafetyChecker.load(path),
    "perceptual": lambda path: convert.load_lpips(path),
    "discriminator": lambda path: convert.load_discriminator(path),
    "data": lambda path: open_source({"folder": path}),
    "records": lambda path: open_source({"records": path}),
    "tars": lambda path: open_source({"tars": path}),
    "workdir": workdir,
}


@pytest.mark.parametrize("name", MODELS)
def test_other_addresses_are_refused_where_a_bucket_may_be(name, nowhere):
    for path in ("az://bucket/x", "gs:/bucket/x", "unknown://x"):
        with pytest.raises(ValueError, match=path):
            MODELS[name](path)


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs")])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "workdir"])
def test_the_package_that_is_missing_is_named(name, scheme, package, nowhere, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.setattr("fsspec.filesystem", _without(package))
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}"):
        MODELS[name](f"{scheme}://bucket/x")


def _without(package):
    def filesystem(kind):
        raise ImportError(f"Please install {package}")

    return filesystem


COMMANDS = {
    "from-file": "txt2img --from-file {}",
    "outdir": "txt2img --outdir {}",
    "config": "txt2img --config {}",
    "init-img": "img2img --init-img {} --prompt x",
    "mask": "inpaint --init-img a.png --mask {} --prompt x",
    "depth": "depth2img --init-img a.png --depth {}",
    "upscale": "upscale --init-img {}",
    "variations": "variations --init-img {}",
    "animate": "animate --prompt a --outdir {}",
    "watermark": "watermark {}",
    "watermarked": "watermark a.png --embed x --outdir {}",
    "latents": "cache-latents {} --folder x",
    "manifest": "convert a b --manifest {}",
    "benchmark": "benchmark --json {}",
    "evaluation": "evaluate-builtin --out {}/x.json",
    "training": "train --config {}/x.py",
    "profile": "train --profile {}",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_addresses_first(name, nowhere, capsys):
    for path in ("gs://bucket/x", "s3:/x", "file:///x", "HTTPS://a.org/x"):
        try:
            status = main(COMMANDS[name].format(path).split())
        except SystemExit as stopped:
            status = stopped.code
        assert status == 2
        assert "is an address" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs:/bucket/run", "file:///run", "http://a/run", "hf://a/b"])
def test_a_run_is_refused_before_anything_is_made(path, nowhere, capsys):
    assert main(["train", "--workdir", path]) == 2
    assert path in capsys.readouterr().err
    assert not is_run(path)


def test_a_run_in_a_bucket_without_gcsfs_names_it(nowhere, monkeypatch, capsys):
    monkeypatch.setattr("fsspec.filesystem", _without("gcsfs"))
    assert main(["train", "--workdir", "gs://bucket/run"]) == 1
    assert "gcsfs" in capsys.readouterr().err


def test_an_address_is_compared_whatever_its_spelling():
    assert addresses.address("GS://bucket/run/") == addresses.address(b"gs://bucket/run") == "gs://bucket/run"
    assert buckets.stamp({"size": 3, "md5Hash": "a", "updated": "b"}) == [3, "a"]
