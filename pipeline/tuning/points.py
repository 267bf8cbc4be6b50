"""The points of a search. A point is a pure function of the seed, its number and the trials before it."""

import json
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.config.tune import Dimension
from pipeline.errors import ConfigError
from pipeline.tuning.journal import Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

REDRAWN = 64
"""Times that a point is drawn again because an earlier trial has it."""
FIRST = 4
"""Points that are drawn at random before Optuna chooses."""
ENOUGH = 8
"""Trials from which on the importance of settings is shown."""

OUTSIDE = object()
"""Stands for a value that does not lie in the space."""

Point = dict[str, Any]


def num_points(config: Config) -> int:
    """Number of trials of the search."""
    return config.tune.trials * len(_grid(config))


def suggest(config: Config, number: int, trials: Sequence[Trial]) -> Point:
    """The point of trial `number`, given the records of the trials with smaller numbers.

    Number 0 is the configuration itself where it lies in a space without a grid, so that a search shows what it gained.
    """
    space, listed = config.tune.space, _grid(config)
    free = {key: dimension for key, dimension in space.items() if dimension.grid is None}
    fixed = listed[number % len(listed)]
    if number == 0 and not fixed and (own := own_point(config)) is not None:
        return own
    known = [trial.overrides for trial in trials]
    for attempt in range(REDRAWN):
        # One generator for each setting: the order of the settings in the file does not matter.
        drawn = {key: dim.draw(random.Random(f"{config.seed}/{number}/{attempt}/{key}")) for key, dim in free.items()}
        if attempt == 0 and config.tune.sampler == "tpe" and free and len(trials) >= FIRST:
            drawn = _by_optuna(config.seed + number, free, trials)
        point = config.tune.applicable({key: (fixed | drawn)[key] for key in space})
        if fixed or point not in known:
            break
    return point


def own_point(config: Config) -> Point | None:
    """The configuration as a point of its own space; None if it does not lie there."""
    base = override(config, {"tune.space": {}})
    point: Point = {}
    for key, dimension in config.tune.space.items():
        if dimension.range:
            value: Any = base
            for name in key.split("."):
                value = getattr(value, name, None)
            low, high = dimension.range
            point[key] = value if isinstance(value, int | float) and low <= value <= high else OUTSIDE
        else:  # a setting may be written in several ways, such as a side of crops
            same = [value for value in dimension.listed if override(base, {key: value}) == base]
            point[key] = same[0] if same else OUTSIDE
    point = config.tune.applicable(point)
    return None if any(value is OUTSIDE for value in point.values()) else point


def _grid(config: Config) -> list[Point]:
    """All combinations of the listed values of grids; one empty combination if there is no grid."""
    grids = {key: dimension.grid for key, dimension in config.tune.space.items() if dimension.grid is not None}
    return [dict(zip(grids, values, strict=True)) for values in product(*grids.values())]


def importances(config: Config, trials: Sequence[Trial], rung: int) -> dict[str, float]:
    """How much each setting decides whether a trial is in the better half at a rung, as shares that add up to 1.

    By Optuna's PED-ANOVA, over the settings that all trials have. Empty for fewer than ENOUGH trials, a single setting, or equal
    scores.
    """
    space = {key: dim for key, dim in config.tune.space.items() if len(dim.ends()) > 1 and not dim.when}
    scored = [trial for trial in trials if not trial.confirms and trial.at(rung) is not None]
    if len(scored) < ENOUGH or len(space) < 2 or len({trial.at(rung) for trial in scored}) < 2:
        return {}
    import optuna

    with _quiet():
        study = _study([trial._replace(state="complete", miou=trial.at(rung)) for trial in scored], space)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
        found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return found


def _by_optuna(seed: int, space: dict[str, Dimension], trials: Sequence[Trial]) -> Point:
    """The next point of Optuna's TPE for these trials; a study is built again each time, so nothing has to be kept."""
    import optuna

    distributions = {key: _distribution(dimension) for key, dimension in space.items()}
    with _quiet():
        study = _study(trials, space)
        study.sampler = optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=any(dimension.when for dimension in space.values()),  # trials may lack settings
            constant_liar=True,
            n_startup_trials=FIRST,
        )
        params = study.ask(distributions).params
    return {key: _decoded(dimension, params[key]) for key, dimension in space.items()}


def export_study(config: Config, trials: Sequence[Trial], path: Path, name: str) -> None:
    """Writes the search as an Optuna study into a new SQLite file, which optuna-dashboard opens.

    Trials that train a point again with another seed are left out. Raises ConfigError if the file exists or its folder does not.
    """
    if path.exists():
        raise ConfigError([f"--export {path}: exists already (try another name, or delete it)"])
    if not path.parent.is_dir():
        raise ConfigError([f"--export {path}: there is no folder {path.parent}"])
    import optuna

    with _quiet():
        study = _study([trial for trial in trials if not trial.confirms], config.tune.space)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.unlink(missing_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{unfinished}")
        optuna.create_study(storage=storage, study_name=name, direction="maximize").add_trials(study.trials)
        storage.engine.dispose()
    unfinished.rename(path)


def _study(trials: Sequence[Trial], space: dict[str, Dimension]) -> "Study":
    """Optuna's record of these trials; one stopped early counts by its last score, one that cannot train as the worst."""
    import optuna
    from optuna.trial import TrialState

    states = {"running": TrialState.RUNNING, "complete": TrialState.COMPLETE, "failed": TrialState.FAIL}
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        has = {key: dimension for key, dimension in space.items() if key in trial.overrides}
        state = states.get(trial.state, TrialState.PRUNED)
        if state == TrialState.COMPLETE and trial.miou is None:
            state = TrialState.FAIL
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=trial.miou if state == TrialState.COMPLETE else None,
                params={key: _encoded(dimension, trial.overrides[key]) for key, dimension in has.items()},
                distributions={key: _distribution(dimension) for key, dimension in has.items()},
                intermediate_values={report.step: report.miou for report in trial.reports if report.miou is not None},
            )
        )
    return study


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines, and without its warnings that options are experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _distribution(dimension: Dimension) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.integer:
        return IntDistribution(*dimension.integer)
    if dimension.range:
        return FloatDistribution(*dimension.range, log=dimension.log is not None)
    return CategoricalDistribution([json.dumps(value) for value in dimension.listed])


def _encoded(dimension: Dimension, value: Any) -> Any:
    """A value as Optuna takes it: JSON if it is one of a list, because Optuna takes no lists as values."""
    if dimension.listed:
        return json.dumps(value)
    low, high = dimension.range or (-math.inf, math.inf)
    return min(max(value, low), high)


def _decoded(dimension: Dimension, value: Any) -> Any:
    return next(known for known in dimension.listed if json.dumps(known) == value) if dimension.listed else value
