"""Runs that are killed again and again, and what their results differ in from those of a run that nobody disturbed.

bad = mixed_slides(folder, 200, broken=10, dice=dice)
with LocalCluster("first") as cluster:
    words = words_of("run", folder, "--out", out, "--address", cluster.address)
    with Command(words, cluster.environment, log) as run:
        soak(run, cluster, moments(random_victims(dice), out, dice, (2, 8)), dice, nodes=3)
assert not differences(out, out_of_a_quiet_run)
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from wsi_seg.engine.layout import PLAN_FILE, RUN_FILE, SUMMARY_FILE, WORK
from wsi_seg.engine.lock import claim_of
from wsi_seg.testing.broken import break_slide, kinds
from wsi_seg.testing.cluster import LocalCluster, LocalNode
from wsi_seg.testing.killer import MARK, kill_all
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff, write_zarr

Victim = Literal["worker", "node", "driver"]
Moment = tuple[Callable[[], bool], Victim]
"""Whether it has come, and who dies then."""

SETTLED = (0, 1)
"""Exit codes of a run that came to its end."""
_SHARES: dict[Victim, int] = {"worker": 5, "node": 2, "driver": 2}
Kept = dict[str, tuple[int, int]]
_POLL_S = 0.1
_MOST_FAILURES = 20  # in a row, without a kill
_NEVER: Moment = (lambda: False), "driver"
_SIDES_PX = 300, 4000
_ZARR_EVERY = 8
_SMALL_PX = 700, 500


class Command:
    """A command that is started again whenever it was killed. Leaving the block ends it, and all that it started.

    log: gets what it says. starts: how often it was started.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._words = words
        self._mark = uuid.uuid4().hex
        self._environment = {**environment, MARK: self._mark}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start it, in a process group of its own."""
        self.starts += 1
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def code(self, within_s: float | None = 0) -> int | None:
        """Return its exit code; None where it goes on after so many seconds. None waits for its end."""
        assert self._process is not None
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """SIGKILL its process group."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill_all(self._mark)


def words_of(*arguments: object) -> list[str]:
    """Return the words of a command of this package."""
    return [str(Path(sys.executable).with_name("wsi-seg")), *map(str, arguments)]


# A population of slides on a cluster.


def mixed_slides(folder: Path, count: int, broken: int, dice: random.Random) -> set[str]:
    """Write `count` phantoms of 300 to 4000 px, small ones above all; return the names of those that are broken.

    Every eighth is an OME-Zarr, the others are TIFF; the broken ones are so in as many ways as there are.
    """
    folder.mkdir(parents=True)
    least, most = _SIDES_PX
    for number in range(count - broken):
        width, height = (round(least * (most / least) ** (dice.random() ** 3)) for _ in range(2))
        phantom = Phantom(width, height, tissue=dice.uniform(0.5, 1), seed=number)
        if number % _ZARR_EVERY == 5:
            write_zarr(phantom, folder / f"{number:04d}.ome.zarr")
        else:
            write_tiff(phantom, folder / f"{number:04d}.tiff")
    return set(_write_broken(folder, broken, dice))


def _write_broken(folder: Path, count: int, dice: random.Random) -> Iterator[str]:
    workshop = folder.with_name(f"{folder.name}.workshop")
    workshop.mkdir()
    phantom = Phantom(*_SMALL_PX)
    good = write_tiff(phantom, workshop / "good.tiff"), write_zarr(phantom, workshop / "good.ome.zarr")
    ways = [(slide, kind) for slide in good for kind in kinds(slide)]
    for number, (slide, kind) in enumerate(dice.sample(ways, count)):
        bad = break_slide(slide, workshop / str(number), kind)
        name = f"bad-{number}-{kind}"
        bad.rename(folder / f"{name}{''.join(slide.suffixes)}")
        yield name
    shutil.rmtree(workshop)


def random_victims(dice: random.Random) -> Iterator[Victim]:
    """Yield who dies next, without end."""
    while True:
        yield from dice.choices(list(_SHARES), list(_SHARES.values()))


def moments(
    victims: Iterable[Victim], out: Path, dice: random.Random, pause_s: tuple[float, float] = (0, 0)
) -> Iterator[Moment]:
    """Yield when each dies: after a pause, in seconds, from least to most, and when something has been done since.

    So a run comes to its end on the slowest machine, where a start may take longer than the pauses.
    """
    for victim in victims:
        end_s, kept = time.monotonic() + dice.uniform(*pause_s), _kept(out)
        yield (lambda end_s=end_s, kept=kept: time.monotonic() >= end_s and not _kept(out) <= kept), victim  # type: ignore[misc]


def _kept(out: Path) -> set[Path]:
    """Return what a run has done for good."""
    return {*out.glob(f"*/{RUN_FILE}"), *out.glob(f"{WORK}/*/blocks/[!.]*.block")}


def soak(
    run: Command, cluster: LocalCluster, moments: Iterable[Moment], dice: random.Random, nodes: int
) -> Counter[str]:
    """Start a run and kill as the moments say, until it ends by itself; return how often each victim died.

    nodes: how many there are to be beside the head; what is missing joins, as a scheduler would see to. "itself": how
    often the command ended with an error of its own, such as that there was no node; it is given again then, as when
    it was killed. RuntimeError where it does nothing but fail.
    """
    deaths: Counter[str] = Counter()
    failed = 0
    run.start()
    for reached, victim in chain(moments, [_NEVER]):
        while not (reached() and _kill(victim, run, cluster, dice)):
            _complete(cluster, nodes)
            code = run.code(_POLL_S)
            if code in SETTLED:
                return deaths
            if code is not None:
                failed, deaths["itself"] = failed + 1, deaths["itself"] + 1
                if failed > _MOST_FAILURES:
                    raise RuntimeError("The command does nothing but fail; see its log")
                run.start()
        failed, deaths[victim] = 0, deaths[victim] + 1
    raise AssertionError("that moment never comes")


def _kill(victim: Victim, run: Command, cluster: LocalCluster, dice: random.Random) -> bool:
    """End one; False where there is none."""
    nodes = _alive(cluster)
    if victim == "driver":
        run.kill()
        run.start()
    elif victim == "node" and nodes:
        dice.choice(nodes).kill()
    elif victim == "worker" and (workers := [pid for node in nodes for pid in node.workers()]):
        with suppress(ProcessLookupError):
            os.kill(dice.choice(workers), signal.SIGKILL)
    else:
        return False
    return True


def _alive(cluster: LocalCluster) -> list[LocalNode]:
    return [node for node in cluster.nodes[1:] if node.alive]


def _complete(cluster: LocalCluster, nodes: int) -> None:
    """Let a node join where one is missing, unless one is just joining: a start at a time is enough for one machine."""
    alive = _alive(cluster)
    if len(alive) < nodes and all(node.joined for node in alive):
        cluster.add(f"node{len(cluster.nodes)}", wait=False)


def digest_of(out: Path) -> dict[str, str]:
    """Return a hash of every result; what a run tells of itself is left out, since it holds times."""
    files = (path for path in sorted(out.glob("[!.]*/**/*")) if path.is_file() and path.name != RUN_FILE)
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differences(out: Path, quiet: Path) -> list[str]:
    """Return what differs in an output folder from that of a quiet run, a line each; empty if all is well.

    Compared are the bytes of all results and the status of each slide; one that failed must say why. Nothing may be
    left in the working folder but of those that failed, and hidden files by which killed runs were known.
    """
    (rows, expected), found = map(_rows, (out, quiet)), []
    if (names := sorted(row["name"] for row in rows)) != (wanted := sorted(row["name"] for row in expected)):
        found.append(f"{SUMMARY_FILE} has the lines {names}, expected {wanted}")
    status = {row["name"]: (row["status"], row["kind"]) for row in expected}
    for row in rows:
        if (row["status"], row["kind"]) != status.get(row["name"]) or bool(row["reason"]) != (
            row["status"] == "failed"
        ):
            found.append(f"{row['name']} is {row['status']} ({row['kind']}): {row['reason']!r}")
    results, as_expected = digest_of(out), digest_of(quiet)
    for path in sorted(results.keys() | as_expected.keys()):
        if results.get(path) != as_expected.get(path):
            found.append(
                f"{path} is {'other' if path in results and path in as_expected else 'in one of the two only'}"
            )
    failed = {row["name"] for row in expected if row["status"] == "failed"}
    found += [f"{path} is left over" for path in (out / WORK).glob("[!.]*") if path.name not in failed]
    return found


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / SUMMARY_FILE).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# One slide.


@dataclass
class Kills:
    """What came of many kills of one slide's run.

    at: how many hit it at its plan, at its blocks, at its outputs, or after these. rounds: how often it was done from
    nothing to its end. lost_s: for each kill at the blocks, seconds since the older of the two in work was begun with.
    redone: blocks that were done again although they had been kept. different: rounds that gave other bytes.
    """

    at: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    lost_s: list[float] = field(default_factory=list)
    redone: int = 0
    different: int = 0


def kill_often(
    command: Callable[[Path], Command],
    slide: str,
    folder: Path,
    expected: Mapping[str, str],
    *,
    kills: int,
    work_s: float,
    dice: random.Random,
) -> Kills:
    """Do a slide over and over, each time killed at a random moment of `work_s` after it was begun with, and again.

    command: makes that of an output folder, of which there is one to a round, in `folder`. expected: `digest_of` what
    it should come to.
    """
    tally = Kills()
    while tally.at.total() < kills:
        out = folder / str(tally.rounds)
        kept: Kept = {}
        killed_s = 0.0
        with command(out) as run:
            run.start()
            while await_begin(run, out, slide):
                begun_s = time.time()
                if run.code(dice.uniform(0, work_s)) is not None or tally.at.total() == kills:
                    break
                killed_s = time.time()
                run.kill()
                kept = _note(tally, _State(out, slide), kept, begun_s, killed_s)
                run.start()
            code = run.code(None)
        tally.rounds += 1
        tally.different += code != 0 or digest_of(out) != expected
        tally.redone += max(0, len(kept) - _State(out, slide).resumed_after(killed_s))
        shutil.rmtree(out)
    return tally


def await_begin(run: Command, out: Path, slide: str) -> bool:
    """Wait until a run has claimed a slide; False where it comes to its end without."""
    while claim_of(out, slide) is None:
        if run.code(_POLL_S) is not None:
            return False
    return True


class _State:
    """How far a slide is."""

    def __init__(self, out: Path, slide: str) -> None:
        self.record = out / slide / RUN_FILE
        self.work = out / WORK / slide

    @property
    def blocks(self) -> dict[str, tuple[int, int]]:
        """What is kept: name -> number of the file, and its time."""
        stats = {path.name: path.stat() for path in (self.work / "blocks").glob("[!.]*.block")}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}

    def resumed_after(self, killed_s: float) -> int:
        """Return how many blocks were done before the last run began.

        That are all of them where a worker of the killed run, which it outlived, wrote the outputs meanwhile.
        """
        record = json.loads(self.record.read_text())
        begun_s = self.record.stat().st_mtime - record["seconds"]["wall"]
        return int(record["counts"]["blocks" if begun_s < killed_s else "blocks_resumed"])


def _note(tally: Kills, state: _State, kept: Kept, begun_s: float, killed_s: float) -> Kept:
    """Count the kill of a run that began at the slide at `begun_s`; return what is kept now."""
    if state.record.exists():
        tally.at["the end"] += 1
        return kept
    blocks, plan = state.blocks, state.work / PLAN_FILE
    tally.redone += sum(blocks.get(name) != file for name, file in kept.items())
    if not plan.exists():
        tally.at["the plan"] += 1
    elif any(state.work.glob("finished.*")):
        tally.at["the outputs"] += 1
    else:
        tally.at["the blocks"] += 1
        tally.lost_s.append(killed_s - sorted([begun_s, begun_s, *(at / 1e9 for _, at in blocks.values())])[-2])
    return blocks
