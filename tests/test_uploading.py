"""`sdjax push` and `sdjax card`: what is uploaded, what a card says, and what is refused."""

import json
import os
import subprocess
import sys

import hub_server
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from sdjax import convert
from sdjax.convert.errors import CheckpointError
from sdjax.evaluate.result import Evaluation, Judged, measured
from sdjax.loading import builtin
from sdjax.loading.model_card import Facts, data_rows, learned_files, make_card, read_facts, states_licence
from sdjax.loading.uploading import gathered
from sdjax.scripts.main import main

import models

# huggingface_hub 2.4's own call of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_this_is_a_secret"
REPOSITORY = "someone/my-model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a native folder with a licence."""
    place = tmp_path_factory.mktemp("native") / "model"
    pipe = models.pipeline()
    convert.save(pipe.config, pipe.params, place, to="native")
    (place / "LICENSE").write_text("CreativeML Open RAIL++-M License\n")
    (place / "secret.env").write_text("KEY=1")
    return place


@pytest.fixture
def server():
    hub = hub_server.Hub()
    hub.tokens.add(TOKEN)
    with hub_server.serve(hub) as served:
        yield served


@pytest.fixture
def push(server, monkeypatch, capsys):
    """Returns a function that runs `sdjax push` against the server; a token is never shown."""
    for name, value in ("ENDPOINT", server.address), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True):
        monkeypatch.setattr(constants, name, value)

    def run(*words, token=TOKEN):
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
        status = main(["push", *map(str, words)])
        shown = capsys.readouterr()
        assert not token or token not in shown.out + shown.err
        return status, shown.out, shown.err

    return run


def test_a_model_is_uploaded_with_its_card(server, folder, push):
    status, out, err = push(folder, REPOSITORY)
    assert status == 0, err
    files = server.files[server.commits[REPOSITORY, "main"]]
    assert out.strip() == f"{server.address}/{REPOSITORY}/commit/{server.commits[REPOSITORY, 'main']}"
    assert server.private == {REPOSITORY: True}
    assert "secret.env" not in files
    card = files.pop("README.md").decode()
    assert 'license: "openrail++"' in card
    assert f'sdjax.load("{REPOSITORY}")' in card
    for name, data in files.items():
        assert data == (folder / name).read_bytes()
    assert {"config.json", "LICENSE"} < set(files)
    assert any(name.endswith(".safetensors") for name in files)
    assert server.large  # the weights went as LFS objects


@pytest.mark.slow
def test_what_was_pushed_loads_again(server, folder, push, tmp_path):
    assert push(folder, REPOSITORY, "--public")[0] == 0
    code = f"import sdjax; print(sdjax.load({REPOSITORY!r}).config.name)"
    given = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    got = subprocess.run([sys.executable, "-c", code], env=os.environ | given, capture_output=True, text=True)
    assert got.stdout.strip() == "tiny", got.stderr


def test_a_second_push_keeps_the_visibility_and_sends_no_weights(server, folder, push):
    status, _, err = push(folder, REPOSITORY, "--public")
    assert status == 0, err
    assert server.private == {REPOSITORY: False}
    sent = server.large.copy()
    server.large |= dict.fromkeys(sent, b"as it was")
    status, _, err = push(folder, REPOSITORY, "--branch", "next")
    assert status == 0, err
    assert set(server.large.values()) == {b"as it was"}
    assert server.private == {REPOSITORY: False}
    assert (REPOSITORY, "next") in server.commits


@pytest.mark.parametrize(
    ("token", "refused", "words"),
    [("hf_another_secret", None, "does not know the token: log in with `hf auth login`"),
     ("", None, "nobody is logged in: log in with `hf auth login`"),
     (TOKEN, 403, "the token may not write there"),
     (TOKEN, 418, "answered with HTTP status 418")],
)  # fmt: skip
def test_a_refused_upload_is_one_sentence(server, folder, push, token, refused, words):
    if refused:
        server.refused[REPOSITORY] = refused, ""
    status, _, err = push(folder, REPOSITORY, token=token)
    assert status == 1
    assert words in err
    assert "Traceback" not in err


def test_a_dry_run_lists_files_and_shows_the_card(folder, capsys):
    assert main(["push", str(folder), REPOSITORY, "--dry-run", "--license", "mit"]) == 0
    out = capsys.readouterr().out
    assert "config.json" in out
    assert "secret.env" not in out
    assert f"to {REPOSITORY} (private if it is new)" in out
    assert 'license: "mit"' in out
    assert main(["push", str(folder), REPOSITORY, "--dry-run", "--public"]) == 0
    assert f"to {REPOSITORY} (public if it is new)" in capsys.readouterr().out


def test_a_card_that_is_there_is_uploaded_and_not_written_over(folder, tmp_path, capsys):
    place = tmp_path / "model"
    convert.convert(folder, place, to="native")
    (place / "README.md").write_text("---\ntags: []\n---\n# Mine\n")
    assert main(["push", str(place), REPOSITORY, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "# Mine" in shown.out
    assert "the hub will show no licence, because the head of" in shown.err
    assert main(["push", str(place), REPOSITORY, "--dry-run", "--license", "mit"]) == 2
    assert "--license has no effect, because" in capsys.readouterr().err
    assert main(["card", str(place)]) == 1
    assert "choose another name, or overwrite it with --overwrite" in capsys.readouterr().err
    assert (place / "README.md").read_text().endswith("# Mine\n")
    assert main(["card", str(place), "--overwrite"]) == 0
    assert (place / "README.md").read_text().startswith('---\nlicense: "openrail++"')


def test_an_evaluation_becomes_a_table(folder, tmp_path, capsys):
    fid = measured(12.5, [12.0, 13.0], title="FID", lower_is_better=True, of="inception")
    result = Evaluation({"name": "tiny"}, "digest", 100, (Judged("scale 3", {}, {}, {"fid": fid}),))
    path = tmp_path / "result.json"
    path.write_text(result.to_json())
    assert main(["card", str(folder), "--out", "-", "--evaluation", str(path)]) == 0
    out = capsys.readouterr().out
    assert "| setting | FID |" in out
    assert "| scale 3 | 12.5" in out
    path.write_text(json.dumps({"format": "another"}))
    assert main(["card", str(folder), "--out", "-", "--evaluation", str(path)]) == 2
    assert "is no result of an evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["MODEL", "my-model"], "a repository is OWNER/NAME"),
     (["MODEL", "a/b/c"], "a repository is OWNER/NAME"),
     (["owner/name", REPOSITORY], "the model is one of this computer"),
     (["MODEL", REPOSITORY, "--dry-run", "--license", "My licence"], "a licence is one of the hub's words")],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_the_network(folder, words, sentence, capsys):
    assert main(["push", *[str(folder) if word == "MODEL" else word for word in words]]) == 2
    assert sentence in capsys.readouterr().err


def test_the_card_of_a_lora_says_how_to_use_it_beside_a_model(tmp_path, capsys):
    path = tmp_path / "my style.safetensors"
    down, up = np.zeros((2, 8), np.float32), np.zeros((8, 2), np.float32)
    layer = "lora_unet_down_blocks_0_attentions_0_proj_in"
    safetensors.numpy.save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, path)
    assert main(["push", str(path), REPOSITORY, "--dry-run"]) == 0
    card = capsys.readouterr().out
    assert "hf download someone/my-model --local-dir my-model\n" in card
    assert "sdjax txt2img --ckpt MODEL --lora 'my-model/my style.safetensors' --prompt" in card
    assert "sdjax.load" not in card
    assert main(["card", str(path), "--out", "-"]) == 0
    assert "--lora 'my style.safetensors' --prompt" in capsys.readouterr().out


def test_the_card_of_a_training_names_the_files_that_it_made(tmp_path):
    (tmp_path / "embeddings").mkdir()
    for name in "adapter.safetensors", "embeddings/cat.safetensors", "checkpoint":
        (tmp_path / name).touch()
    files = learned_files(tmp_path)
    assert files == [("--lora", "adapter.safetensors"), ("--embedding", "embeddings/cat.safetensors")]
    card = make_card(Facts("cat", [], start="owner/start", additions=files), repository=REPOSITORY)
    assert (
        "sdjax txt2img --ckpt owner/start --lora my-model/adapter.safetensors "
        '--embedding my-model/embeddings/cat.safetensors --prompt "a prompt"\n'
    ) in card
    assert "sdjax.load" not in card


def test_a_card_without_a_repository_loads_the_file_by_its_name(folder, tmp_path):
    convert.convert(folder, tmp_path / "tiny.safetensors")
    assert 'sdjax.load("tiny.safetensors")' in make_card(read_facts(tmp_path / "tiny.safetensors"))


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_links_out_of_the_model_are_not_followed(folder, tmp_path):
    place = tmp_path / "model"
    convert.convert(folder, place, to="native")
    (tmp_path / "secret").write_text("KEY=1")
    (place / "LICENSE").unlink(missing_ok=True)
    (place / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="LICENSE is a link to a place outside the model"), gathered(place):
        pass


@pytest.mark.parametrize("to", ["native", "diffusers", "ldm", "gguf"])
def test_the_licence_that_a_card_links_is_uploaded_with_any_layout(to, folder, tmp_path, capsys):
    path = tmp_path / ("tiny" + {"ldm": ".safetensors", "gguf": ".gguf"}.get(to, ""))
    convert.convert(folder, path, to=to)
    (tmp_path / "README.md").write_text("of something else")
    facts = read_facts(path)
    assert facts.title == "tiny"
    with gathered(path) as files:
        content = dict(files.files)[facts.licence_file]
        assert (content if isinstance(content, bytes) else content.read_bytes()) == (folder / "LICENSE").read_bytes()
        if path.is_file():
            assert set(files.sizes) == {path.name, "LICENSE"}
    # A card that is only written links what lies beside it
    assert main(["card", str(path), "--out", "-"]) == 0
    assert ("see LICENSE" in capsys.readouterr().out) == path.is_dir()


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_no_licence_is_read_through_a_link_beside_a_single_file(folder, tmp_path):
    (tmp_path / "secret").write_text("KEY=1")
    place = tmp_path / "models"
    convert.convert(folder, place / "tiny.safetensors")
    (place / "LICENCE.txt").symlink_to(tmp_path / "secret")
    with (
        pytest.raises(CheckpointError, match="is a link to a place outside the model"),
        gathered(place / "tiny.safetensors"),
    ):
        pass


def test_the_built_in_models_licence_is_stated(capsys):
    assert main(["push", "builtin", REPOSITORY, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "license: ofl-1.1" in shown.out
    assert shown.err == ""
    place = builtin.place("builtin")
    assert make_card(read_facts(place)).startswith('---\nlicense: "ofl-1.1"')  # the same, from its text


def test_texts_from_files_are_only_texts_in_a_card():
    facts = Facts("a | b\n# c", [("x", "<script>| [a](b)")], "other", 'LICENSE"\nname: x', start="own: 'er/x\n")
    card = make_card(facts)
    assert "# a \\| b\\n\\# c" in card.replace("\\\\n", "\\n")
    assert "<script>" not in card
    head = card.split("---")[1].strip().splitlines()
    assert [line.split(":")[0] for line in head] == [
        "license", "license_name", "license_link", "library_name", "pipeline_tag", "tags", "base_model"
    ]  # fmt: skip
    assert all(json.loads(line.partition(": ")[2]) for line in head)


def test_a_training_set_is_described_by_its_statistics():
    rows = data_rows({
        "folders": {"cats": {"pictures": 3, "repeats": 2}}, "tags": {"cats": {"cat": 3, "blue": 1}},
        "sizes": [[64, 64, 6]], "batches": 2,
    })  # fmt: skip
    assert dict(rows) == {
        "pictures in an epoch": 6, "batches in an epoch": 2, "sizes": "64 x 64 (6)",
        "folder cats": "3 pictures, each 2 times", "frequent tags": "cat (3), blue (1)",
    }  # fmt: skip


def test_a_licence_is_seen_in_a_cards_head_alone():
    assert states_licence("---\nlicense: mit\n---\n")
    assert not states_licence("---\ntags: []\n---\nlicense: mit\n")
    assert not states_licence("license: mit")
    assert not states_licence("---\nlicense:\ntags: []\n---\n")
