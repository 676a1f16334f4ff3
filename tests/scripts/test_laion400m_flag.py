"""`sdjax txt2img --laion400m`: what it stands for, and what goes before it."""

from pathlib import Path

from sdjax.scripts import txt2img
from sdjax.scripts.main import main


def test_it_stands_for_compviss_checkpoint_and_folder(fake) -> None:
    checkpoint = Path(txt2img.LAION_CHECKPOINT)
    assert str(checkpoint) == "models/ldm/text2img-large/model.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    assert main(["txt2img", "--laion400m", "--vocab", "vocab.txt", "--n_iter", "1", "--n_samples", "1"]) == 0
    path, options = fake.loaded[0]
    assert (path, options["config"], options["vocab"]) == (str(checkpoint), "laion400m", "vocab.txt")
    assert Path("outputs/txt2img-samples-laion400m/samples/00000.png").is_file()


def test_what_is_given_goes_before_it(fake) -> None:
    flags = ["--laion400m", "--ckpt", "model.ckpt", "--outdir", "out", "--n_iter", "1", "--n_samples", "1"]
    assert main(["txt2img", *flags]) == 0
    assert fake.loaded[0][0] == "model.ckpt"
    assert Path("out/samples/00000.png").is_file()


def test_a_checkpoint_that_is_not_there_is_told(fake, capsys) -> None:
    assert main(["txt2img", "--laion400m"]) == 2
    assert "there is no models/ldm/text2img-large/model.ckpt; put" in capsys.readouterr().err
    assert not fake.loaded
