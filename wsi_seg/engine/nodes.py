"""The nodes of a Ray cluster, and how a node gets workers: it is looked at, then its workers load the model."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wsi_seg.engine.preflight import Preflight
from wsi_seg.engine.worker import JOBS, Worker, WorkerInfo, WorkerOptions
from wsi_seg.process import ENVIRONMENT

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

_LOOK_S = 60.0  # a node that does not answer for so long has a hung mount, or no room for a process


@dataclass(frozen=True)
class Node:
    """A node that is alive. name: what an administrator knows it by."""

    id: str
    name: str
    cpus: int
    gpus: int

    def workers(self, options: WorkerOptions) -> int:
        """Return how many workers it takes: one per GPU, or one with all cores where there is none."""
        if options.device == "cpu" or (options.device == "auto" and not self.gpus):
            return min(self.cpus, 1)
        return self.gpus


@dataclass(eq=False)
class Member:
    """A worker that is ready, or was.

    load: the jobs it has. away: answers when it is back from a restart, None while it is there. killed: the process
    that is to end.
    """

    node: Node
    actor: Any
    info: WorkerInfo
    load: int = 0
    away: Ref | None = None
    lost: bool = False
    killed: str = ""

    @property
    def here(self) -> bool:
        return not self.lost and self.away is None

    @property
    def kind(self) -> tuple[str, str, str]:
        """What decides, besides slide and settings, about the bytes of its results."""
        return self.info.device, self.info.precision, self.info.backend

    def leave(self) -> None:
        """Give it no more until it is back: after a restart it loads the model first."""
        if self.here:
            self.away = self.actor.describe.options(max_task_retries=-1).remote()

    def restart(self) -> None:
        """End its process; another takes its place."""
        import ray

        ray.kill(self.actor, no_restart=False)
        self.killed = self.info.process
        self.leave()

    def return_or_be_lost(self) -> None:
        """Take its answer; where its node is lost, or it cannot load the model again, there is none."""
        import ray

        answer, self.away = self.away, None
        try:
            self.info = ray.get(answer)  # type: ignore[arg-type]
        except ray.exceptions.RayError:
            self.lost = True
        if self.info.process == self.killed:  # it answers until the kill arrives
            self.leave()

    def end(self) -> None:
        """End its process."""
        import ray

        ray.kill(self.actor)


@dataclass(frozen=True)
class Refusal:
    """Why a node gets no workers."""

    node: Node
    reason: str

    def __str__(self) -> str:
        return f"Node {self.node.name}: {self.reason}"


@dataclass
class Recruits:
    """Nodes on their way to having workers: `awaited` is what to wait for, `take` goes on with it.

    preflight: what a node must pass; None where all are this machine.
    """

    options: WorkerOptions
    preflight: Preflight | None
    _known: set[str] = field(default_factory=set)
    _looking: dict[Ref, tuple[Node, float]] = field(default_factory=dict)
    _loading: dict[Ref, tuple[Node, Any]] = field(default_factory=dict)

    @property
    def awaited(self) -> list[Ref]:
        return [*self._looking, *self._loading]

    @property
    def looking(self) -> bool:
        """Whether there are nodes that have not said yet whether they can do the work."""
        return bool(self._looking)

    def welcome(self, nodes: Iterable[Node]) -> None:
        """Begin with every node that is seen for the first time."""
        for node in nodes:
            if node.id in self._known or not node.workers(self.options):
                continue
            self._known.add(node.id)
            if self.preflight is None:
                self._load(node)
            else:
                self._looking[self.preflight.ask(node.id)] = node, time.monotonic()

    def answers(self, timeout_s: float) -> list[Ref]:
        """Wait until one of `awaited` has answered, or so long; return those that have."""
        import ray

        if not self.awaited:
            time.sleep(timeout_s)
            return []
        return ray.wait(self.awaited, num_returns=1, timeout=timeout_s)[0]

    def take(self, ref: Ref) -> Member | Refusal | None:
        """Go on with a node that has answered; one that was lost meanwhile is forgotten."""
        import ray

        if ref in self._looking:
            node, _ = self._looking.pop(ref)
            try:
                problems = ray.get(ref)
            except ray.exceptions.RayError as error:
                if not _is_alive(node):
                    return None
                problems = [f"runs no task of this package: {one_line(error)}"]
            if problems:
                return Refusal(node, "; ".join(problems))
            self._load(node)
            return None
        node, actor = self._loading.pop(ref)
        try:
            return Member(node, actor, ray.get(ref))
        except ray.exceptions.RayError as error:
            if not _is_alive(node):
                return None
            return Refusal(node, f"its worker does not start: {_raised_there(error)}")

    def overdue(self) -> Iterator[Refusal]:
        """Give up on nodes that do not answer."""
        for ref, (node, since) in list(self._looking.items()):
            if time.monotonic() - since > _LOOK_S:
                del self._looking[ref]
                yield Refusal(
                    node, f"has not answered for {_LOOK_S:.0f} s; look at its mounts, its memory and its load"
                )

    def close(self) -> None:
        """End the workers that are not ready yet."""
        import ray

        if self.preflight is not None:
            self.preflight.close()
        for _, actor in self._loading.values():
            ray.kill(actor)

    def _load(self, node: Node) -> None:
        for _ in range(node.workers(self.options)):
            actor = _start_worker(node, self.options)
            self._loading[actor.describe.remote()] = node, actor


def alive_nodes() -> list[Node]:
    """Return the cluster's nodes."""
    import ray

    return [
        Node(
            id=node["NodeID"],
            name=_name_of(node),
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def _is_alive(node: Node) -> bool:
    return any(node.id == other.id for other in alive_nodes())


def _name_of(node: dict[str, Any]) -> str:
    """Return the name that was given to the node, else its host's, with its address."""
    address = node["NodeManagerAddress"]
    name = node.get("NodeName") or address
    return f"{node['NodeManagerHostname'] if name == address else name} ({address})"


def _start_worker(node: Node, options: WorkerOptions) -> Any:  # noqa: ANN401
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    uses_gpu, workers = node.gpus > 0 and options.device != "cpu", node.workers(options)
    actor = ray.remote(Worker).options(
        num_gpus=1 if uses_gpu else 0,
        num_cpus=node.cpus // workers or node.cpus / workers,
        max_restarts=-1,
        max_concurrency=JOBS["cuda" if uses_gpu else "cpu"] + 1,  # and one question how it is
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        runtime_env={"env_vars": ENVIRONMENT},
    )
    return actor.remote(replace(options, workers=workers))


def _raised_there(error: BaseException) -> str:
    """Return what a worker raised while it started: of an error of this package, which Ray gives as text, its line."""
    ours = re.findall(r"^wsi_seg\.errors\.\w+: (.+)$", str(error), re.MULTILINE)
    return ours[-1] if ours else one_line(error)


def one_line(error: BaseException) -> str:
    """Return the beginning of what an error says."""
    return " ".join(str(error).split())[:300]
