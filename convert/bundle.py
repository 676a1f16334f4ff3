"""The contents of a checkpoint: a model's configuration and parameters, and everything that came with them.

`sdjax.convert.load_model` returns a Bundle. Pipelines and training runs keep it beside the parameters that they
change, and the writers take it, so nothing is lost in between. It is in this package because it uses the package's
tensors and errors.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import ModelConfig
from sdjax.convert.containers.casting import Loss, cast
from sdjax.convert.containers.lazy import LazyTensor, Packed, float_type, is_floating, read_tree, same_bytes
from sdjax.convert.containers.quantising import check_choice, quantised_leaves
from sdjax.convert.describe.tokens import check_tokens
from sdjax.convert.errors import CheckpointError, listed
from sdjax.convert.names import beside, tables
from sdjax.nn.quantised.kinds import AS_STORED, KINDS
from sdjax.nn.quantised.leaf import Quantised
from sdjax.prompts.tokenizer import CLIP_TOKENS, Tokenizer
from sdjax.typing import Params


@dataclasses.dataclass(frozen=True)
class Report:
    """The decisions made while a model was read. `notices` are messages for its user."""

    layout: str
    config_origin: str
    prediction_origin: str
    ema: bool
    notices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A model and what belongs to it.

    Attributes:
        config: the model's description.
        leaves: the parameters by path in Flax's layout, each in the type that it is stored in and read when needed.
        extras: other tensors of the files, by the names that they have there.
        report: what was decided while reading.
        metadata: text by key, from the file's header.
        files: a diffusers folder's JSON files, by path.
        licences: texts by file name.
        own_tokenizer: the tokenizer that came with the model, None if none came.
        cards: model cards, texts by file name.
        in_memory: parameters that replace the stored ones, None if they are the stored ones.
        losses: of the tensors read so far, those whose numbers the type asked for cannot hold.
    """

    config: ModelConfig
    leaves: Mapping[str, LazyTensor]
    extras: Mapping[str, LazyTensor]
    report: Report
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own_tokenizer: Tokenizer | None = None
    cards: Mapping[str, str] = dataclasses.field(default_factory=dict)
    in_memory: Params | None = dataclasses.field(default=None, repr=False)
    losses: dict[str, Loss] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        return f"<Bundle {self.config.name}: {len(self.leaves)} tensors of parameters, {len(self.extras)} others>"

    @functools.cached_property
    def params(self) -> Params:
        """The parameters as Flax's nested tree of numpy arrays. They are read once and kept."""
        return self.read_params()

    def read_params(self, *, quantised: bool = False) -> Params:
        """Returns the parameters as Flax's nested tree of numpy arrays, read one tensor at a time and not kept.

        With `quantised`, quantised kernels are `sdjax.nn.quantised.leaf.Quantised`.
        """
        if self.in_memory is not None:
            return self.in_memory
        return read_tree(self.leaves, self.losses, views=self.report.layout == "native", quantised=quantised)

    def quantised(self, asked: str) -> "Bundle":
        """Returns the bundle with kernels quantised: to a type, "no" for not at all, "auto" for as they are stored.

        Only `read_params(quantised=True)` and the writers see it. Raises ValueError for anything else.
        """
        if check_choice(asked) == AS_STORED:
            return self
        bundle = self.as_leaves()
        return dataclasses.replace(bundle, leaves=quantised_leaves(bundle.leaves, asked))

    def text_with(self, layers: int) -> Params | None:
        """Returns the parameters of the text encoder's blocks up to `layers` that the model does not use.

        They are among the extras of Stable Diffusion 2's single files. None if they are not there.
        """
        own = self.config.text
        known = {entry.name for entry in tables.part_entries("text", own, "ldm")}
        more = tables.part_entries("text", dataclasses.replace(own, layers=layers), "ldm")
        wanted = [entry for entry in more if entry.name not in known]
        if not all(entry.name in self.extras for entry in wanted):
            return None
        leaves = {path: leaf for entry in wanted for path, leaf in entry.split(self.extras[entry.name]).items()}
        tree: Params = read_tree(leaves, self.losses)["text"]
        return tree

    def with_params(
        self, params: Params, config: ModelConfig | None = None, notices: Sequence[str] | None = None
    ) -> "Bundle":
        """Returns the bundle with parameters in memory instead of the stored ones.

        `config` is their description, if it is another one. `notices` replace those of the report. The parameters are
        held against the description when the bundle is written or cast.
        """
        report = self.report if notices is None else dataclasses.replace(self.report, notices=tuple(notices))
        config = self.config if config is None else config
        return dataclasses.replace(self, config=config, report=report, in_memory=params)

    def as_leaves(self) -> "Bundle":
        """Returns the bundle with its parameters in memory, if any, as leaves.

        A parameter that still equals the stored one is the stored one, in its type. Another one is cast to the stored
        type only if that loses nothing. Raises ValueError if the parameters are not the description's.
        """
        if self.in_memory is None:
            return self
        leaves = leaves_of(self.config, self.in_memory, self.leaves)
        report = dataclasses.replace(self.report, layout="memory")
        return dataclasses.replace(self, leaves=leaves, report=report, in_memory=None)

    def cast(self, dtype: DTypeLike | None) -> "Bundle":
        """Returns the bundle in another floating-point type; noise tables and the like stay as they are."""
        kind, bundle = float_type(dtype), self.as_leaves()
        leaves = {path: leaf.cast(kind) for path, leaf in bundle.leaves.items()}
        extras = {name: leaf if beside.BUFFERS.fullmatch(name) else leaf.cast(kind)
                  for name, leaf in bundle.extras.items()}  # fmt: skip
        return dataclasses.replace(bundle, leaves=leaves, extras=extras)

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that came with the model, CLIP's own if none came.

        Raises CheckpointError if none came and CLIP's has tokens that the text encoder does not know.
        """
        if self.own_tokenizer is not None:
            return self.own_tokenizer
        if self.config.text.vocab_size < CLIP_TOKENS:
            raise CheckpointError(
                f"it brings no tokenizer, and its text encoder has {self.config.text.vocab_size} tokens, not the "
                f"{CLIP_TOKENS} of CLIP's own: take the folder or file from which it was converted (sdjax convert now "
                "keeps the tokenizer), or convert it to a folder and put the tokenizer's files into its tokenizer/",
            )
        return Tokenizer()

    def tokenizer_with(self, vocab: Tokenizer | None) -> Tokenizer:
        """Returns the model's tokenizer. `vocab` is the vocabulary of a model that reads BERT's tokens.

        Raises ValueError if such a model has no vocabulary or another one, or if a model of CLIP's tokens is given one.
        """
        text = self.config.text
        if text.kind != "bert":
            if vocab is not None:
                raise ValueError(
                    f"a vocabulary was given for a model that has its own ({self.config.name}); leave it out"
                )
            return self.tokenizer()
        tokenizer = self.own_tokenizer if vocab is None else vocab
        if tokenizer is None:
            raise ValueError(
                "this model's text encoder reads BERT's tokens, and its checkpoint holds no vocabulary: give the "
                "vocab.txt of bert-base-uncased by vocab= (--vocab on the command line)"
            )
        if tokenizer.vocab_size != text.vocab_size:
            raise ValueError(
                f"the vocabulary has {tokenizer.vocab_size} tokens and the text encoder {text.vocab_size}; "
                "bert-base-uncased's vocab.txt is wanted"
            )
        return tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "Bundle":
        return self  # nothing of it changes, and its files cannot be opened twice

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes a pickle hold all but the tensors that lie in files."""
        return Bundle, (self.config, {}, {}, self.report, self.metadata, self.files, self.licences, self.own_tokenizer,
                        self.cards, self.in_memory)  # fmt: skip


def bundle_of_params(
    config: ModelConfig, params: Params, tokenizer: Tokenizer | None = None, like: Bundle | None = None
) -> Bundle:
    """Returns the bundle of parameters in memory, with the rest of `like`, which they were read from.

    Raises ValueError if the parameters are not the description's, the tokenizer has tokens that the text encoder does
    not know, or there is no tokenizer and CLIP's own is not the text encoder's.
    """
    if tokenizer is None and config.text.kind == "clip" and config.text.vocab_size != CLIP_TOKENS:
        raise ValueError(
            f"the text encoder has {config.text.vocab_size} tokens, and CLIP's own tokenizer {CLIP_TOKENS}: give the "
            "model's by tokenizer= (sdjax.convert.load_model(path).tokenizer() reads it)"
        )
    if tokenizer is not None:
        check_tokens(tokenizer, config.text, ValueError)
    like = Bundle(config, {}, {}, Report("memory", "argument", "argument", False)) if like is None else like
    return dataclasses.replace(like, config=config, own_tokenizer=tokenizer, in_memory=params).as_leaves()


def leaves_of(config: ModelConfig, params: Params, before: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns parameters in memory by path; `before` are the leaves that they were read from.

    A parameter that still equals the stored one is the stored one. Another one is cast to the type of the stored one
    only if this loses nothing. Raises ValueError if they are not the description's.
    """
    leaves, problems = {}, []
    for parameter in tables.parameters(config):
        path, array = parameter.path, _at(params, parameter.path)
        if array is None or tuple(array.shape) != parameter.shape:
            got = "nothing" if array is None else list(array.shape)
            problems.append(f"{path} is {list(parameter.shape)}, got {got}")
            continue
        leaf = LazyTensor(parameter.shape, np.dtype(array.dtype), functools.partial(np.asarray, array), name=path)
        old = before.get(path)
        if isinstance(array, Quantised):
            kept = functools.partial(jax.tree.map, np.asarray, array)
            leaf = dataclasses.replace(leaf, packed=Packed(KINDS[array.kind], kept))
        elif old is not None and old.shape == leaf.shape:
            leaf = _like(leaf, old.stored or old)
        leaves[path] = leaf
    if problems:
        raise ValueError(f"the parameters are not the description's: {listed(problems)}")
    return leaves


def _like(leaf: LazyTensor, stored: LazyTensor) -> LazyTensor:
    """Returns the stored leaf if the other was cast from it, else the other, in the stored type if it fits exactly."""
    now, then = leaf.read(), stored.read()
    if same_bytes(cast(then, now.dtype), now):
        stored.release()
        return stored
    exact = is_floating(now.dtype) and same_bytes(cast(cast(now, stored.dtype), now.dtype), now)
    return leaf.cast(stored.dtype) if exact else leaf


def _at(tree: Params, path: str) -> Any:
    node: Any = tree
    for module in path.split("/"):
        node = node.get(module) if isinstance(node, Mapping) else None
    return node
