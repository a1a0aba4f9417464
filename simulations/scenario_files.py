"""Scenarios from files: the shipped ones and the user's, changed by overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from fl_peel.errors import ScenarioError, shortened
from fl_peel.events import Callback, OnEvent, silent
from fl_peel.files import file_kind
from fl_peel.plugins import did_you_mean, nearest
from fl_peel.problems import MAX_DEPTH, YamlFault, explain, read_yaml, read_yaml_file
from fl_peel.scenario.scenario import Scenario

if TYPE_CHECKING:
    from flwr.serverapp import Grid


SCENARIO_FOLDER = Path(__file__).resolve().parent / "scenarios"
"""Folder of the shipped scenarios."""


def shipped_scenarios() -> dict[str, Path]:
    """Shipped scenarios by name."""
    return {path.stem: path for path in sorted(SCENARIO_FOLDER.glob("*.yaml"))}


def load_scenario(source: str | Path, overrides: Iterable[str] = (), *, seed: int | None = None) -> Scenario:
    """Read a scenario: the name of a shipped one or a YAML file, changed by ``path=value`` overrides.

    Raises:
        ScenarioError: no such scenario, not YAML, or a key that is unknown, of the wrong type or out of range.
    """
    path = _find(source)
    try:
        content = read_yaml_file(path)
    except YamlFault as fault:
        raise ScenarioError(f"{path}{fault.line}: {fault}; correct it, or name another scenario") from None
    if not isinstance(content, dict):
        raise ScenarioError(f"{path}: is not a mapping of keys; start from a file that `fl-peel scenarios` lists")
    content.setdefault("name", path.stem)
    for override in overrides:
        content = with_override(content, override)
    if seed is not None:
        content["seed"] = seed
    return validated(Scenario, content, str(source))


def _find(source: str | Path) -> Path:
    shipped = shipped_scenarios()
    if str(source) in shipped:
        return shipped[str(source)]
    path = Path(source)
    if file_kind(path) != "nothing":
        return path
    if nearest(str(source), shipped) is None:
        from fl_peel.data.datasets import DATASETS  # not needed for a scenario's name with a slip

        if str(source) in {one.name for one in DATASETS}:
            raise ScenarioError(
                f"{source}: is a data set, no scenario; run e.g. fl-peel run ml-100k --set data.name={source}"
            )
    raise ScenarioError(f"{shortened(str(source), 200)}: no such scenario or file; {did_you_mean(source, shipped)}")


def with_override(content: dict[str, Any], override: str) -> dict[str, Any]:
    """Return a scenario's content with a ``path=value`` in it.

    Raises:
        ScenarioError: not of this form, or no YAML.
    """
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    shown = shortened(override, 100)
    if not equals or not all(keys) or len(keys) > MAX_DEPTH:
        raise ScenarioError(f"--set {shown}: expected path=value, e.g. refinement.rounds=5")
    try:
        value = read_yaml(text)
    except YamlFault as fault:
        raise ScenarioError(f"--set {shown}: {fault}; quote the value") from None

    def changed(node: Any, left: list[str]) -> dict[str, Any]:
        if node is not None and not isinstance(node, dict):
            raise ScenarioError(f"--set {shown}: {'.'.join(keys[: -len(left)])} is a value and has no keys")
        inner = dict(node or {})
        inner[left[0]] = value if len(left) == 1 else changed(inner.get(left[0]), left[1:])
        return inner

    return changed(content, keys)


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], content: Mapping[str, Any], place: str) -> Model:
    """Build ``model``, or raise a ScenarioError of one line that names the bad keys and the remedy."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ScenarioError(f"{place}: {explain(error, model=model)}") from error


# ---- What a run or a study is given besides its scenario


class _Arguments(TypedDict, total=False):
    """What runs and studies have in common."""

    data_dir: str | Path | None
    """Folder that holds data sets by name; None: ``$FL_PEEL_DATA``, then the cache."""
    cache_dir: str | Path | None
    """Folder in which pretrained tables are kept by content; None keeps none."""
    on_event: OnEvent
    """Function that gets the event of every step."""
    command: str | None
    """Command that makes the same files again, for the report."""
    fresh: bool
    """Whether what an earlier try has kept is left unread, and all is done anew."""


class StudyArguments(_Arguments):
    """Keyword arguments of every study; all but its folder may be left out."""

    out: Required[str | Path]
    """Folder of the results and of the checkpoints."""


class RunArguments(_Arguments, total=False):
    """Keyword arguments of every run; each may be left out."""

    out: str | Path | None
    """Folder of the results, in which a run that is stopped leaves what it takes to resume."""
    callbacks: Sequence[Callback] | None
    """Objects that receive the run's events, and never stop it."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Arguments of a run or a study. grid: nodes that somebody else started; None: those of the engine."""

    out: str | Path | None = None
    data_dir: str | Path | None = None
    cache_dir: str | Path | None = None
    on_event: OnEvent = silent
    callbacks: Sequence[Callback] | None = None
    command: str | None = None
    fresh: bool = False
    grid: Grid | None = None
