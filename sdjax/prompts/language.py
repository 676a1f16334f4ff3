"""How a prompt is read: the syntaxes by name, and from text to chunks."""

import dataclasses

from sdjax.checks.arguments import flag, shown, whole
from sdjax.prompts.attention import Piece, comfyui_pieces, web_ui_pieces
from sdjax.prompts.chunks import BACKTRACK, Chunk, Encoder, comfyui_chunks, plain_chunk, web_ui_chunks
from sdjax.prompts.emphasis import RULES
from sdjax.prompts.schedule import Schedule, schedule, split_and

SYNTAXES = {  # and the emphasis of each by default
    "weights": "original",
    "comfyui": "comfyui",
    "plain": "none",
}
LONGEST = 100_000  # characters of a prompt


@dataclasses.dataclass(frozen=True)
class Language:
    """A syntax of prompts and a rule of emphasis.

    `syntax`: "weights" is A1111's: weights, BREAK, AND, changes and alternates; chunks are cut at commas. "comfyui" has
    round brackets only, and ComfyUI's chunks. "plain" takes the text as it stands, and leaves out what does not fit
    into one chunk. `emphasis`: a name of `sdjax.prompts.emphasis.RULES`; None is the syntax's own.

    Two settings of A1111, for "weights" alone: `backtrack`, its comma padding backtrack, is how many tokens, from a
    full chunk's last comma on, may move to the next chunk (None: 20, its default; 0: none). `old_editing`, its old
    prompt editing timelines, counts `when` of `[from:to:when]` as versions before 1.6 did (`sdjax.prompts.schedule`).

    Raises ValueError for unknown names, and for settings that the syntax does not have.
    """

    syntax: str = "weights"
    emphasis: str | None = None
    backtrack: int | None = None
    old_editing: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("prompt_syntax", self.syntax, SYNTAXES),
            ("emphasis", self.emphasis or "none", RULES),
        ):
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}; got {shown(value)}")
        if self.syntax == "plain" and self.rule != "none":
            raise ValueError("emphasis has no effect with prompt_syntax plain: leave one of them out")
        if self.backtrack is not None:
            whole("comma_backtrack", self.backtrack, 0, unit=" of tokens")
        given = {
            "comma_backtrack": self.backtrack is not None,
            "old_prompt_editing": flag("old_prompt_editing", self.old_editing),
        }
        for name in (name for name, used in given.items() if used and self.syntax != "weights"):
            raise ValueError(f"{name} has no effect with prompt_syntax {self.syntax}: leave one of them out")

    @property
    def rule(self) -> str:
        """The name of the rule of emphasis."""
        return SYNTAXES[self.syntax] if self.emphasis is None else self.emphasis

    def joined(self, text: str) -> list[tuple[str, float]]:
        """Returns the prompts that AND joins, with their weights; the text alone in other syntaxes."""
        return split_and(text) if self.syntax == "weights" else [(text, 1.0)]

    def schedule(self, text: str, steps: int, *, after: int | None = None) -> Schedule:
        """Returns the texts of a run of `steps` steps (`sdjax.prompts.schedule`); the text alone in other syntaxes."""
        if self.syntax != "weights":
            return [(steps, text)]
        return schedule(text, steps, after=after, old=self.old_editing)

    def pieces(self, text: str) -> list[Piece]:
        """Returns the pieces of a text, with their weights."""
        if self.rule == "none":
            return [Piece(text, 1.0)]
        return comfyui_pieces(text) if self.syntax == "comfyui" else web_ui_pieces(text)

    def chunks(self, text: str, encoder: Encoder) -> list[Chunk]:
        """Returns the chunks of a text: at least one, exactly one in the plain syntax."""
        if self.syntax == "plain":
            return [plain_chunk(text, encoder)]
        pieces = self.pieces(text)
        if self.syntax == "comfyui":
            return comfyui_chunks(pieces, encoder)
        return web_ui_chunks(pieces, encoder, backtrack=BACKTRACK if self.backtrack is None else self.backtrack)
