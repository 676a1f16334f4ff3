"""The flags of previews: a file that shows the pictures while they are being made."""

import argparse
from pathlib import Path
from typing import Any

from sdjax.scripts.shared.flags import together


def add_preview_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags of previews, to a parser or a group."""
    add = parser.add_argument
    add(
        "--preview",
        metavar="FILE",
        help="while pictures are made, write what they look like so far into this PNG file, again after every five "
        "calls of the network; default: no previews",
    )
    add(
        "--taesd",
        metavar="PATH",
        needs=together("--preview"),
        help="make previews with this TAESD (a file, a folder or a hub repository, such as madebyollin/taesd), sharp "
        "and in the full size; default: coloured squares of 8 x 8 pixels",
    )


class Previews:
    """The previews of one run. Its constructor checks the flags."""

    def __init__(self, args: argparse.Namespace) -> None:
        from sdjax.storage import files

        self.file = None if args.preview is None else Path(args.preview)
        self.place: str | None = args.taesd
        self.taesd: Any = None
        if self.file is not None:
            if self.file.suffix.lower() != ".png":
                raise ValueError(f"--preview names a PNG file, such as preview.png; got {args.preview!r}")
            files.check_folder(self.file.parent, "writing previews into")
            if self.file.exists() and not self.file.is_file():
                raise ValueError(f"--preview {self.file} is a folder: name a file in it, such as preview.png")

    def load(self, config: Any) -> None:
        """Reads the TAESD. Raises CheckpointError for a file that is none, ValueError for a model of other latents."""
        if self.place is None:
            return
        from sdjax.loading import hub
        from sdjax.pipeline.preview import check_taesd
        from sdjax.tasks.computing import read_taesd

        self.taesd = read_taesd(hub.resolve(self.place))
        check_taesd(self.taesd, config)

    def options(self) -> dict[str, Any]:
        """Returns the arguments of a task."""
        return {} if self.file is None else {"on_step": self.show, "taesd": self.taesd}

    def show(self, step: Any) -> None:
        """Writes the pictures of a `sdjax.Step` as a grid."""
        if self.file is None:
            return
        import math

        import numpy as np

        from sdjax import pictures
        from sdjax.pictures import image
        from sdjax.storage import files

        height, width = step.batch.size
        shown = np.stack([pictures.resize(one, height, width, "nearest") for one in step.preview()])
        columns = math.isqrt(len(shown) - 1) + 1
        files.write_file(self.file, image.encode_png(image.grid(shown, columns)), overwrite=True, what=image.WRITING)
