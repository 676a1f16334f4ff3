"""Names as wrappers, trainers and other tools leave them in a file, and what ldm's or diffusers' files call the same.

Nothing is taken away: a name that would take the place of another one stays as it is.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from sdjax.convert.names import naming

# What PyTorch and its wrappers put into the names of the modules that they hold, anywhere in a name
_WRAPPERS = frozenset(("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))

_UNET = re.compile(r"((?:.*\.)?)(?:input_blocks|middle_block|output_blocks)\.\d+\.")
_VAE = re.compile(r"((?:.*\.)?)(?:encoder\.(?:down\.\d|mid\.)|decoder\.(?:up\.\d|mid\.))")
_CLIP = re.compile(r"((?:(?!.*vision).*\.)?)(?<!text_model\.)(?:text_model\.)?encoder\.layers\.\d+\.")
_OPEN_CLIP = re.compile(r"((?:(?!.*visual\.).*\.)?)transformer\.resblocks\.\d+\.")
_UNET_PARTS = ("time_embed", "input_blocks", "middle_block", "output_blocks", "out", "label_emb")
_VAE_PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv")
_CLIP_PARTS = ("text_model", "embeddings", "encoder", "final_layer_norm", "text_projection", "logit_scale")
_OPEN_CLIP_PARTS = (
    "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "logit_scale", "attn_mask",
)  # fmt: skip
_DIFFUSERS_UNET = re.compile(r"((?:.*\.)?)(?:down_blocks|up_blocks)\.\d+\.(?:resnets|attentions)\.")
_DIFFUSERS_VAE = re.compile(r"((?:.*\.)?)(?:encoder\.down_blocks|decoder\.up_blocks)\.\d+\.")
_DIFFUSERS_PARTS = (
    "conv_in", "conv_out", "conv_norm_out", "time_embedding", "class_embedding", "down_blocks", "up_blocks",
    "mid_block",
)  # fmt: skip
_FOLDERS: tuple[tuple[str, re.Pattern[str], tuple[str, ...]], ...] = (
    ("unet/", _DIFFUSERS_UNET, _DIFFUSERS_PARTS),
    ("vae/", _DIFFUSERS_VAE, _VAE_PARTS),
    ("text_encoder/", _CLIP, _CLIP_PARTS),
)


def standard_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the names that differ from ldm's or diffusers', and theirs for each.

    A network is known by the numbered blocks in it, so that any prefix will do; networks that a file holds under their
    own names are left alone. A whole pipeline in one file with diffusers' names gets those of its folder.
    """
    raw = list(names)
    table = _Renaming(raw)
    table.apply(_unwrapped)
    if any("/" in name for name in raw):
        for folder, pattern, parts in _FOLDERS:
            if prefix := table.prefix(pattern, lambda prefix: True, "", folder):
                table.rename(f"{folder}{prefix}", parts, folder)
        return table.changed()
    unet = table.prefix(_UNET, _has(table, "output_blocks"), standard := naming.LDM_PREFIXES["unet"])
    if unet is not None:
        if unet.endswith(standard) and unet != standard:
            outer = unet.removesuffix(standard)
            table.apply(lambda name: name.removeprefix(outer))
        else:
            table.rename(unet, _UNET_PARTS, standard)
    elif table.diffusers():
        return table.changed()
    vae = table.prefix(_VAE, lambda prefix: True, naming.LDM_PREFIXES["vae"])
    if vae is not None and (vae or unet is not None):
        table.rename(vae, _VAE_PARTS, naming.LDM_PREFIXES["vae"])
    if unet is not None:
        text = naming.LDM_PREFIXES["text"]
        encoders: tuple[tuple[re.Pattern[str], tuple[str, ...], str], ...] = (
            (_CLIP, _CLIP_PARTS, f"{text}transformer."), (_OPEN_CLIP, _OPEN_CLIP_PARTS, f"{text}model."),
        )  # fmt: skip
        for pattern, parts, place in encoders:
            prefix = table.prefix(pattern, lambda prefix: not prefix.startswith(naming.LDM_PREFIXES["vision"]), place)
            if prefix is not None:
                table.rename(prefix, parts, place)
    return table.changed()


class _Renaming:
    """A file's names, each with the one that it has so far."""

    def __init__(self, names: list[str]) -> None:
        self.now = {name: name for name in names}

    def changed(self) -> dict[str, str]:
        return {old: new for old, new in self.now.items() if old != new}

    def apply(self, change: Callable[[str], str]) -> None:
        """Changes names where the new one is not taken."""
        taken = set(self.now.values())
        for old, name in self.now.items():
            new = change(name)
            if new != name and new and new not in taken:
                self.now[old] = new
                taken.add(new)

    def rename(self, prefix: str, parts: tuple[str, ...], standard: str) -> None:
        """Puts `standard` in the place of `prefix` before any of these parts."""
        if prefix == standard:
            return
        beginnings = tuple(f"{prefix}{part}" for part in parts)
        known = tuple(naming.LDM_PREFIXES.values())

        def change(name: str) -> str:
            own = name.startswith(beginnings) and (prefix in known or not name.startswith(known))
            rest = name[len(prefix) :]
            return standard + rest if own and rest.partition(".")[0] in parts else name

        self.apply(change)

    def prefix(
        self, pattern: re.Pattern[str], whole: Callable[[str], bool], standard: str, folder: str = ""
    ) -> str | None:
        """Returns what stands before the names of a network; of several networks `standard`, else not an average.

        Of a folder's names only those that begin with `folder` are looked at, and without it.
        """
        names = (name[len(folder) :] for name in self.now.values() if name.startswith(folder))
        found = Counter(match[1] for name in names if (match := pattern.match(name)))
        networks = {prefix: count for prefix, count in found.items() if whole(prefix)}
        if standard in networks:
            return standard
        return min(networks, key=lambda prefix: ("ema" in prefix, -networks[prefix], prefix), default=None)

    def diffusers(self) -> bool:
        """Renames a whole pipeline in one file with diffusers' names as its folder has them, if it is one."""
        unet = self.prefix(_DIFFUSERS_UNET, _has(self, "time_embedding"), "unet.")
        vae = self.prefix(_DIFFUSERS_VAE, lambda prefix: True, "vae.")
        if unet is None or vae is None:
            return False
        text = self.prefix(_CLIP, lambda prefix: True, "text_encoder.")
        self.rename(unet, _DIFFUSERS_PARTS, "unet/")
        self.rename(vae, _VAE_PARTS, "vae/")
        if text is not None:
            self.rename(text, _CLIP_PARTS, "text_encoder/")
        return True


def _has(table: _Renaming, part: str) -> Callable[[str], bool]:
    """Returns the test whether a prefix is a whole UNet's: a ControlNet has no such part."""
    names = table.now.values()
    return lambda prefix: any(name.startswith(f"{prefix}{part}.") for name in names)


def _unwrapped(name: str) -> str:
    folder, slash, rest = name.rpartition("/")
    return folder + slash + ".".join(part for part in rest.split(".") if part not in _WRAPPERS)
