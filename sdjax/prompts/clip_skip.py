"""Clip skip: which block of the text encoder gives the context, in the counting of each tool.

| tool | the model's own | one block earlier |
|---|---|---|
| A1111 "Clip skip" | 1 | 2 (no effect on SD 2) |
| ComfyUI "stop_at_clip_layer", SD 1 | -1 | -2 |
| ComfyUI "stop_at_clip_layer", SD 2 | -2 | -3 |
| diffusers clip_skip | none or 0 | 1 |

The final norm follows in each case.
"""

from sdjax.checks.arguments import shown
from sdjax.checks.notes import note
from sdjax.config import TextConfig

TOOLS = ("a1111", "comfyui", "diffusers")


def read_clip_skip(value: int | str) -> tuple[str, int]:
    """Returns the tool that counts, and its number. 1 and more is A1111's counting, -1 and less ComfyUI's.

    A text such as "diffusers:1" names the tool. Raises ValueError for anything else.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    tool, colon, number = text.strip().rpartition(":") if isinstance(text, str) else ("", "", "")
    try:
        count = int(number)
    except ValueError:
        count = 0
        tool = "?"
    tool = tool.strip().lower() if colon else tool or ("a1111" if count > 0 else "comfyui")
    least, most = {"a1111": (1, 99), "comfyui": (-99, -1), "diffusers": (0, 99)}.get(tool, (1, 0))
    if not least <= count <= most:
        raise ValueError(
            "clip_skip is 1, 2, ... as A1111 counts, -1, -2, ... as ComfyUI counts, or a tool and its number, such as "
            f"diffusers:1; got {shown(value)}"
        )
    return tool, count


def layers_used(text: TextConfig, clip_skip: int | str | None) -> int:
    """Returns how many blocks of a text encoder are used; one more than the model's own for ComfyUI's -1 on SD 2.

    Raises ValueError if no block would be left.
    """
    if clip_skip is None:
        return text.layers
    tool, count = read_clip_skip(clip_skip)
    second = text.kind == "clip" and text.activation == "gelu"  # OpenCLIP's tower, whose last block SD 2 does not use
    if tool == "a1111":
        skipped = 0 if second else count - 1
        if second and count > 1:
            note("clip_skip has no effect on Stable Diffusion 2 as A1111 counts; ComfyUI's -3 skips a block there")
    elif tool == "comfyui":
        skipped = -count - (2 if second else 1)
    else:
        skipped = count
    if skipped >= text.layers:
        raise ValueError(f"clip_skip {clip_skip} leaves none of the text encoder's {text.layers} blocks")
    return text.layers - skipped
