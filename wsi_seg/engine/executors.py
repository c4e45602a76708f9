"""Where workers live: in this process, or as Ray actors. Both do the same jobs and give the same bytes."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from wsi_seg.engine.failures import Failure
from wsi_seg.engine.nodes import Member, Recruits, Refusal, alive_nodes, one_line
from wsi_seg.engine.preflight import Preflight
from wsi_seg.engine.raystart import REACH_S, short_folder, wants_token
from wsi_seg.engine.worker import Job, Outcome, Worker, WorkerInfo, WorkerOptions
from wsi_seg.errors import UsageError, WsiSegError
from wsi_seg.process import keep_ray_here

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

log = logging.getLogger("wsi_seg")

_RUN_AGAIN = "run the same command again"
_ALL_LOST = f"All workers are lost; what is done is kept: {_RUN_AGAIN}"
_LOOK_S = 3.0  # between looks at which nodes there are
_GATHER_S = 120.0  # for all workers to start before the first ones begin
_PATIENCE_S = 300.0  # for a node to join a cluster that has none yet, or has lost all
_ATTEMPTS = 3  # a job whose actor dies is handed out again, but not for ever
_NO_NODE = "no node that can work (--device cuda needs GPUs)"
_STARTS = 3  # of Ray, which gives its parts 30 s to come up, however busy the machine is
_SLOW_HEAD = "Starting Ray client server failed"  # what a head says whose part for a client did not come up


class Executor(Protocol):
    """Does jobs on one or more workers, as many at a time on each as it does at once."""

    name: str
    info: WorkerInfo

    @property
    def workers(self) -> int:
        """How many there are, at least 1; it may change."""

    @property
    def held_back(self) -> Collection[Job]:
        """Jobs that were handed in and that no worker has now."""

    def free(self) -> Iterator[int]:
        """Yield a worker that can take a job, the least busy first, until all are busy."""

    def submit(self, worker: int, job: Job) -> None:
        """Hand a job to a worker."""

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Wait until a job is done or a worker has come, at most some seconds; return the jobs that are done."""

    def abandon(self, job: Job) -> None:
        """Forget a job that hangs, at any price: its worker's process is ended where it has one of its own."""

    def close(self) -> None:
        """Drop what is queued and end the workers."""


class LocalExecutor:
    """One worker in this process."""

    name = "local"
    workers = 1
    held_back = ()

    def __init__(self, options: WorkerOptions) -> None:
        self._worker = Worker(options)
        self.info = self._worker.info
        self._running: dict[Future[Outcome], Job] = {}
        self._queue: SimpleQueue[tuple[Job, Future[Outcome]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        for _ in range(self.info.jobs):
            self._add_thread()

    def _add_thread(self) -> None:
        """Start one more; a daemon, so that one that hangs does not keep the process from ending."""
        self._threads.append(threading.Thread(target=self._serve, name="wsi_seg jobs", daemon=True))
        self._threads[-1].start()

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            job, future = item
            try:
                future.set_result(self._worker.do(job))
            except BaseException as error:
                future.set_exception(error)

    def free(self) -> Iterator[int]:
        while len(self._running) < self.info.jobs:
            yield 0

    def submit(self, worker: int, job: Job) -> None:
        future: Future[Outcome] = Future()
        self._running[future] = job
        self._queue.put((job, future))

    def wait(self) -> list[tuple[Job, Outcome]]:
        if not self._running:  # nothing would be waited for
            time.sleep(_LOOK_S)
        done, _ = wait(self._running, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
        finished = [(self._running.pop(future), future.result()) for future in done]
        for _, outcome in finished:
            if isinstance(outcome, Failure) and outcome.kind == "device":
                raise WsiSegError(f"The device failed ({outcome.reason}); what is done is kept: {_RUN_AGAIN}")
        return finished

    def abandon(self, job: Job) -> None:
        self._running = {future: own for future, own in self._running.items() if own is not job}
        self._add_thread()  # in the place of the one that hangs

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in () if self._running else self._threads:  # Python may abort where a daemon is left at its end
            thread.join(timeout=1)


class RayExecutor:
    """One actor per GPU of a cluster, or one per node where there is none.

    address: of a running cluster; None starts Ray on this machine for the time of the run.
    preflight: what each node must pass before it gets workers. UsageError names those that do not at the start.

    Nodes come and go: one that joins is looked at and gets workers, one that is lost takes its own with it. An actor
    that dies is restarted by Ray. The jobs it had are done again one at a time, each alone on a worker, so that a job
    that kills its worker is found out and takes no other with it.
    """

    name = "ray"

    def __init__(self, options: WorkerOptions, address: str | None = None, preflight: Preflight | None = None) -> None:
        self._owns_ray = False
        self._on_cluster = address is not None
        self._members: list[Member] = []
        self._recruits = Recruits(options, preflight)
        self._suspects: deque[tuple[Job, int]] = deque()
        self._reserved: Member | None = None  # does, or will do, a suspect
        self._running: dict[Ref, tuple[Member, Job, int]] = {}
        self._looked_s = self._manned_s = time.monotonic()
        try:
            self._owns_ray = start_ray(address)
            self._gather()
        except BaseException:
            self.close()
            raise
        infos = [member.info for member in self._members]  # of nodes that may differ, and each does any slide's blocks
        block_px, band_px = min(info.block_px for info in infos), min(info.band_px for info in infos)
        self.info = replace(infos[0], block_px=block_px, band_px=band_px)

    @property
    def workers(self) -> int:
        return max(1, sum(not member.lost for member in self._members))

    @property
    def held_back(self) -> list[Job]:
        return [job for job, _ in self._suspects]

    def _gather(self) -> None:
        """Wait for the workers of all nodes that there are, or at length for a first one; others join later."""
        refusals: list[Refusal] = []
        begun_s, told = time.monotonic(), False
        while True:
            self._recruits.welcome(alive_nodes())
            refusals += [refusal for ref in self._recruits.answers(1) if (refusal := self._enlist(ref))]
            refusals += self._recruits.overdue()
            if self._recruits.looking:
                continue
            if refusals:
                raise UsageError("; ".join(str(refusal) for refusal in refusals))
            waited_s, awaited = time.monotonic() - begun_s, bool(self._recruits.awaited)
            if self._members and (not awaited or waited_s > _GATHER_S):
                return
            if not self._members and not awaited and waited_s > (_PATIENCE_S if self._on_cluster else 0):
                raise UsageError(f"The Ray cluster has {_NO_NODE}; see `ray status`")
            if not self._members and not told and waited_s > (_GATHER_S if awaited else 0):
                what = "no worker has started" if awaited else f"there is {_NO_NODE}"
                log.warning("%s yet; it is waited for, and `ray status` shows who holds the GPUs or cores", what)
                told = True

    def _enlist(self, ref: Ref) -> Refusal | None:
        """Take what a node on its way to having workers has answered."""
        answer = self._recruits.take(ref)
        if not isinstance(answer, Member):
            return answer
        if answer.node.gpus and answer.info.device == "cpu" and self._recruits.options.device == "auto":
            log.warning("%s: its GPUs cannot be used, and its CPU is; see nvidia-smi there", answer.node.name)
        if self._members and answer.kind != self._members[0].kind:
            answer.end()
            others = " ".join(self._members[0].kind)
            return Refusal(
                answer.node,
                f"computes with {' '.join(answer.kind)}, others with {others}, and results would depend on who did "
                "what; choose one kind with --device and --backend",
            )
        self._members.append(answer)
        return None

    def free(self) -> Iterator[int]:
        while not self._running and not self._suspects and not self._available():
            self.wait()  # all workers are away or lost, and only a new one brings the run on
        while roomy := [member for member in self._available() if member.load < member.info.jobs]:
            yield self._members.index(min(roomy, key=lambda member: member.load))

    def _available(self) -> list[Member]:
        return [member for member in self._members if member.here and member is not self._reserved]

    def submit(self, worker: int, job: Job) -> None:
        self._submit(self._members[worker], job, attempt=1)

    def _submit(self, member: Member, job: Job, attempt: int) -> None:
        self._running[member.actor.do.remote(job)] = member, job, attempt
        member.load += 1

    def wait(self) -> list[tuple[Job, Outcome]]:
        import ray

        self._look_around()
        self._place_suspect()
        away = {member.away: member for member in self._members if member.away is not None}
        awaited = [*self._running, *away, *self._recruits.awaited]
        if not awaited:
            time.sleep(_LOOK_S)
            return []
        finished: list[tuple[Job, Outcome]] = []
        for ref in ray.wait(awaited, num_returns=1, timeout=_LOOK_S)[0]:
            if ref in self._running:
                finished += self._conclude(ref)
            elif ref in away:
                away[ref].return_or_be_lost()
            elif refusal := self._enlist(ref):
                log.warning("%s; it gets no work", refusal)
        return finished

    def _look_around(self) -> None:
        """Every few seconds, see which nodes have come and gone; WsiSegError once there has long been none."""
        now_s = time.monotonic()
        if self._on_cluster and now_s - self._looked_s > _LOOK_S:
            self._looked_s = now_s
            nodes = alive_nodes()
            self._recruits.welcome(nodes)
            for refusal in self._recruits.overdue():
                log.warning("%s; it gets no work", refusal)
            alive = {node.id for node in nodes}
            for member in self._members:
                if member.node.id not in alive:
                    member.lost, member.away = True, None
        if self._recruits.awaited or not all(member.lost for member in self._members):
            self._manned_s = now_s
        elif now_s - self._manned_s > (_PATIENCE_S if self._on_cluster else 0):
            raise WsiSegError(_ALL_LOST)

    def _conclude(self, ref: Ref) -> list[tuple[Job, Outcome]]:
        """Take what became of a job; it is not done where its worker died."""
        import ray

        member, job, attempt = self._forget(ref)
        try:
            outcome: Outcome = ray.get(ref)
        except ray.exceptions.RayError as error:
            member.leave()
            outcome = Failure(f"{job.title} ended its worker {attempt} times: {one_line(error)}", "crash")
        else:
            if not (isinstance(outcome, Failure) and outcome.kind == "device"):
                return [(job, outcome)]
            member.restart()  # its process can do nothing more with the device
        if attempt < _ATTEMPTS:
            self._suspects.append((job, attempt + 1))
            return []
        return [(job, outcome)]

    def _forget(self, ref: Ref) -> tuple[Member, Job, int]:
        member, job, attempt = self._running.pop(ref)
        member.load -= 1
        self._release()
        return member, job, attempt

    def _release(self) -> None:
        """Give the reserved worker back once no suspect is with it or waits for it."""
        if not self._suspects and all(attempt == 1 for *_, attempt in self._running.values()):
            self._reserved = None

    def abandon(self, job: Job) -> None:
        self._suspects = deque(suspect for suspect in self._suspects if suspect[0] is not job)
        for ref in [ref for ref, (_, own, _) in self._running.items() if own is job]:
            member, *_ = self._forget(ref)
            member.restart()  # the other job that it has becomes a suspect
        self._release()

    def _place_suspect(self) -> None:
        """Give the next suspect a worker of its own, once that one has nothing else to do."""
        if self._reserved is not None and self._reserved.lost:
            self._reserved = None
        if not self._suspects:
            return
        if self._reserved is None and (available := self._available()):
            self._reserved = min(available, key=lambda member: member.load)
        if self._reserved is not None and self._reserved.here and not self._reserved.load:
            self._submit(self._reserved, *self._suspects.popleft())

    def close(self) -> None:
        import ray

        self._recruits.close()
        for member in self._members:
            member.end()
        if self._owns_ray:
            ray.shutdown()


def start_ray(address: str | None, *, log_to_driver: bool = False) -> bool:
    """Connect to Ray, or start it here; return whether this run is to end it.

    log_to_driver: whether what workers print is printed here too.
    """
    if address is None:
        keep_ray_here()
    elif wants_token(address):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        if address is not None:
            raise UsageError("--address: this process is connected to Ray already; leave the address out")
        return False
    if address is None:
        _start_here(log_to_driver)
        return True
    _join(address, log_to_driver)
    return True


def _join(address: str, log_to_driver: bool) -> None:
    """Join a cluster; UsageError where none answers. A busy head may be too slow for a client at first."""
    import ray

    for attempt in range(1, _STARTS + 1):
        try:
            _check_reachable(address)
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=log_to_driver)
        except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            if attempt < _STARTS and _SLOW_HEAD in str(error):
                ray.shutdown()
                continue
            raise UsageError(
                f"--address {address}: no Ray cluster answers ({one_line(error)}); start one with `ray start --head`, "
                "have its token in ~/.ray/auth_token, or leave --address out to run on this machine"
            ) from None
        else:
            return


def _start_here(log_to_driver: bool) -> None:
    """Start Ray on this machine; WsiSegError where it does not come up."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for attempt in range(1, _STARTS + 1):
        try:
            # "local", since Ray would else join what runs on this machine, or what a killed cluster left behind; only
            # block descriptions travel through the object store, so it may be small
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=80 << 20,
                logging_level=logging.ERROR,
                log_to_driver=log_to_driver,
                _temp_dir=short_folder(),
            )
        except Exception as error:  # Ray raises the bare class
            ray.shutdown()
            if attempt == _STARTS:
                reason = f"Ray does not start on this machine ({one_line(error)})"
                raise WsiSegError(f"{reason}; try again when it is less busy, or use --executor local") from error
        else:
            return


def _check_reachable(address: str) -> None:
    """Raise OSError within seconds where nobody listens; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").partition(":")
    if port:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
