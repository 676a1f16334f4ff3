"""Every flag of every command is obeyed, or refused where it has no effect."""

import argparse
import importlib

import pytest

from sdjax.scripts.main import COMMANDS, main
from sdjax.scripts.shared import remaking

# Flags without a condition: someone decided that they are always obeyed, or harmless. A new flag belongs here, or
# declares `needs`
READING = "--config --prediction --ema --vae --vocab"
SHARED = (
    "--debug --prompt --from-file --n_samples --seed --H --W --steps --sampler --plms --dpm --sampler-option "
    f"--ddim_eta --scale --schedule --zero-terminal-snr --ckpt --revision --C --f --quantise {READING} --device "
    "--low-memory --precision --dtype --exact --outdir "
    "--safety-checker --guidance --seamless --patch --window "
    "--prompt-syntax --emphasis --comma-backtrack --old-prompt-editing --clip-skip --pad-contexts --style "
    "--wildcards --wildcard-seed --lora --lora-dir --embedding --embedding-dir --hypernetwork --hypernetwork-dir "
    "--image-prompt --region --reference --style-aligned --merge-with --control"
)
NOISE = "--noise-source --variation-strength --seed-resize --ensd --compat --rounding"
PICTURES = f"{SHARED} {NOISE} --preview --sweep --n_iter --fixed_code --skip_save --skip_grid"
ALWAYS = {
    "txt2img": f"{PICTURES} --hires --laion400m",
    "img2img": f"{PICTURES} --init-img --strength --strength-counting --background",
    "edit": f"{PICTURES} --init-img --image-scale --background",
    "relight": f"{PICTURES} --init-img --mask --widen --light --enlarge --strength-counting",
    "inpaint": f"{PICTURES} --init-img --mask --expand --only-masked --strength --strength-counting --method "
    "--fill --no-composite --background",
    "detail": f"{PICTURES} --init-img --box --mask --detector --most --grow --padding --strength --strength-counting "
    "--feather --method --background",
    "depth2img": f"{PICTURES} --init-img --depth --save-depth --strength --strength-counting --background",
    "variations": f"{PICTURES} --init-img --noise_level --prior --noise-stats",
    "upscale": f"{PICTURES} --init-img --noise_level --background --model",
    "invert": f"{SHARED} --init-img --background --refinements",
    "animate": f"{SHARED} {NOISE} --preview --strength-counting --frames --loop --motion --format --fps --save_frames",
    "reproduce": f"--debug --dry-run --weak-ckpt --ckpt --revision --C --f --quantise {READING} --device "
    "--low-memory --precision --dtype --exact --outdir --safety-checker --preview --skip_save "
    "--skip_grid --lora "
    "--lora-dir --embedding --embedding-dir --hypernetwork --hypernetwork-dir --image-prompt --control --region",
    "tokens": "--debug --steps --seed --tokenizer --json --prompt-syntax --emphasis --comma-backtrack "
    "--old-prompt-editing --style --wildcards --wildcard-seed --embedding --embedding-dir",
    "run": "--debug --model --input-dir --outdir --set --dry-run --dtype",
    "hint": "--debug --out --option --annotator --resolution",
    "watermark": "--debug --embed",
    "train": "--debug --config --set --workdir --plan --data --ckpt --steps --lr --batch-size --coordinator "
    "--num-hosts --host",
    "cache-latents": "--debug --model --dtype --folder --records --tfds --tars --where --side --buckets --crop --flip "
    "--resample --text --shard-size --batch-size --bad-limit --beam",
    "convert": "--debug --to --dtype --quantise --lossy --overwrite --ema",
    "lora": "--debug --out --to --dtype",
    "merge": "--debug --out --lora --to --dtype --ema --prediction --overwrite",
    "reproduce-merge": "--debug --models --out",
    "inspect": "--debug --variant --revision --json",
    "compile": "--debug --variant --revision --size --batch --folder --dtype --device --low-memory",
    "plan": "--debug --variant --revision --H --W --n_samples --dtype --device --low-memory",
    "guidance": "--debug",
    "samplers": "--debug",
    "serve": "--debug --host --port --token-file --user-file --origin --log-prompts --ckpt --models --outdir --state "
    "--slots --waiting --preview --dtype --quantise --device --safety-checker",
    "card": "--debug --license --evaluation --repository --out --overwrite --variant",
    "push": "--debug --license --evaluation --public --branch --message --dry-run --variant",
    "export": "--debug --H --W --batch --platform --dtype --lora",
    "run-exported": "--debug --prompt --from-file --n_samples --seed --steps --sampler --scale --device "
    "--keep-compiled --outdir",
    "benchmark": "--debug --ckpt --random --size --batch --repeats --dtype --quantise --device --json",
    "evaluate": "--debug --against --figure",
    "evaluate-builtin": "--debug --ckpt --quantise --prompts --seed --out --font --device",
}
WITHOUT_SAMPLER = {  # of invert
    *("--from-file", "--n_samples", "--seed", "--sampler", "--plms", "--dpm", "--sampler-option", "--ddim_eta"),
    "--safety-checker",
}
WITHOUT_SIZE = ("inpaint", "detail", "depth2img", "upscale", "reproduce")  # their pictures keep their sizes

# Arguments beside which a flag has no effect, where it has one alone
GIVEN = {
    "--init-img": "--dry-run",
    "--negative-prompt": "--scale 1",
    "--guidance-rescale": "--scale 1",
    "--tiling": "--seamless x",
    "--latents": "--variation-strength 0.5",
    "--n_rows": "--skip_grid",
    "--watermark": "--skip_grid --skip_save",
    "--feather": "--no-composite",
    "--depth-model": "--depth d.png",
    "--weights": "--prior p --prompt a",
    "--clip-preprocess": "--prior p --prompt a",
    "--vision": "--prior p --prompt a",
    "--background": "--prior p --prompt a",
    "--interpolation": "--prompt a --seed 1,2",
    "--at": "--prompt a",
    "animate --prompt-strength": "--motion m",
    "animate --n_samples": "--motion m",
    "relight --backdrop": "--light left",
    "animate --init-img": "",
    "animate --background": "",
    "--text": "--embed x",
    "--bytes": "--embed 3",
    "--parallel": "--low-memory",
    "--split-picture": "--low-memory",
    "--profile": "--plan",
    "--debug-nans": "--plan",
    "--hosts": "--coordinator a:1 --num-hosts 1 --host 0",
    "--caption": "--records r",
    "--default": "--records r",
    "--dataset-config": "--data d",
    "--shard": "--beam",
}
VALUES = {
    "--ratio-of": "attn=1",
    "--platform": "cpu",
    "--hires-sampler": "heun",
    "--hires-patch": "none",
    "--sampler": "heun",
    "--schedule": "karras",
    "--background": "255,255,255",
    "--expand": "1,0,0,0",
    "--box": "1,1,9,9",
    "--noise-batch": "0/2",
    "--at": "0=a",
}  # where 1 is none
NEEDED = {  # what a command cannot be without
    "img2img": "--init-img a.png",
    "edit": "--init-img a.png",
    "relight": "--init-img a.png",
    "inpaint": "--init-img a.png",
    "detail": "--init-img a.png --box 1,1,9,9",
    "depth2img": "--init-img a.png",
    "upscale": "--init-img a.png",
    "invert": "--init-img a.png",
    "variations": "--init-img a.png",
    "watermark": "a.png",
    "reproduce": "a.png",
    "tokens": "a",
    "train": "--config finetune",
    "cache-latents": "out --folder f",
    "convert": "in out",
    "lora": "convert a --out b.safetensors",
    "merge": "a --out b.safetensors",
    "reproduce-merge": "a --models b",
    "inspect": "in",
    "plan": "builtin",
    "compile": "builtin",
    "card": "in",
    "push": "in a/b",
    "export": "in out",
    "run-exported": "in",
    "evaluate": "a.json --against b.json",
}


def actions(name: str) -> list[argparse.Action]:
    parser = importlib.import_module(f"sdjax.scripts.{COMMANDS[name][0]}").make_parser()
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


FLAGS = [(name, action) for name in COMMANDS for action in actions(name)]
CONDITIONAL = [(name, action) for name, action in FLAGS if action.needs]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_is_always_obeyed_or_says_what_it_needs(name: str) -> None:
    always = {action.option_strings[0] for action in actions(name) if not action.needs}
    expected = set(ALWAYS[name].split()) - ({"--H", "--W"} if name in WITHOUT_SIZE else set())
    expected -= WITHOUT_SAMPLER if name == "invert" else set()
    expected -= {"--n_samples"} if name == "animate" else set()  # it has no effect on a clip
    assert always == expected


def value_of(action: argparse.Action) -> list[str]:
    """Returns a flag with a value that its parser takes: its default where it has one."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        return [flag]
    if action.nargs == 2:
        return [flag, "64", "128"]
    default = action.default if isinstance(action.default, str | int | float) else None
    return [flag, VALUES.get(flag) or str(next(iter(action.choices or ()), default or 1))]


def refuse(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Returns what a command says that is refused with status 2."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("name", "action"), CONDITIONAL, ids=lambda value: str(getattr(value, "dest", value)))
def test_a_flag_without_effect_is_refused_even_at_its_default(name, action, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flag, *_ = action.option_strings
    if name == "convert" and flag != "--step":  # what a training's folder says itself
        for file in "settings.json", "base/config.json":
            (tmp_path / "in" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / file).touch()
    given = "" if (name, flag) == ("train", "--default") else GIVEN.get(f"{name} {flag}", GIVEN.get(flag, ""))
    if name == "reproduce" and action.dest in remaking.HELP:
        given = "--dry-run"
    given = given.split() if (name, flag) != ("merge", "--vae") else ["--vae-from", "A"]
    needed = [] if "--prior" in given or "--records" in given else NEEDED.get(name, "").split()
    if "--records" in given:
        needed = ["out"]
    if (name, flag) == ("lora", "--ckpt"):
        needed[:2] = ["extract", "a", "b"]
    err = refuse([name, *needed, *value_of(action), *given], capsys)
    assert f"{flag} has no effect" in err
    assert len(err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"in"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_value_given_twice_is_refused(name: str, capsys: pytest.CaptureFixture) -> None:
    for action in actions(name):
        if action.nargs in (0, argparse.REMAINDER) or "append" in type(action).__name__.lower():
            continue
        flag = value_of(action)
        message = refuse([name, *flag, *flag, *NEEDED.get(name, "").split()], capsys)
        assert "given twice" in message or "not allowed" in message or "expected" in message, flag
