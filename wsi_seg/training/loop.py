"""The training loop, read top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from wsi_seg.errors import OutputError, UsageError
from wsi_seg.inference import Device
from wsi_seg.process import prepare_for_computing
from wsi_seg.training import checkpoint
from wsi_seg.training.bundle import write_bundle
from wsi_seg.training.feeds import make_feed
from wsi_seg.training.learner import Learner
from wsi_seg.training.log import Journal
from wsi_seg.training.recipe import Recipe
from wsi_seg.training.schedule import rate_at
from wsi_seg.training.sources import gather, list_files
from wsi_seg.training.validation import SHOWN, Judge
from wsi_seg.training.workers import Team

STOP_FILE = "stop"
ALONE = Team()
Tell = Callable[[str], None]


def train(
    recipe: Recipe,
    data_root: Path,
    out: Path,
    device: Device = "cpu",
    tell: Tell = print,
    team: Team = ALONE,
    prepared: Path | None = None,
) -> Path:
    """Train as the recipe says and write the bundle `out`; return it.

    Killed at any moment and called again it goes on from the last checkpoint, to the same weights. A file `out/stop`
    ends it after the step it is at, with a checkpoint and a bundle of what was reached.

    team: this worker and the others, who all call this. prepared: folder for datasets made on the way.
    """
    prepare_for_computing()
    check_portions(recipe, team)
    schedule, identity = recipe.schedule, recipe.model_dump(mode="json")
    make_folder(out)
    data = team.lead(lambda: gather(recipe, data_root, prepared or out / "data"))
    team.lead(lambda: list_files(data, out / "split.csv"))
    feed = make_feed(recipe, data.train)
    judge = Judge(recipe, data.validation, device) if recipe.validation and team.leads else None

    learner, progress = Learner(recipe, device, team), checkpoint.Progress()
    if learner.anew:
        tell(f"made anew, since {recipe.init_from} has another head: {', '.join(learner.anew)}")
    if found := checkpoint.load(out / checkpoint.FILE, identity):
        progress, state = found
        learner.restore(state)
        tell(f"continuing at step {progress.step} of {schedule.steps}")
    names = tuple(recipe.losses.weights)
    journal = Journal(out, names, SHOWN, progress.step, schedule.steps, tell) if team.leads else None

    while progress.step < schedule.steps and not progress.over:
        rate = rate_at(progress.step, schedule, progress.plateaus)
        means = learner.step(progress.step, feed, progress.plateaus)
        progress.step += 1
        if journal is not None:
            journal.step(progress.step, rate, means)
        epoch_ends = progress.step % schedule.epoch_steps == 0 or progress.step == schedule.steps
        if epoch_ends:
            _end_epoch(recipe, learner, progress, means["loss"], team, judge, journal, out)
        stopping = team.lead((out / STOP_FILE).exists)
        if epoch_ends or stopping or progress.step % schedule.checkpoint_every == 0:
            team.lead(partial(checkpoint.save, out / checkpoint.FILE, identity, progress, learner.state()))
        if stopping:
            tell(f"stopped by {out / STOP_FILE} at step {progress.step}")
            break

    if progress.over:
        tell(f"ended at step {progress.step}: nothing was better than step {progress.best_step}")
    weights = progress.best_weights or learner.average.values
    return team.lead(partial(write_bundle, recipe, weights, progress, out))


def _end_epoch(
    recipe: Recipe,
    learner: Learner,
    progress: checkpoint.Progress,
    loss: float,
    team: Team,
    judge: Judge | None,
    journal: Journal | None,
    out: Path,
) -> None:
    """Validate, and note what came of it."""
    epoch, rule = -(-progress.step // recipe.schedule.epoch_steps), recipe.validation
    scores: dict[str, float] = {}
    if rule is not None:
        strip = out / "epochs" / f"{epoch:04d}.png"
        scores = team.lead(lambda: judge(learner.average.values, strip) if judge else {})
        progress.judge(scores[rule.metric], learner.average.values, recipe.schedule.wait, rule.patience)
    if journal is not None:
        journal.epoch(progress.step, epoch, loss, scores)


def make_folder(out: Path) -> None:
    """Make the folder of a run; OutputError where it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from None


def check_portions(recipe: Recipe, team: Team) -> None:
    """Raise UsageError unless the batch divides evenly."""
    portion = recipe.schedule.batch_size // recipe.schedule.accumulate
    if portion % team.size:
        raise UsageError(
            f"{team.size} workers cannot share a batch of {portion} crops evenly; choose another number of workers, or "
            "change schedule.batch_size"
        )
