"""Checked before any work: the scenario's files, the folder results go to, the copy of the packages.

What needs NumPy is imported when a fleet is checked: a mistake that shows without it is reported at once.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import platformdirs

from fl_peel.errors import DataError, ReportError, ScenarioError
from fl_peel.files import file_kind, owned_folder, remove_abandoned
from fl_peel.packages import check_one_root
from fl_peel.scenario.fleet_files import fleet_files
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import CONTROLLER, PRECISIONS, SELECTORS, require_device
from simulations.listing import require_ours

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clients.fleet.fleet import Fleet
    from fl_peel.blocks.layout import BlockLayout
    from fl_peel.data.interactions import Splits
    from fl_peel.data.timeline import Timeline


MOST_ROUNDS_LOOKED_AT = 1000
"""Rounds looked at for a device that is available: in a usual fleet the first round has one."""
STUDIES = ("compare", "ablate", "audit")
ENDINGS = ("json", "csv", "parquet", "html", "svg")
ARTIFACTS = "artifacts"
"""Folder of the stored embeddings of some devices, in the run's folder and among its results."""
MODEL = "model"
"""Folder of the model that serves new devices, among what is kept on the way and among a run's results."""
DEMO = "demo.html"
"""The page to play with, among a run's results."""
RUN_RESULTS = (
    *("report.json", "metrics.csv", "metrics.parquet", "report.html", DEMO, "scenario.yaml", "per-device.parquet"),
    *(ARTIFACTS, MODEL),
)
SEEDS_RESULTS = tuple(f"seeds.{ending}" for ending in ENDINGS[:-1])
TIMELINE_RESULTS = (
    *(f"timeline.{ending}" for ending in ENDINGS),
    "scenario.yaml",
    *(f"timeline-seeds.{ending}" for ending in ENDINGS[:-1]),
)
STUDY_RESULTS = tuple(f"{study}.{ending}" for study in STUDIES for ending in ENDINGS)
SWEEP_RESULTS = tuple(f"sweep.{ending}" for ending in ENDINGS)
RESULT_FOLDERS = (ARTIFACTS, "checkpoints", MODEL)
"""Folders that runs and studies may make among their results."""


def checked(
    scenario: Scenario,
    out: Path | None,
    *,
    place: str = "--out",
    writes: Sequence[str] | None = None,
) -> Scenario:
    """The scenario with absolute paths (nodes may have another working directory), once everything is found.

    writes: into ``out``, if not what a run of the scenario does.

    Raises:
        EngineError: packages from two roots, or nobody answers at ``engine.ray_address``.
        ReportError: ``out`` cannot be a folder of results.
        ProfileError: no such fleet, or one that makes no sense.
        DataError: no such data file.
        ScenarioError: a GPU is asked for, and there is none.
    """
    check_one_root()
    require_device(scenario.engine.device)
    if scenario.engine.ray_address:
        from simulations.engine.ray_engine import require_cluster

        require_cluster(scenario.engine.ray_address)
    if out is not None:
        check_out(out, place, run_results(scenario) if writes is None else writes)
    scenario = absolute(scenario)
    for key in ("path", "test_path", "catalogue", "titles"):
        path = getattr(scenario.data, key)
        if path is not None and file_kind(Path(path)) == "nothing":
            raise DataError(f"{path}: no such file or folder; correct data.{key}")
        if path is not None and not (Path(path).is_file() or Path(path).is_dir()):
            raise DataError(f"{path}: is a device or a pipe, neither file nor folder; correct data.{key}")

    from clients.fleet.fleet import load_fleet, load_sent_fleet

    load_fleet(scenario.fleet)
    load_sent_fleet(scenario.fleet, fleet_files(scenario.fleet))  # as nodes will have it
    check_plug_ins(scenario)
    return scenario


def require_dataset(name: str, data_dir: Path | None) -> None:
    """Download a named data set, if it is not here.

    Raises:
        DataError: no such data set, or it cannot be had.
    """
    from fl_peel.data.datasets import list_datasets, load_dataset

    here = [row.where for row in list_datasets(data_dir) if row.name == name]
    if not here or here[0] is None:
        load_dataset(name, data_dir=data_dir)


FEW = 5
"""Interactions of a device of which none may be left for testing at usual shares."""


def require_items(splits: Splits, part: Literal["validation", "test"], because: str) -> None:
    """Refuse data of which a part is empty that something is measured on.

    Raises:
        ScenarioError: naming the key; ``because`` names the purpose, and the remedy.
    """
    if not getattr(splits, part).num_interactions:
        most = int((splits.train.counts() + splits.validation.counts() + splits.test.counts()).max(initial=0))
        few = ", too few to split: use data with more" if most < FEW else ""
        raise ScenarioError(
            f"data.{part}_share: no device has a {part} item, and {because}; a device has {most} interactions at most"
            + few
        )


def check_data(scenario: Scenario, splits: Splits) -> None:
    """Refuse keys that ask for more than the data has, once it is read: of runs and studies.

    Raises:
        ScenarioError: naming the key.
        DataError: nothing is collected.
    """
    from fl_peel.data.interactions import check_collected
    from fl_peel.pretraining.clusters import check_count
    from fl_peel.privacy.noise_plan import check_delta
    from strategies.run.stage1_outcome import given_data

    check_delta(scenario, splits.num_users)
    check_items(scenario, splits.num_items)
    check_count(scenario.blocks.item_groups, scenario.blocks.count, splits.num_items)
    given, has_data = given_data(scenario, splits.train)
    least = scenario.user_groups.min_size
    if scenario.pretraining.by_devices:
        if least > splits.num_users:
            raise ScenarioError(f"user_groups.min_size: {least} of {splits.num_users} devices; lower it")
    else:
        check_collected(given)
        known = int(has_data.sum())
        if least > known:
            raise ScenarioError(
                f"user_groups.min_size: {least} of {known} devices whose data is collected; lower it, or raise "
                "pretraining.collected.share"
            )
    unseen = scenario.data.held_by_nodes
    if not unseen and scenario.pretraining.model == "spectral" and scenario.pretraining.spectral().chooses:
        require_items(
            splits,
            "validation",
            "the filter of spectral pretraining is chosen on them; raise it, or set pretraining.columns, "
            "count_exponent and value_exponent",
        )
    if scenario.user_groups.count > splits.num_users:
        raise ScenarioError(f"user_groups.count: {scenario.user_groups.count} of {splits.num_users} devices; lower it")
    _check_reached(scenario, splits.num_users)


def check_run(scenario: Scenario, splits: Splits) -> None:
    """The same of a run, and what its report is of.

    Raises:
        ScenarioError: naming the key.
        DataError: nothing is collected.
        BudgetError: an evaluation budget is below one block.
    """
    from fl_peel.exchange.release import wants_signals
    from strategies.run.stage1_outcome import check_budgets

    if not scenario.data.held_by_nodes:  # what nodes have nobody knows
        require_items(splits, "test", "reports need them; raise it")
        if scenario.fairness.tiers and not scenario.data.refit:
            because = "fairness.tiers are chosen on them; raise it, or set fairness.tiers to []"
            require_items(splits, "validation", because)
        if wants_signals(scenario) and scenario.refinement.rounds:
            require_items(splits, "validation", "the controller learns from them; raise it, or set other selectors")
    _check_honest(scenario, splits)
    check_data(scenario, splits)
    check_budgets(scenario, layout_of(scenario, splits))


def splits_to_run(scenario: Scenario, data_dir: str, run_dir: str, *, deployed: bool = False) -> Splits:
    """Splits of all devices of a scenario, on which it can be run as it is: mistakes show before an engine starts.
    deployed: whether its nodes are not simulated.

    Raises:
        FlPeelError: as :func:`fl_peel.device_storage.device_splits`, :func:`check_run` and :func:`check_devices`.
    """
    from fl_peel.device_storage import device_splits

    splits = device_splits(scenario, data_dir, run_dir)
    if scenario.data.timeline is None:
        check_run(scenario, splits)
    else:
        from strategies.timeline.period import check_timeline

        check_timeline(scenario)
        check_items(scenario, splits.num_items)
    if not deployed:
        check_devices(scenario, splits)
    return splits


def data_to_run(scenario: Scenario, data_dir: str, run_dir: str, *, deployed: bool = False) -> Splits | Timeline:
    """Return the data that a run is of: splits, or where the scenario has a timeline, that.

    Raises:
        FlPeelError: as :func:`splits_to_run`.
    """
    from fl_peel.device_storage import device_timeline

    splits = splits_to_run(scenario, data_dir, run_dir, deployed=deployed)
    return splits if scenario.data.timeline is None else device_timeline(scenario, data_dir, run_dir)


def check_devices(scenario: Scenario, splits: Splits) -> None:
    """Refuse a fleet of which some devices could never hold anything, or none could ever train. Of runs whose devices
    are drawn from all of the fleet: a real node may host one class of it.

    Raises:
        BudgetError: naming the device class.
        ScenarioError: naming the key that leaves nobody.
    """
    import numpy as np

    from clients.fleet.fleet import FleetBudgets, load_fleet
    from clients.node.cohort import DeviceRates
    from clients.node.joining import check_poorest, check_working

    fleet, layout = load_fleet(scenario.fleet), layout_of(scenario, splits)
    devices = np.arange(splits.num_users, dtype=np.int64)
    budgets = FleetBudgets(fleet, scenario.seed, devices, layout.full_table_bytes)
    ceilings, classes = budgets.ceiling(), fleet.classes(scenario.seed, devices)
    check_poorest(layout, scenario.blocks.precision, ceilings, classes, fleet.names)
    check_working(layout, scenario, budgets.working(), classes, fleet.names)
    refinement, largest = scenario.refinement, int(ceilings.max(initial=0)) / layout.full_table_bytes
    for key, share in (
        ("refinement.min_budget_share", refinement.min_budget_share),
        ("fairness.exclude_below", scenario.fairness.exclude_below or 0.0),
    ):
        if share > largest:
            raise ScenarioError(
                f"{key}: {share:.4%} is above the largest budget of the fleet, {largest:.4%}, so that no device would "
                "train; lower it"
            )
    rates = DeviceRates.from_rates(fleet.rates(scenario.seed, devices))
    block_bytes = int(min(layout.block_bytes(precision).min() for precision in PRECISIONS))
    soonest = float((rates.latency_s + block_bytes / rates.downlink_bytes_per_s).min(initial=np.inf))
    if refinement.deadline_s is not None and refinement.deadline_s < soonest:
        raise ScenarioError(
            f"refinement.deadline_s: {refinement.deadline_s:g} is shorter than the download of one block to any "
            f"device, {soonest:g} s at least, so that every device would miss it; raise it"
        )
    _check_available(scenario, fleet, devices)


def _check_available(scenario: Scenario, fleet: Fleet, devices: NDArray[np.int64]) -> None:
    """Refuse rounds in none of which any device is available; a timeline has rounds of its own."""
    rounds = min(scenario.refinement.rounds, MOST_ROUNDS_LOOKED_AT)
    if scenario.data.timeline is not None or not rounds:
        return
    if not any(fleet.available(scenario.seed, devices, number).any() for number in range(1, rounds + 1)):
        raise ScenarioError(
            f"fleet: no device is available in any of {rounds} rounds, so that no device would train; raise "
            "availability of its profiles, or set refinement.rounds to 0"
        )


def check_items(scenario: Scenario, num_items: int) -> None:
    """Refuse keys that speak of more items than the data has.

    Raises:
        ScenarioError: naming the key.
    """
    top_n, targets = scenario.evaluation.top_n, scenario.poisoning.num_targets
    if top_n > num_items:
        raise ScenarioError(f"evaluation.top_n: {top_n} of {num_items} items; give at most {num_items}")
    last = max(scenario.poisoning.target_items, default=0)
    if last >= num_items:
        raise ScenarioError(f"poisoning.target_items: there is no item {last}; items go from 0 to {num_items - 1}")
    if scenario.poisoning.largest_share > 0 and not scenario.poisoning.target_items and targets > num_items:
        raise ScenarioError(f"poisoning.num_targets: {targets} of {num_items} items; give at most {num_items}")


def layout_of(scenario: Scenario, splits: Splits) -> BlockLayout:
    """The blocks as they will be; where item groups follow from what is pretrained, the smallest that they may be."""
    from strategies.groups.start import make_layout

    if scenario.blocks.item_groups == "interest-popularity":
        blocks = scenario.blocks.model_copy(update={"item_groups": "single"})
        scenario = scenario.model_copy(update={"blocks": blocks})
    return make_layout(scenario, splits.num_items, _popularity(scenario, splits))


def _popularity(scenario: Scenario, splits: Splits) -> NDArray[np.int64]:
    """Return the popularity of items, as the server will know it."""
    from strategies.run.stage1_outcome import given_data

    given = splits.train if scenario.pretraining.by_devices else given_data(scenario, splits.train)[0]
    return given.popularity(splits.num_items)


def _check_honest(scenario: Scenario, splits: Splits) -> None:
    """Refuse so many malicious devices that nobody is left whom figures are of."""
    share = scenario.poisoning.largest_share
    if share > 0:
        import numpy as np

        from clients.node.poisoning import malicious

        tested = np.flatnonzero(splits.test.counts() > 0)
        if malicious(scenario, tested, share).all():
            raise ScenarioError(
                f"poisoning.share, poisoning.compare: {share:.4%} leaves no honest device with test items, over which "
                "recall is measured; lower it"
            )


def _check_reached(scenario: Scenario, num_devices: int) -> None:
    """Refuse rounds of secure aggregation all of which every user group would sit out."""
    secure, refinement = scenario.secure_aggregation, scenario.refinement
    if not (secure.enabled and refinement.rounds):
        return
    import numpy as np

    from strategies.rounds.strategy import sample_cohort

    most = num_devices
    if refinement.sampling == "fixed":
        most = len(sample_cohort(scenario.seed, 1, np.arange(num_devices), refinement.sampling_rate))
    if secure.min_devices > most:
        raise ScenarioError(
            f"secure_aggregation.min_devices: {secure.min_devices} of {most} devices that a round can sample, so that "
            "every user group would skip every round; lower it, or raise refinement.cohort_share"
        )


def check_plug_ins(scenario: Scenario) -> None:
    """Import what installed packages add and a scenario names: what it is shows before anything runs.

    Raises:
        ScenarioError: one of them is not what its name stands for, or cannot be imported; or keys under which a
            mechanism's epsilon would not be true.
    """
    added = {scenario.selector, *scenario.evaluation.selectors} - {CONTROLLER, *SELECTORS.shipped}
    if added:
        from fl_peel.weighting.selectors import find_selector

        for name in sorted(added):
            find_selector(name)
    if scenario.privacy.noised:
        from fl_peel.privacy.mechanisms import find_mechanism
        from fl_peel.privacy.noise_plan import check_keys

        mechanism = find_mechanism(scenario.privacy.mechanism)
        assert mechanism is not None, "a mechanism that adds noise has a name"
        check_keys(scenario, mechanism)
    if scenario.refinement.contribution is not None:
        from clients.node.round_context import contents_kind as device_kind
        from strategies.run.refinement import contents_kind as server_kind

        device_kind(scenario)
        server_kind(scenario)
    if scenario.stages:
        from fl_peel.steps import find_stage

        for name in scenario.stages:
            find_stage(name)
    if scenario.privacy.statistics:
        from fl_peel.exchange.release import find_statistic

        for name in scenario.privacy.statistics:
            find_statistic(name)


def run_results(scenario: Scenario) -> tuple[str, ...]:
    """Names of what a run of the scenario may write into its folder."""
    return (*(TIMELINE_RESULTS if scenario.data.timeline is not None else RUN_RESULTS), *SEEDS_RESULTS)


def given_folder(out: str | Path | None) -> Path | None:
    """The folder that results go to, None for no results.

    Raises:
        ReportError: an empty path, which would mean the current folder.
    """
    if out is not None and not str(out).strip():
        raise ReportError("out: is empty; give a folder, or . for the current one")
    return None if out is None else Path(out)


def require_folders(out: str | Path, scenario: Scenario, seeds: int) -> Path:
    """The folder that results of so many seeds go to, each into ``seed-K`` of it.

    Raises:
        ReportError: an empty path, or a seed's folder that no results can be written to.
    """
    folder = given_folder(out)
    assert folder is not None, "several seeds have a folder"
    for number in range(scenario.seed, scenario.seed + seeds):
        check_out(folder / f"seed-{number}", writes=run_results(scenario))
    return folder


def check_out(out: Path, place: str = "--out", writes: Sequence[str] = ()) -> None:
    """Refuse a place that no results can be written to. writes: names of what will be written there.

    Raises:
        ReportError: something is in the way, the folder is not writable, or the system knows no such name; or a file
            there that would be replaced is not ours.
    """
    try:
        _check_out(out, place, writes)
        require_ours(out, writes, place)
    except OSError as error:
        raise ReportError(f"{out}: cannot be a folder ({error.strerror}); give {place} another one") from error


def check_file(file: Path, option: str) -> None:
    """Refuse a place that no file can be written to.

    Raises:
        ReportError: it is a folder, or its folder is none that can be written.
    """
    if file.is_dir():
        raise ReportError(f"{file}: is a folder; give {option} a file")
    check_out(file.absolute().parent, option)


def _check_out(out: Path, place: str, writes: Sequence[str]) -> None:
    if out.exists() and not out.is_dir():
        raise ReportError(f"{out}: is a file; give {place} a folder")
    there = out.absolute()
    while not there.exists():
        if there.is_symlink():
            raise ReportError(f"{out}: cannot be made, {there} is a broken link; give {place} another folder")
        there = there.parent
    if not there.is_dir():
        raise ReportError(f"{out}: cannot be made, {there} is a file; give {place} another folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ReportError(
            f"{out}: cannot be written, {there} is not writable ({error.strerror}); give {place} another folder"
        ) from error
    for name in writes:
        if name not in RESULT_FOLDERS and (out / name).is_dir():
            raise ReportError(f"{out / name}: is a folder with the name of a result; move it, or give another {place}")
    for name in RESULT_FOLDERS:
        if (out / name).exists() and not (out / name).is_dir():
            raise ReportError(
                f"{out / name}: is a file with the name of a result's folder; move it, or give another {place}"
            )


def absolute(scenario: Scenario) -> Scenario:
    """The same scenario with paths that hold in any working directory."""
    data = scenario.data.model_copy(
        update={
            key: os.path.abspath(os.path.expanduser(path))
            for key in ("path", "test_path", "catalogue", "titles")
            if (path := getattr(scenario.data, key)) is not None
        }
    )
    if isinstance(scenario.fleet, str):
        fleet: str | tuple[str, ...] = _absolute_fleet(scenario.fleet)
    else:
        fleet = tuple(_absolute_fleet(entry) for entry in scenario.fleet)
    return scenario.model_copy(update={"data": data, "fleet": fleet})


def _absolute_fleet(entry: str) -> str:
    """``fleet.yaml`` and ``fleet.yaml:class`` as absolute paths; the name of a shipped fleet stays."""
    path, colon, only = entry.rpartition(":")
    whole, path = os.path.expanduser(entry), os.path.expanduser(path)
    if file_kind(Path(whole)) == "file":
        return os.path.abspath(whole)
    if colon and file_kind(Path(path)) == "file":
        return f"{os.path.abspath(path)}:{only}"
    return entry


def require_absolute(scenario: Scenario, folders: dict[str, str]) -> None:
    """Refuse relative paths where the working directory is anybody's guess: under ``flwr run``.

    Raises:
        ScenarioError: naming the key.
    """
    fleet = (scenario.fleet,) if isinstance(scenario.fleet, str) else scenario.fleet
    paths = {**folders, "data.path": scenario.data.path, "data.test_path": scenario.data.test_path}
    paths |= {"data.catalogue": scenario.data.catalogue, "data.titles": scenario.data.titles}
    paths |= {"fleet": next((entry for entry in fleet if "/" in entry and not entry.startswith(("/", "~"))), "")}
    for key, path in paths.items():
        if path and not Path(path).expanduser().is_absolute():
            raise ScenarioError(f"{key}: {path} is a relative path; give an absolute path under flwr run")


# ---- Folders in which a run leaves things: the simulated devices' disks, and pretrained tables


PREFIX = "fl-peel-"
"""Prefix of the name of a run's folder."""
LEAST_FREE_BYTES = 32 << 20
"""Bytes that the smallest run needs on the disk, with what Ray writes itself."""


def default_cache_dir() -> Path:
    """Return the folder where pretrained tables are kept between runs."""
    return Path(platformdirs.user_cache_dir("fl-peel")) / "pretrained"


def data_folder(data_dir: str | Path | None) -> str:
    """Return the folder of named data sets: the one given, that of the environment, or "", the default."""
    return os.path.abspath(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")


@contextmanager
def run_folder() -> Iterator[Path]:
    """A temporary folder for the simulated devices' disks; those of killed runs are removed before.

    Raises:
        ReportError: there is no place for one, or the disk is full.
    """
    with ExitStack() as stack:
        try:
            place = Path(tempfile.gettempdir())
            remove_abandoned(place, PREFIX)
            free = shutil.disk_usage(place).free
            if free < LEAST_FREE_BYTES:
                raise ReportError(
                    f"{place}: {free >> 10} KiB are free, where a run and Ray's logs take {LEAST_FREE_BYTES >> 20} MiB "
                    "and more; make some room, or set TMPDIR to another disk"
                )
            folder = stack.enter_context(owned_folder(place, PREFIX))
        except OSError as error:
            raise ReportError(
                f"no temporary folder can be made ({error}); set TMPDIR to one that can be written"
            ) from error
        try:
            yield folder
        except OSError as error:
            if not _is_full(error):
                raise
            raise ReportError(
                f"{place}: no space left for the run's folder ({error}); free some, or set TMPDIR to another disk"
            ) from error


def _is_full(error: OSError) -> bool:
    """Return whether a disk is full by this error; NumPy's has no number, but how much it could write."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and " requested and " in str(error))
