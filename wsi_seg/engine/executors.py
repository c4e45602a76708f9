"""Where workers live: in this process, or as Ray actors. Both do the same jobs and give the same bytes."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Protocol

from wsi_seg.engine.worker import JOBS_PER_WORKER, Failure, Job, Outcome, Worker, WorkerInfo, WorkerOptions
from wsi_seg.errors import UsageError, WsiSegError
from wsi_seg.process import ENVIRONMENT

if TYPE_CHECKING:
    import ray

_ALL_LOST = "All workers are lost; what is done is kept: run the same command again"
_RESTART_S = 300
_ATTEMPTS = 3  # a job whose actor dies is handed out again, but not for ever


class Executor(Protocol):
    """Does jobs on one or more workers, at most JOBS_PER_WORKER at a time on each."""

    name: str
    workers: int
    info: WorkerInfo

    def free(self) -> Iterator[int]:
        """Yield a worker that can take a job, the least busy first, until all are busy."""

    def submit(self, worker: int, job: Job) -> None:
        """Hand a job to a worker."""

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Wait until at least one job is done; return all that are."""

    def close(self) -> None:
        """Drop what is queued and end the workers."""


class LocalExecutor:
    """One worker in this process."""

    name = "local"
    workers = 1

    def __init__(self, options: WorkerOptions) -> None:
        self._worker = Worker(options)
        self.info = self._worker.info
        self._pool = ThreadPoolExecutor(JOBS_PER_WORKER, thread_name_prefix="wsi_seg")
        self._running: dict[Future[Outcome], Job] = {}

    def free(self) -> Iterator[int]:
        while len(self._running) < JOBS_PER_WORKER:
            yield 0

    def submit(self, worker: int, job: Job) -> None:
        self._running[self._pool.submit(self._worker.do, job)] = job

    def wait(self) -> list[tuple[Job, Outcome]]:
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        return [(self._running.pop(future), future.result()) for future in done]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class RayExecutor:
    """One actor per GPU, or one per machine where there is none.

    address: of a running cluster; None starts Ray on this machine for the time of the run.

    An actor that dies is restarted by Ray. The jobs it had are done again one at a time, each alone on a worker, so
    that a job that kills its worker is found out and takes no other with it. A worker whose machine is lost gets no
    more.
    """

    name = "ray"

    def __init__(self, options: WorkerOptions, address: str | None = None) -> None:
        self._owns_ray = start_ray(address)
        self._actors: list[Any] = []
        try:
            self._actors = _start_actors(options)
            self.workers = len(self._actors)
            self.info = self._describe()
        except BaseException:
            self.close()
            raise
        self._load = [0] * self.workers
        self._lost: set[int] = set()
        self._suspects: deque[tuple[Job, int]] = deque()
        self._reserved: int | None = None  # the worker that does, or will do, a suspect
        self._running: dict[ray.ObjectRef[Any], tuple[int, Job, int]] = {}

    def _describe(self) -> WorkerInfo:
        import ray

        try:
            infos: list[WorkerInfo] = ray.get([actor.describe.remote() for actor in self._actors])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UsageError):
                raise cause from None
            raise UsageError(f"The workers do not start: {_one_line(error)}") from None
        kinds = {(info.device, info.precision) for info in infos}
        if len(kinds) > 1:
            raise UsageError(
                f"The cluster's workers compute differently ({sorted(kinds)}): results would depend on who did what; "
                "choose one kind with --device cpu or --device cuda"
            )
        return infos[0]

    def free(self) -> Iterator[int]:
        if len(self._lost) == self.workers:
            raise WsiSegError(_ALL_LOST)
        while alive := self._alive():
            worker = min(alive, key=self._load.__getitem__)
            if self._load[worker] >= JOBS_PER_WORKER:
                return
            yield worker

    def _alive(self) -> list[int]:
        return [w for w in range(self.workers) if w not in self._lost and w != self._reserved]

    def submit(self, worker: int, job: Job) -> None:
        self._submit(worker, job, attempt=1)

    def _submit(self, worker: int, job: Job, attempt: int) -> None:
        self._running[self._actors[worker].do.remote(job)] = worker, job, attempt
        self._load[worker] += 1

    def wait(self) -> list[tuple[Job, Outcome]]:
        import ray

        finished: list[tuple[Job, Outcome]] = []
        while not finished:
            self._place_suspect()
            done, _ = ray.wait(list(self._running), num_returns=1)
            for ref in done:
                worker, job, attempt = self._running.pop(ref)
                self._load[worker] -= 1
                if worker == self._reserved and attempt > 1:
                    self._reserved = None
                try:
                    finished.append((job, ray.get(ref)))
                except ray.exceptions.RayError as error:
                    finished += self._bury(worker, job, attempt, error)
        return finished

    def _place_suspect(self) -> None:
        """Give the next suspect a worker of its own, once that one has nothing else to do."""
        if not self._suspects:
            return
        if self._reserved is None:
            alive = self._alive()
            if not alive:
                raise WsiSegError(_ALL_LOST)
            self._reserved = min(alive, key=self._load.__getitem__)
        if self._load[self._reserved] > 0:
            return
        if self._is_back(self._reserved):
            job, attempt = self._suspects.popleft()
            self._submit(self._reserved, job, attempt)
        else:
            self._lost.add(self._reserved)
            self._reserved = None
            self._place_suspect()

    def _is_back(self, worker: int) -> bool:
        """Wait until a worker answers; after a restart it loads the model first. False if it is lost."""
        import ray

        try:
            ray.get(self._actors[worker].describe.options(max_task_retries=-1).remote(), timeout=_RESTART_S)
        except ray.exceptions.RayError:
            return False
        return True

    def _bury(self, worker: int, job: Job, attempt: int, error: Exception) -> list[tuple[Job, Outcome]]:
        """Decide about a job that was lost with its worker: again, or a failure."""
        import ray

        if isinstance(error, ray.exceptions.ActorUnschedulableError):
            self._lost.add(worker)
        if attempt < _ATTEMPTS:
            self._suspects.append((job, attempt + 1))
            return []
        return [(job, Failure(f"{job.method} ended its worker {attempt} times: {_one_line(error)}"))]

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if self._owns_ray:
            ray.shutdown()


def start_ray(address: str | None, *, log_to_driver: bool = False) -> bool:
    """Connect to Ray, or start it here; return whether this run is to end it.

    log_to_driver: whether what workers print is printed here too.
    """
    import ray

    if ray.is_initialized():
        if address is not None:
            raise UsageError("--address: this process is connected to Ray already; leave the address out")
        return False
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # "local", since Ray would else join what runs on this machine, or what a killed cluster left behind; only block
        # descriptions travel through the object store, so it may be small
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=80 << 20,
            logging_level=logging.ERROR,
            log_to_driver=log_to_driver,
        )
        return True
    try:
        _check_reachable(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=log_to_driver)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster answers ({_one_line(error)}); start one with `ray start --head`, "
            "or leave --address out to run on this machine"
        ) from None
    return True


def _check_reachable(address: str) -> None:
    """Raise OSError within seconds where nobody listens; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").partition(":")
    if port:
        socket.create_connection((host, int(port)), timeout=5).close()


def _start_actors(options: WorkerOptions) -> list[Any]:
    """One actor per GPU; on a machine without, one with all its cores."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actors = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        cpus, gpus = int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))
        if options.device == "cpu":
            gpus = 0
        elif options.device == "cuda" and not gpus:
            continue
        for _ in range(gpus or min(cpus, 1)):
            actor = ray.remote(Worker).options(
                num_gpus=1 if gpus else 0,
                num_cpus=max(1, cpus // max(1, gpus)),
                max_restarts=-1,
                max_concurrency=JOBS_PER_WORKER + 1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                runtime_env={"env_vars": ENVIRONMENT},
            )
            actors.append(actor.remote(options))
    if not actors:
        raise UsageError("The Ray cluster has no node that can work (--device cuda needs GPUs); see `ray status`")
    return actors


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
