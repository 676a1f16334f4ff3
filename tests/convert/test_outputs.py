"""Files and folders that appear whole or not at all."""

import contextlib

import pytest
from small_models import model, write

from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.convert.write.outputs import new_folder
from sdjax.storage.files import new_file


def test_an_error_leaves_nothing_behind_and_the_old_as_it_was(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    for new, path, inside in ((new_file, "file", "."), (new_folder, "folder", "config.json"), (new_file, "fresh", ".")):
        with contextlib.suppress(RuntimeError), new(tmp_path / path, overwrite=True) as partial:
            (partial / inside).write_text("half")
            raise RuntimeError
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "config.json").read_text() == "old"


def test_nothing_is_replaced_unless_asked(tmp_path):
    (tmp_path / "file").write_text("old")
    said = "exists; choose another name, or overwrite it with overwrite=True"
    with pytest.raises(FileExistsError, match=said), new_file(tmp_path / "file"):
        pass
    with new_file(tmp_path / "file", overwrite=True) as partial:
        partial.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("a cat")
    for overwrite in (False, True):  # a folder that is no model is not replaced even then
        with pytest.raises(FileExistsError), new_folder(tmp_path / "photos", overwrite=overwrite):
            pass
    with pytest.raises(FileExistsError, match="is a folder"), new_file(tmp_path / "photos", overwrite=True):
        pass
    with pytest.raises(FileExistsError, match="is a file"), new_folder(tmp_path / "file", overwrite=True):
        pass
    assert (tmp_path / "photos" / "cat.png").exists()
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as partial:
        (partial / "config.json").write_text("new")
    with new_folder(tmp_path / "empty", overwrite=True) as partial:
        (partial / "model_index.json").write_text("newer")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["model_index.json"]


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    with new_file(tmp_path / "file") as partial:
        partial.write_text("")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_checkpoint_is_not_written_over_itself(tmp_path):
    config, tensors = model("v1")
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match="cannot be written to at the same time"):
        convert.convert(path, path, config=config, overwrite=True)
    convert.convert(path, tmp_path / "native", config=config)
    for target in (tmp_path / "native", tmp_path / "native" / "inside.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be written to at the same time"):
            convert.convert(tmp_path / "native", target, to="auto", overwrite=True)
    with pytest.raises(ValueError, match=r"an ldm file is written as .safetensors; got .*x.ckpt"):
        convert.convert(path, tmp_path / "x.ckpt", to="ldm", config=config)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "native"]
