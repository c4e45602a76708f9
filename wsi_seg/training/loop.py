"""The training loop, read top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from wsi_seg.backends import Device
from wsi_seg.bundles import SPLIT_FILE, start_of
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.files import local
from wsi_seg.nets.heads import has_classes
from wsi_seg.process import prepare_for_computing
from wsi_seg.splits import Member, read_splits, with_earlier, write_splits
from wsi_seg.training import checkpoint
from wsi_seg.training.bundle import write_bundle
from wsi_seg.training.feeds import Ahead, make_feed
from wsi_seg.training.identity import identity_of
from wsi_seg.training.learner import Feed, Learner, portions
from wsi_seg.training.log import Journal
from wsi_seg.training.recipe import Recipe
from wsi_seg.training.schedule import rate_at
from wsi_seg.training.sources import Data, gather, members, without_types
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
    run: Path | None = None,
) -> Path:
    """Train as the recipe says and write the bundle `out`; return it.

    Killed at any moment and called again it goes on from the last checkpoint, to the same weights. A file `run/stop`
    ends it after the step it is at, with a checkpoint and a bundle of what was reached.

    team: this worker and the others, who all call this. run: folder of the whole run, of which this may be a stage;
    datasets that are made on the way are in it.
    """
    prepare_for_computing()
    check_portions(recipe, team.size)
    make_folder(out)
    run, schedule, path = run or out, recipe.schedule, out / checkpoint.FILE
    data = team.lead(lambda: gather(recipe, data_root, run / "data"))
    identity = team.lead(lambda: identity_of(recipe, data))
    progress, state = checkpoint.load(path, identity) or (checkpoint.Progress(), None)
    team.lead(lambda: write_splits(out / SPLIT_FILE, _seen(recipe, data)))
    if state is not None and progress.is_over(schedule.steps):
        tell(f"was trained before, to step {progress.step}")
        return team.lead(lambda: write_bundle(recipe, progress.best_weights or state["average"], progress, out))

    learner = Learner(recipe, device, team)
    if state is not None:
        learner.restore(state)
    _tell_first(recipe, data, learner, progress, tell)
    feed = _feed(recipe, data, device, team)
    judge = Judge(recipe, data.validation, device) if recipe.validation and team.leads else None
    journal = Journal(out, tuple(recipe.losses.weights), SHOWN, schedule.steps, tell)
    team.lead(lambda: journal.begin(progress.step, progress.unjudged is None))
    save = partial(team.lead, lambda: checkpoint.save(path, identity, progress, learner.state()))
    end_epoch = partial(_end_epoch, recipe, learner, progress, team, judge, journal, out, save)

    if progress.unjudged is not None:  # it ended while it validated
        end_epoch()
    while not progress.is_over(schedule.steps):
        rate = rate_at(progress.step, schedule, progress.plateaus)
        means = learner.step(progress.step, feed, progress.plateaus)
        progress.step += 1
        stopping = team.lead(partial(_note, journal, progress.step, rate, means, run / STOP_FILE))
        epoch_ends = progress.step % schedule.epoch_steps == 0 or progress.step == schedule.steps
        progress.unjudged = means["loss"] if epoch_ends else None
        if epoch_ends or stopping or progress.step % schedule.checkpoint_every == 0:
            save()  # before validation too, which takes its time and may find a file that is damaged
        if epoch_ends:
            end_epoch()
        if stopping:
            tell(f"stopped at step {progress.step}")
            break

    if progress.over:
        tell(f"ended at step {progress.step}: nothing was better than step {progress.best_step}")
    return team.lead(lambda: write_bundle(recipe, progress.best_weights or learner.average.values, progress, out))


def _seen(recipe: Recipe, data: Data) -> list[Member]:
    """Return which image is in which split, of this training and of those that its start was made by."""
    start = None if recipe.init_from is None else start_of(recipe.init_from).folder / SPLIT_FILE
    return with_earlier(members(data), read_splits(start) if start and start.is_file() else ())


def _tell_first(recipe: Recipe, data: Data, learner: Learner, progress: checkpoint.Progress, tell: Tell) -> None:
    """Tell where it goes on from, and what is not learned."""
    if progress.step:
        tell(f"continuing at step {progress.step} of {recipe.schedule.steps}")
    elif learner.anew:
        tell(f"made anew, since {recipe.init_from} has another head: {', '.join(learner.anew)}")
    if has_classes(recipe.network.head) and (untyped := without_types(recipe, data.train)):
        tell(f"teaches nothing of classes, since it has no types/: {', '.join(untyped)}")


def _feed(recipe: Recipe, data: Data, device: Device, team: Team) -> Feed:
    """Return what makes the crops; on a GPU a portion ahead, which on CPU would take cores from the step."""
    feed = make_feed(recipe, data.train)
    return Ahead(feed, portions(recipe.schedule, team)) if device == "cuda" else feed


def _note(journal: Journal, step: int, rate: float, means: Mapping[str, float], stop: Path) -> bool:
    """Write a step down; return whether it is to be the last for now."""
    journal.step(step, rate, means)
    return stop.exists()


def _end_epoch(
    recipe: Recipe,
    learner: Learner,
    progress: checkpoint.Progress,
    team: Team,
    judge: Judge | None,
    journal: Journal,
    out: Path,
    save: Callable[[], None],
) -> None:
    """Validate, note what came of it, and save that."""
    loss = progress.unjudged
    assert loss is not None
    epoch, rule = -(-progress.step // recipe.schedule.epoch_steps), recipe.validation

    def scored() -> dict[str, float]:
        scores = judge(learner.average.values, out / "epochs" / f"{epoch:04d}.png") if judge else {}
        journal.epoch(progress.step, epoch, loss, scores)
        return scores

    scores = team.lead(scored)
    if rule is not None:
        progress.judge(scores[rule.metric], learner.average.values, recipe.schedule.wait, rule.patience)
    progress.unjudged = None
    save()


def make_folder(out: Path) -> None:
    """Make the folder of a run; OutputError where it cannot be."""
    try:
        local(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from None


def check_portions(recipe: Recipe, workers: int) -> None:
    """Raise UsageError unless the batch divides evenly."""
    portion = recipe.schedule.batch_size // recipe.schedule.accumulate
    if portion % workers:
        raise UsageError(
            f"{workers} workers cannot share a batch of {portion} crops evenly; choose another number of workers, or "
            "change schedule.batch_size"
        )
