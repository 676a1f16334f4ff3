"""The prompts that were queued by ComfyUI's interface: their nodes' outputs and what happened, by the job's id."""

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from sdjax.serve.engine.job import Job
from sdjax.serve.engine.work import Event, Record

MOST = 500  # prompts that are remembered
STATUS = {"waiting": "pending", "running": "in_progress", "done": "completed"}  # else the job's own


@dataclasses.dataclass(eq=False)
class Prompt:
    """One prompt. `number` is its place in the order of all. `outputs` are what its nodes showed, by id.

    `states` are the nodes that were begun: (state, done, total).
    """

    number: float
    job: Job
    graph: Mapping[str, Any]
    extra: Mapping[str, Any]
    client: str
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    states: dict[str, tuple[str, int, int]] = dataclasses.field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=list)
    started: float | None = None
    ended: float | None = None
    problem: dict[str, Any] | None = None
    node: str | None = None  # that runs

    @property
    def status(self) -> str:
        """The state by ComfyUI's names."""
        return STATUS.get(self.job.state, self.job.state)

    def take(self, event: Event) -> list[tuple[str, dict[str, Any]]]:
        """Returns the messages that an event becomes: (type, data)."""
        made = self._messages(event)
        kept = ("execution_start", "execution_cached", "execution_success", "execution_error", "execution_interrupted")
        self.messages += [one for one in made if one[0] in kept]
        return made

    def _messages(self, event: Event) -> list[tuple[str, dict[str, Any]]]:
        own, data = {"prompt_id": self.job.id}, event.data
        now = {**own, "timestamp": int(time.time() * 1000)}
        if event.kind == "started":
            self.started = time.time()
            self.states.clear()
            return [("execution_start", now)]
        if event.kind in ("done", "failed", "cancelled"):
            self.ended = time.time()
            end = {"done": "execution_success", "failed": "execution_error", "cancelled": "execution_interrupted"}
            more: dict[str, Any] = {}
            if event.kind != "done":
                more = {"node_id": self.node, "node_type": self._kind(self.node), "executed": list(self.outputs)}
            if event.kind == "failed":
                self.problem = self.problem or {
                    "exception_message": str(data.get("error", "")), "exception_type": "ValueError", "traceback": [],
                    "current_inputs": {}, "current_outputs": {},
                }  # fmt: skip
                more |= self.problem
            return [(end[event.kind], {**now, **more}), ("executing", {**own, "node": None})]
        if event.kind == "node":
            return self._of_node(data, own, now)
        return []

    def _of_node(
        self, data: Mapping[str, Any], own: dict[str, Any], now: dict[str, Any]
    ) -> list[tuple[str, dict[str, Any]]]:
        number = data["node"]
        shown = {**own, "node": number, "display_node": number}
        if data["what"] == "cached":
            return [("execution_cached", {**now, "nodes": [number]})]
        if data["what"] == "executing":
            self._finish()
            self.node, self.states[number] = number, ("running", 0, 1)
            return [("executing", shown), self._progress_state()]
        if data["what"] == "progress":
            self.states[number] = ("running", data["done"], max(1, data["total"]))
            progress = {**own, "node": number, "value": data["done"], "max": max(1, data["total"])}
            return [("progress", progress), self._progress_state()]
        if data["what"] == "executed":
            self.outputs[number] = data["ui"]
            return [("executed", {**shown, "output": data["ui"]})]
        self.problem = {
            "exception_message": data["reason"], "exception_type": "ValueError", "traceback": [], "current_inputs": {},
            "current_outputs": {},
        }  # fmt: skip
        return []

    def _finish(self) -> None:
        if self.node is not None:
            *_, total = self.states.get(self.node, ("", 1, 1))
            self.states[self.node] = ("finished", total, total)

    def _progress_state(self) -> tuple[str, dict[str, Any]]:
        nodes = {
            number: {
                "value": done, "max": total, "state": state, "node_id": number, "prompt_id": self.job.id,
                "display_node_id": number, "parent_node_id": None, "real_node_id": number,
            }
            for number, (state, done, total) in self.states.items()
        }  # fmt: skip
        return "progress_state", {"prompt_id": self.job.id, "nodes": nodes}

    def _kind(self, number: str | None) -> str | None:
        node = self.graph.get(number or "")
        return node.get("class_type") if isinstance(node, Mapping) else None

    def queued(self) -> list[Any]:
        """Returns the prompt as `/queue` lists it."""
        return [self.number, self.job.id, self.graph, self.extra, []]

    def past(self) -> dict[str, Any]:
        """Returns the prompt as `/history` has it."""
        status = {
            "status_str": "success" if self.job.state == "done" else "error", "completed": self.job.state == "done",
            "messages": [list(one) for one in self.messages],
        }  # fmt: skip
        return {"prompt": self.queued(), "outputs": self.outputs, "status": status, "meta": {}}

    def listed(self) -> dict[str, Any]:
        """Returns the prompt as `/jobs` lists it. Times are in milliseconds."""
        times = {
            "create_time": self.job.created, "execution_start_time": self.started, "execution_end_time": self.ended,
        }  # fmt: skip
        pictures = [
            {**picture, "nodeId": number, "mediaType": "images"}
            for number, ui in self.outputs.items()
            for picture in (ui or {}).get("images", [])
        ]
        problem = None
        if self.problem is not None:
            problem = {**self.problem, "node_id": self.node or "", "node_type": self._kind(self.node) or "",
                       "prompt_id": self.job.id, "timestamp": int((self.ended or 0) * 1000)}  # fmt: skip
        return {
            "id": self.job.id, "status": self.status, "priority": self.number,
            **{name: None if value is None else int(value * 1000) for name, value in times.items()},
            "preview_output": pictures[-1] if pictures else None, "outputs_count": len(pictures),
            "execution_error": problem, "workflow_id": None,
        }  # fmt: skip


class Prompts:
    """The prompts of this server, oldest first. Earlier servers' are made again from the history."""

    def __init__(self) -> None:
        self.known: OrderedDict[str, Prompt] = OrderedDict()
        self._count = 0

    def all(self) -> list[Prompt]:
        """Returns the prompts, the oldest first."""
        return list(self.known.values())

    def next_number(self) -> int:
        """Returns the number of a new prompt."""
        self._count += 1
        return self._count

    def add(self, prompt: Prompt) -> None:
        """Keeps a prompt. The oldest that are over are forgotten."""
        self.known[prompt.job.id] = prompt
        for old in [id for id, one in self.known.items() if one.job.ended][: max(0, len(self.known) - MOST)]:
            del self.known[old]


def from_records(records: list[Record]) -> dict[str, Any]:
    """Returns pictures of the history that graphs made, as `/history` has them."""
    out: dict[str, Any] = {}
    for record in reversed(records):
        if record.task != "workflow":
            continue
        entry = out.setdefault(
            record.id,
            {
                "prompt": [0, record.id, {}, {}, []], "outputs": {},
                "status": {"status_str": "success", "completed": True, "messages": []}, "meta": {},
            },
        )  # fmt: skip
        shown = entry["outputs"].setdefault(str(record.settings.get("node", "")), {"images": []})
        shown["images"].append({"filename": f"{record.name}.png", "subfolder": "", "type": "output"})
    return out
