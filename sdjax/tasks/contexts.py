"""The contexts of a batch: what the prompts of its pictures become for each branch of guidance."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sdjax.pipeline import placement
from sdjax.pipeline.contexts import Encoded, Text, encode_texts, read_text
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.added_words import without_words
from sdjax.prompts.clip_skip import layers_used
from sdjax.prompts.padding import EMPTIES, pad_contexts
from sdjax.prompts.syntax import check_lengths, check_prompts
from sdjax.samplers import Rows, Start
from sdjax.tasks.computing import Computing
from sdjax.tasks.prompting import Plan, language_of, make_plan, padded_stages
from sdjax.tasks.resolve import Resolved
from sdjax.tasks.text_encoders import encoder_of
from sdjax.typing import Context, Length

NEGATIVE, EMPTY = -1, -2  # branches of the negative and the empty prompt; 0, 1, ... are the prompts that AND joins
BRANCHES = {  # of each branch of guidance by its name; "conditional 2" and so on are the further prompts
    **dict.fromkeys(("conditional", "perturbed", "smoothed"), 0),
    **dict.fromkeys(("unconditional", "nothing"), NEGATIVE),
    "empty": EMPTY,
}


class Branch(NamedTuple):
    """The contexts of one branch, and the number of valid tokens of each (None: all)."""

    context: Context
    length: Length | None


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of a batch's pictures. `after[i]`: steps of an earlier pass, from which changes count on."""

    pipe: Pipeline
    requests: Sequence[Resolved]
    starts: Sequence[Start]
    how: Computing
    after: Sequence[int] = ()

    @functools.cached_property
    def plans(self) -> list[Plan]:
        """What each picture's prompts say at each network call."""
        after: Sequence[int | None] = self.after or [None] * len(self.requests)
        return list(map(self._plan, self.requests, self.starts, after))

    @functools.cached_property
    def encoders(self) -> list[Pipeline]:
        """The pipeline that encodes each picture's prompts: the model's, or one with its adapters and words."""
        return [encoder_of(self.pipe, request, self.how.mesh) for request in self.requests]

    @functools.cached_property
    def texts(self) -> list[dict[int, list[Text]]]:
        """The chunks of each picture's prompts: for each branch, those of all stages."""
        out = []
        for request, encoder, plan in zip(self.requests, self.encoders, self.plans, strict=True):
            language, layers = language_of(request), layers_used(self.pipe.config.text, request.clip_skip)
            branches = {NEGATIVE: plan.negative, EMPTY: ("",) * plan.stages, **dict(enumerate(plan.prompts))}
            out.append({
                branch: [read_text(encoder, text, language, layers) for text in texts]
                for branch, texts in branches.items()
            })  # fmt: skip
        return out

    def shape(self, i: int) -> tuple[Any, ...]:
        """Returns what decides the shapes of picture i's contexts. Pictures of one shape share exact results."""
        given = [getattr(self.requests[i], name) for name in ("prompt_embeds", "negative_prompt_embeds")]
        lengths = {branch: tuple(len(text.chunks) for text in texts) for branch, texts in self.texts[i].items()}
        return self.plans[i].stages, tuple(lengths.items()), tuple(None if one is None else len(one) for one in given)

    def rows(self) -> list[Rows]:
        """Returns the rows of the pictures that have some, with the stage of each call."""
        return [
            start.rows if plan.stages == 1 else start.rows._replace(stage=plan.stage[np.asarray(start.rows.index)])
            for start, plan in zip(self.starts, self.plans, strict=True)
            if start.rows is not None
        ]

    def contexts(self, branches: Sequence[int]) -> list[Branch]:
        """Returns the contexts of branches, spread over the devices. See NEGATIVE for the numbers of branches."""
        size = self.pipe.config.text.max_length
        given = [self._given(request) for request in self.requests]
        simple = all(
            plan.stages == 1 and len(plan.prompts) == 1 and all(len(one) == size for one in own.values())
            for plan, own in zip(self.plans, given)
        )
        texts = [text for own in self.texts for branch in branches for text in own[branch]]
        layers = {text.layers for text in texts}
        if (
            simple
            and len(layers) == 1
            and len(set(map(id, self.encoders))) == 1
            and all(len(t.chunks) == 1 and not t.is_weighted for t in texts)
        ):
            return [self._simple(branch, texts[0].layers, given) for branch in branches]
        return self._stacked(branches, given)

    def _simple(self, branch: int, layers: int, given: Sequence[dict[int, Encoded]]) -> Branch:
        """Returns the contexts of prompts of one chunk without emphasis, which need not leave the devices."""
        mesh, parts = self.how.mesh, placement.parts(self.how.mesh)
        ids = np.array(placement.fill([own[branch][0].chunks[0].ids for own in self.texts], parts), np.int32)
        made = self.encoders[0].encode_tokens(
            ids, layers=layers, mesh=mesh, parallel=self.how.parallel, exact=self.how.exact
        )  # fmt: skip
        if not any(branch in own for own in given):
            return Branch(made, None)
        own = placement.fill([one.get(branch) for one in given], parts)
        context = np.stack([encoded if one is None else one for one, encoded in zip(own, np.asarray(made))])
        return Branch(placement.split(context, mesh), None)

    def _stacked(self, branches: Sequence[int], given: Sequence[dict[int, Encoded]]) -> list[Branch]:
        """Returns the contexts of prompts of any length and number of stages."""
        mesh, count = self.how.mesh, placement.padded(len(self.requests), placement.parts(self.how.mesh))
        stages = padded_stages(self.plans)
        made = []
        nothing = np.zeros((0, self.pipe.config.text.width), np.float32)
        wanted: list[tuple[int, Text]] = []
        for i, (request, texts) in enumerate(zip(self.requests, self.texts, strict=True)):
            wanted += [(i, text) for branch in branches for text in texts[branch]]
            wanted += [(i, self._empty(request))] if request.pad_contexts == EMPTIES else []
        encoded = iter(self._encode(wanted, count))
        for i, (request, texts) in enumerate(zip(self.requests, self.texts, strict=True)):
            encoded_here = {branch: [next(encoded) for _ in texts[branch]] for branch in branches}
            empty = next(encoded) if request.pad_contexts == EMPTIES else nothing
            made.append(self._equal(i, branches, encoded_here, given[i], empty))
        made = placement.fill(made, placement.parts(mesh))
        longest = max(len(context) for one in made for contexts in one.values() for context in contexts)
        out = []
        lengths_needed = any(len(c) != longest for one in made for contexts in one.values() for c in contexts)
        for branch in branches:
            context = np.zeros((count, stages, longest, self.pipe.config.text.width), np.float32)
            length = np.zeros((count, stages), np.int32)
            for i, one in enumerate(made):
                for stage in range(stages):
                    own = one[branch][min(stage, len(one[branch]) - 1)]
                    context[i, stage, : len(own)] = own
                    length[i, stage] = len(own)
            if stages == 1:
                context, length = context[:, 0], length[:, 0]
            out.append(Branch(
                placement.split(context, mesh), placement.split(length, mesh) if lengths_needed else None
            ))  # fmt: skip
        return out

    def keyframes(
        self, branches: Sequence[int], at_a_time: int
    ) -> tuple[list[Float[np.ndarray, "k ..."]], Int[np.ndarray, "n"]]:
        """Returns the contexts of branches for each picture, and the stage of each call, which is that of all pictures.

        Contexts are [k, m, d], or [k, stages, m, d] if a prompt changes while sampling. Shorter ones have empty prompts
        behind them, so that they can be mixed.
        """
        at_call = list(zip(*(plan.stage.tolist() for plan in self.plans), strict=True))
        different = list(dict.fromkeys(at_call))
        texts = [
            (i, own.get(branch, own[EMPTY])[numbers[i]])
            for branch in branches for i, own in enumerate(self.texts) for numbers in different
        ]  # fmt: skip
        *encoded, nothing = self._encode([*texts, (0, self._empty(self.requests[0]))], at_a_time)
        longest = max(map(len, encoded))
        filled = np.stack([np.concatenate([a, *[nothing] * ((longest - len(a)) // len(nothing))]) for a in encoded])
        shape = (len(branches), len(self.plans), len(different), *filled.shape[1:])
        contexts = filled.reshape(shape)
        stage = np.array([different.index(one) for one in at_call], np.int32)
        return list(contexts[:, :, 0] if len(different) == 1 else contexts), stage

    def _encode(self, texts: Sequence[tuple[int, Text]], at_a_time: int) -> list[Encoded]:
        """Returns the contexts of texts, each by the text encoder of the picture whose number stands before it."""
        out: dict[int, Encoded] = {}
        for encoder in {id(one): one for one in self.encoders}.values():
            own = [k for k, (i, _) in enumerate(texts) if self.encoders[i] is encoder]
            encoded = encode_texts(
                encoder, [texts[k][1] for k in own], at_a_time=at_a_time,
                mesh=self.how.mesh, parallel=self.how.parallel, exact=self.how.exact,
            )  # fmt: skip
            out.update(zip(own, encoded, strict=True))
        return [out[k] for k in range(len(texts))]

    def _equal(
        self, i: int, branches: Sequence[int], made: dict[int, list[Encoded]], given: dict[int, Encoded], empty: Encoded
    ) -> dict[int, list[Encoded]]:
        """Returns picture i's contexts with its own embeddings, padded as it asks for."""
        how = self.requests[i].pad_contexts or "lengths"
        out: dict[int, list[Encoded]] = {branch: [] for branch in branches}
        for stage in range(self.plans[i].stages):
            now = {branch: given.get(branch, made[branch][stage]) for branch in branches}
            conds = [branch for branch in branches if branch >= 0]
            equal, negative = pad_contexts(how, [now[branch] for branch in conds], now.get(NEGATIVE), empty)
            for branch, one in zip(conds, equal):
                out[branch].append(one)
            if negative is not None:
                out[NEGATIVE].append(negative)
            if EMPTY in branches:
                out[EMPTY].append(now[EMPTY])
        return out

    def _empty(self, request: Resolved) -> Text:
        layers = layers_used(self.pipe.config.text, request.clip_skip)
        return read_text(self.pipe, "", language_of(request), layers)

    def _given(self, request: Resolved) -> dict[int, Encoded]:
        """Returns the embeddings that a request gives itself, by branch."""
        own = {0: request.prompt_embeds, NEGATIVE: request.negative_prompt_embeds}
        return {branch: np.asarray(one) for branch, one in own.items() if one is not None}

    def _plan(self, request: Resolved, start: Start, after: int | None) -> Plan:
        language = language_of(request)
        texts = request.prompt, request.negative_prompt
        calls = 1 if start.rows is None else np.size(start.rows.index)
        steps = request.num_steps
        if language.syntax == "weights" and any("[" in text for text in texts):
            steps = steps_counted(request)
        return make_plan(language, *texts, steps=steps, calls=calls, after=after)


def branch_of(name: str) -> int:
    """Returns the number of a branch of guidance. Raises ValueError for names that no task has an input for."""
    first, _, number = name.partition(" ")
    if first == "conditional" and number.isdecimal():
        return int(number) - 1
    if name not in BRANCHES:
        raise ValueError(f"no task has an input for the branch {name!r} of guidance; it has {', '.join(BRANCHES)}")
    return BRANCHES[name]


def steps_counted(request: Resolved) -> int:
    """Returns the number of steps that a prompt's changes count: twice as many for samplers of second order.

    A1111 counts the calls of the denoiser, so `[a:b:0.5]` changes in the middle of a run of Heun's method too.
    """
    calls = np.size(request.sampler.steps(request.noise_schedule, request.num_steps).index)
    return request.num_steps * max(1, round(calls / request.num_steps))


def note_prompts(pipe: Pipeline, requests: Sequence[Resolved]) -> None:
    """Notes the parts of prompts that the text encoder will not see or that are another tool's syntax."""
    by_syntax: dict[str, list[str]] = {}
    for request in requests:
        words = [one.word for one in request.word_embeddings]
        texts = [without_words(text, words) for text in (request.prompt, request.negative_prompt) if text]
        by_syntax.setdefault(language_of(request).syntax, []).extend(texts)
    for syntax, texts in by_syntax.items():
        note_texts(pipe, texts, syntax)


def note_texts(pipe: Pipeline, texts: Sequence[str], syntax: str) -> None:
    """Notes the parts of texts in a syntax that the text encoder will not see or does not understand."""
    check_prompts(texts, syntax)
    if syntax == "plain":
        check_lengths(pipe.tokenizer, texts, pipe.config.text.max_length)
