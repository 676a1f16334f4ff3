"""Controls and image prompts that JSON lines and sweeps name: files of the folders on the command line alone."""

import argparse

import pytest
from PIL import Image

from sdjax.scripts.main import main
from sdjax.scripts.shared.named_files import placed, settings_of
from sdjax.tasks.controls import read_text


@pytest.fixture
def folders(tmp_path):
    for name in "nets", "ip":
        (tmp_path / name / "below").mkdir(parents=True)
    for file in "nets/canny.pth", "nets/below/tile.safetensors", "ip/plus.safetensors", "ip/encoder.safetensors":
        (tmp_path / file).touch()
    for file in "nets/a.png", "nets/m.png", "ip/cat.png", "outside.png":
        Image.new("RGB", (8, 8)).save(tmp_path / file)
    return argparse.Namespace(control_dir=str(tmp_path / "nets"), image_prompt_dir=str(tmp_path / "ip"))


def test_names_become_files_of_the_folders(folders, tmp_path):
    assert settings_of(folders) == ("controls", "image_prompts")
    own = {"controls": "canny:0.8=canny:a.png,end=0.7,mode=prompt,low_threshold=50,mask=m.png", "steps": 3}
    out = placed({**own, "image_prompts": ["plus,image=cat.png,encoder=encoder,weight=0.5"]}, folders)
    assert out["steps"] == 3
    use = read_text(out["controls"][0])
    assert (use.network, use.hint, use.mask) == tuple(
        str(tmp_path / "nets" / n) for n in ("canny.pth", "a.png", "m.png")
    )
    assert (use.weight, use.end, use.mode, use.preprocess, use.options) == (
        0.8, 0.7, "prompt", "canny", {"low_threshold": 50},
    )  # fmt: skip
    at = tmp_path / "ip"
    assert out["image_prompts"] == (
        f"{at / 'plus.safetensors'},image={at / 'cat.png'},encoder={at / 'encoder.safetensors'},weight=0.5",
    )
    below = read_text(placed({"controls": ["below/tile.safetensors", "builtin-edges=a.png"]}, folders)["controls"][0])
    assert (below.network, below.hint) == (str(tmp_path / "nets/below/tile.safetensors"), None)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"controls": "../outside.png"}, "names are those of files in"),
        ({"controls": "canny=../outside.png"}, "names are those of files in"),
        ({"controls": "canny=/etc/passwd"}, "names are those of files in"),
        ({"controls": "canny=a.png,mask=/etc/passwd"}, "names are those of files in"),
        ({"controls": "cany=a.png"}, "did you mean canny?"),
        ({"controls": [3]}, "controls are texts"),
        ({"image_prompts": "plus,image=../outside.png"}, "names are those of files in"),
        ({"image_prompts": "plus,embedding=/etc/passwd"}, "names are those of files in"),
    ],
)
def test_other_files_are_refused(folders, own, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        placed(own, folders)


def test_lines_name_controls_only_with_a_folder(folders, tmp_path, capsys):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a", "control": "canny=/etc/passwd"}\n')
    command = ["txt2img", "--ckpt", "builtin", "--from-file", str(lines)]
    assert main([*command, "--control-dir", folders.control_dir]) == 2
    assert "line 1: names are those of files in" in capsys.readouterr().err
    assert main(command) == 2
    assert "unknown setting 'control'" in capsys.readouterr().err
    assert main(["txt2img", "--ckpt", "builtin", "--control-dir", folders.control_dir]) == 2
    assert "without JSON lines of --from-file or a --sweep" in capsys.readouterr().err
    sweep = ["--sweep", "control=canny:0=a.png,cany:1=a.png", "--control-dir", folders.control_dir]
    assert main(["txt2img", "--ckpt", "builtin", *sweep]) == 2
    assert "did you mean canny?" in capsys.readouterr().err
