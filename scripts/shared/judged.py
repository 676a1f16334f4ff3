"""What `sdjax evaluate` shares between its two models: captions, settings, measures, networks and the reference."""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sdjax.scripts.shared import options, values
from sdjax.scripts.shared.flags import Needs, together
from sdjax.spelling import meant

BUILTIN = "builtin"  # in place of a file: captions and real pictures of the built-in model
COUNT = 200  # captions of the built-in model
NETWORKS = {  # files of networks, by the flag's name; a test compares them with sdjax.train.judges.FILES
    "inception": "FID's Inception v3 (pt_inception-2015-12-05-6726825d.pth of pytorch-fid): FID, KID, precision and "
    "recall, inception score",
    "dinov2": "DINOv2: FD-DINOv2",
    "clip": "OpenAI's CLIP ViT-L/14: CLIP score",
    "clip336": "OpenAI's CLIP ViT-L/14@336px: CMMD",
    "openclip": "OpenCLIP's ViT-H/14: its CLIP score",
    "aesthetic": "LAION's aesthetic predictor; needs --clip",
    "pickscore": "PickScore",
}  # fmt: skip


def is_result(path: str | None) -> bool:
    """Returns whether a model is named by the result of its evaluation."""
    return path is not None and path.lower().endswith(".json")


def makes(args: argparse.Namespace) -> bool:
    """Returns whether a model is to be evaluated, and not only results are read."""
    return not is_result(args.model) or (args.against is not None and not is_result(args.against))


def add_what_flags(parser: argparse.ArgumentParser, needs: Needs) -> None:
    """Adds the flags of captions, reference, measures and settings; all have the condition `needs`."""
    add = parser.add_argument_group("what to make and measure").add_argument
    add("--captions", metavar="FILE", needs=needs,
        help="captions: COCO's .json (one of each picture), .jsonl, .parquet, .csv, .tsv, or a text file with one in "
        "each line; builtin: those that test the built-in model, its default")  # fmt: skip
    add("--column", metavar="NAME", needs=(needs, together("--captions")),
        help="the column of captions in --captions; default: caption, prompt or text")  # fmt: skip
    add("--count", type=values.positive, metavar="N", needs=needs,
        help=f"use so many of the captions, chosen by --seed; more can be added later; default: all, {COUNT} with "
        "builtin")  # fmt: skip
    add("--seed", type=values.seed, default=0, metavar="N", needs=needs,
        help="choice of captions, and each caption's noise; default: %(default)s")  # fmt: skip
    add("--reference", metavar="PATH", needs=needs,
        help="a folder of real pictures, or an .npz file of their statistics or features; builtin: pictures as the "
        "built-in model was trained on, its default")  # fmt: skip
    add("--measures", metavar="NAME,...", needs=needs,
        help="what to measure, such as fid,clip-score; default: everything whose files are given")  # fmt: skip
    add("--set", action="append", default=[], metavar="NAME=VALUE", needs=needs,
        help="a setting of all pictures, such as steps=50 or sampler=plms; may be repeated")  # fmt: skip
    add("--sweep", action="append", default=[], metavar="NAME=V,V,...", needs=needs,
        help="evaluate at each of these values, such as scale=1.5,2,3,4,5,6,7,8; given twice or three times, at all "
        "combinations, such as --sweep sampler=plms,ddim")  # fmt: skip


def add_network_flags(parser: argparse.ArgumentParser, needs: Needs) -> None:
    """Adds the flags of the networks' files; all have the condition `needs`."""
    group = parser.add_argument_group("networks that judge")
    for name, title in NETWORKS.items():
        group.add_argument(f"--{name}", metavar="PATH", needs=needs, help=title)
    group.add_argument(
        "--font",
        metavar="FILE",
        needs=needs,
        help="NotoColorEmoji.ttf, for captions of the built-in model, if it is not in one of the usual folders",
    )


def say(text: str) -> None:
    """Prints a line about the progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def read_result(path: str | None) -> Any:
    """Returns the result in a JSON file; None for anything else. Raises ValueError for a file that holds none."""
    if not is_result(path):
        return None
    from sdjax.evaluate import result

    assert path is not None  # `is_result`
    return result.read(path)


def read_figure(args: argparse.Namespace) -> list[str] | None:
    """Returns the two measures of --figure; None without. Raises ValueError for another number of names."""
    if args.figure is None:
        return None
    names = [name.strip() for name in args.figure.split(",")]
    if len(names) != 2 or "" in names:
        raise ValueError(f"--figure is two measures, such as clip-score,fid; got {args.figure!r}")
    return names


def check_figure(names: Sequence[str] | None, known: Collection[str]) -> None:
    """Raises ValueError for a measure of --figure that is not one of the `known`, and without matplotlib."""
    from sdjax.evaluate import figure

    for name in names or ():
        if name not in known:
            raise ValueError(
                f"--figure: there is no measure {name!r} here{meant(name, known)}; "
                f"what was measured is {', '.join(known) or 'nothing'}"
            )
    if names is not None and not figure.has_matplotlib():
        raise ValueError(f"--figure: {figure.WITHOUT_MATPLOTLIB}")


def written(args: argparse.Namespace, shown: Sequence[Any], chosen: Sequence[str] | None) -> list[Path]:
    """Draws the figures, and returns the paths of the files that the command has written.

    Results that were only read get figures beside them.
    """
    from sdjax.evaluate import figure

    paths = []
    folders = [Path(args.out), Path(args.out) / "against"]
    for named, evaluation, folder in zip((args.model, args.against), shown, folders):
        made = not is_result(named)
        folder = folder if made else Path(named).parent
        if made:
            paths += [folder / "result.json", folder / "result.csv"]
        if chosen is None and (len(evaluation.settings) < 2 or not made):
            continue
        axes = chosen or figure.axes_of(evaluation)
        if axes is None:
            say(f"note: {figure.WITHOUT_AXES}")
            continue
        if not figure.has_matplotlib():
            say(f"note: {figure.WITHOUT_MATPLOTLIB}")
            continue
        paths += figure.draw(evaluation, axes[0], axes[1], folder / "figure.png")
    return paths


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for flags that cannot be used, before JAX is set up or weights are read."""
    if args.captions is None and args.model not in (None, BUILTIN):
        raise ValueError("--captions names the file of captions to make pictures of")
    from sdjax.loading import hub
    from sdjax.storage.files import check_folder

    for name in NETWORKS:
        path = getattr(args, name)
        if path is not None and hub.is_local(path) and not Path(path).exists():
            raise ValueError(f"--{name} {path}: there is no such file")
    if args.reference not in (None, BUILTIN) and not Path(args.reference).exists():
        raise ValueError(f"--reference {args.reference}: there is no such file or folder")
    check_folder(args.out, "writing the evaluation into")


class Judge:
    """Everything that two evaluations share: captions, settings, measures, networks, the reference.

    The networks of the first model judge the second one too: its autoencoder is the measure of both.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from sdjax.scripts.shared import runtime
        from sdjax.train import judges

        self.args = args
        self.devices = runtime.set_up_jax(args.device)
        self.builtin = args.captions in (None, BUILTIN)
        self.file, self.captions = self._captions()
        self.settings = self._settings()
        self.files = {name: path for name in NETWORKS if (path := getattr(args, name)) is not None}
        wanted = None if args.measures is None else [name.strip() for name in args.measures.split(",")]
        with_reference = self.builtin or args.reference is not None
        self.measures = judges.choose(wanted, self.files, reference=with_reference, builtin=self.builtin)
        self.reference = judges.open_reference(args.reference, builtin=self.builtin, font=args.font)
        self.networks: dict[str, Any] | None = None

    def _captions(self) -> tuple[str, Any]:
        """Returns the digest of all captions of the file, and those that are used."""
        from sdjax.evaluate import captions
        from sdjax.train.builtin import judging

        args = self.args
        if self.builtin:
            texts, count = judging.captions(args.seed), args.count or COUNT
        else:
            texts, count = captions.read_captions(args.captions, args.column), args.count
        try:
            chosen = captions.choose(texts, count, args.seed)
        except ValueError as error:
            raise ValueError(f"--count: {error}") from None
        return captions.digest_of(captions.choose(texts, None, args.seed)), chosen

    def _settings(self) -> Any:
        from sdjax.evaluate.settings import make_settings
        from sdjax.tasks import sweep

        base: dict[str, Any] = {}
        for flag, texts in ("--set", self.args.set), ("--sweep", self.args.sweep):
            try:
                axes = [sweep.read_axis(text, what="setting" if flag == "--set" else "sweep") for text in texts]
                if flag == "--set":
                    for axis in axes:
                        if len(axis.values) != 1 or axis.name in base:
                            raise ValueError(f"{axis.label} has one value, given once; several are a --sweep")
                        base[axis.name] = axis.values[0]
                else:
                    return make_settings(base, axes)
            except ValueError as error:
                raise ValueError(f"{flag}: {error}") from None
        raise AssertionError("the sweep returns")

    def evaluate(self, name: str | None, folder: Path) -> Any:
        """Evaluates a model in a folder. Returns the result, or None if another host will measure."""
        import jax

        import sdjax
        from sdjax.evaluate.evaluation import Judging
        from sdjax.evaluate.making import Folder, Host
        from sdjax.evaluate.settings import check_settings
        from sdjax.loading import builtin, hub
        from sdjax.purpose import check_task
        from sdjax.tasks import recording
        from sdjax.train import judges

        args = self.args
        with hub.listening(say):
            local = builtin.place(name or BUILTIN) if name in (None, *options.BUILTIN) else hub.resolve(name)

        def check(config: Any) -> None:
            check_task(config, "generate")
            check_settings(config, self.settings)

        pipe = sdjax.load(name, ema=args.ema, dtype=args.dtype, check=check)
        for notice in pipe.notices:
            say(f"note: {notice}")
        if self.networks is None:
            self.networks = judges.load_networks(self.measures, self.files, pipe, args.font)
            self._check_reference()
        networks, reference = self.networks, self.reference
        judging = Judging(
            pipe, recording.describe_model(name or BUILTIN, local), self.file, self.captions, self.settings,
            self.measures, networks,
            lambda of: None if reference is None else reference.features(networks[of], Folder(folder)), folder,
            host=Host(jax.process_index(), jax.process_count()), batch=args.batch, devices=self.devices,
            resamples=args.bootstrap, say=say,
        )  # fmt: skip
        return judging.run()

    def _check_reference(self) -> None:
        """Leaves out the measures that a file of statistics is not enough for; raises ValueError for wanted ones."""
        from sdjax.evaluate.references import StatisticsFile
        from sdjax.train import judges

        if not isinstance(self.reference, StatisticsFile) or self.networks is None:
            return
        of = {name: self.reference.features(network, None) for name, network in self.networks.items()}
        leave_out = None if self.args.measures else lambda text: say(f"note: {text}")
        self.measures = judges.fitting(self.measures, self.networks, of, leave_out)
        if not self.measures:
            raise ValueError(f"{self.args.reference} fits no measure")
        self.networks = {name: self.networks[name] for name in {one.extractor: None for one in self.measures}}
