"""Compiles the programs that advance pictures, on a thread of its own: sampling goes on with what is there.

A program is for a kind of pictures, a number of them (a power of two), and what some of them need: longer contexts,
changing prompts, a low-rank adapter. If a program is missing, pictures are advanced by one for fewer of them until it
is there.
"""

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sdjax.nn.jax_settings import pinned
from sdjax.pipeline import placement
from sdjax.samplers.rule import State
from sdjax.serve.engine.entries import Entry, Kind, arguments, common_contexts, compiled, power, with_lora

KEPT = 128  # programs


class Recipe(NamedTuple):
    """What a program is compiled for. `rank` is -1 without a low-rank adapter."""

    kind: Kind
    length: int
    stages: int
    rank: int
    size: int


def recipe_of(entries: Sequence[Entry], mesh: Mesh) -> Recipe:
    """Returns what advances these entries of one kind together."""
    rank = max(-1 if one.lora is None else one.lora.rank for one in entries)
    return Recipe(entries[0].kind, *common_contexts(entries), rank, placement.padded(power(len(entries)), mesh.size))


class Programs:
    """The compiled programs of a device. `ready` is called whenever another one is there."""

    def __init__(self, mesh: Mesh, ready: Callable[[], None]) -> None:
        self.mesh, self._ready = mesh, ready
        self._made: dict[Recipe, Any] = {}
        self._failed: dict[Recipe, BaseException] = {}
        self._asked: set[Recipe] = set()
        self._queue: list[tuple[int, int, Recipe, Sequence[Entry]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="sdjax compiler", daemon=True)
        self._thread.start()

    def find(self, entries: Sequence[Entry]) -> int:
        """Returns how many of these entries of one kind, in their order, can be advanced together now.

        What is missing is compiled, for all of them and for the first one. Raises what the compiler raised.
        """
        count = len(entries)
        while count:
            recipe = recipe_of(entries[:count], self.mesh)
            if recipe in self._failed:
                raise self._failed[recipe]
            if recipe in self._made:
                return count
            self.ask(entries[:count])
            count = 0 if count == 1 else power(count) // 2
        return 0

    def ask(self, entries: Sequence[Entry]) -> Recipe:
        """Has the program of these entries compiled, small ones first, and returns what it is for."""
        recipe = recipe_of(entries, self.mesh)
        with self._changed:
            if recipe not in self._asked:
                self._asked.add(recipe)
                heapq.heappush(self._queue, (recipe.size, next(self._numbers), recipe, list(entries)))
                self._changed.notify_all()
        return recipe

    def wait_for_all(self) -> None:
        """Waits until everything that was asked for is there, or the device is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._asked <= {*self._made, *self._failed})

    def advance(self, entries: Sequence[Entry]) -> list[State]:
        """Returns the states of entries after their next chunk. Their program is there (`find`)."""
        recipe = recipe_of(entries, self.mesh)
        program = self._made.pop(recipe)
        self._made[recipe] = program  # the most recently used is last
        states = program(*arguments(entries, recipe.size, recipe.length, recipe.stages, max(recipe.rank, 0)))
        states = list(states[: len(entries)])
        jax.block_until_ready(states)
        return states

    def close(self) -> None:
        """Stops after the present compilation."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _drop(self, recipe: Recipe) -> None:
        del self._made[recipe]
        self._asked.discard(recipe)

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._queue)
                if self._closed:
                    return
                _, _, recipe, entries = heapq.heappop(self._queue)
            made, failed = None, None
            try:
                made = self._compile(recipe, entries)
            except BaseException as error:
                failed = error
            with self._changed:
                if failed is not None:
                    self._failed[recipe] = failed
                else:
                    self._made[recipe] = made
                if len(self._made) > KEPT:
                    self._drop(next(iter(self._made)))
                self._changed.notify_all()
            self._ready()

    def _compile(self, recipe: Recipe, entries: Sequence[Entry]) -> Any:
        with pinned():
            given = arguments(entries, recipe.size, recipe.length, recipe.stages, max(recipe.rank, 0))
            program = recipe.kind.program if recipe.rank < 0 else with_lora(recipe.kind.program)
            return compiled(program, self.mesh, recipe.size).lower(*given).compile()
