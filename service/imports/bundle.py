"""What a bundle's ``configs/inference.json`` does with an image, in our words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.imports.calls import Call
from service.imports.draft import one_line
from service.imports.expressions import Configuration
from service.imports.postprocessing import After, Inferer, after, inferer
from service.imports.preprocessing import Before, before, image_key
from service.imports.refusal import CannotImport, Unmappable

METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
_COMPOSE_HARMLESS = frozenset({"_target_", "transforms", "map_items", "unpack_items", "log_stats", "lazy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a bundle does with an image, in our words."""

    before: Before
    inferer: Inferer
    after: After

    @property
    def window(self) -> tuple[int, ...]:
        """Spatial sizes of the network's input."""
        window = self.inferer.window or self.before.shape
        assert window  # read_plan refuses what has neither
        return window


def read_plan(inference: Mapping[str, Any], *, doing: str) -> Plan:
    """What lies before and behind the network.

    Raises
    ------
    CannotImport
        With all that can't be mapped, by name.
    """
    configuration = Configuration(inference)
    problems = _other_ways(inference)
    made, led, done = Before(), Inferer(window=None), After()
    for key in ("preprocessing", "inferer", "postprocessing"):
        try:
            calls = _calls(configuration, key)
            image = image_key(calls) if key == "preprocessing" else "pred"
        except Unmappable as exc:
            problems.append(f"{key}: {exc}")
            continue
        for call in calls:
            try:
                if key == "inferer":
                    led = inferer(call)
                elif key == "preprocessing":
                    made = before(call, made, image)
                else:
                    done = after(call, done, image)
            except Unmappable as exc:
                problems.append(f"{call.name} ({key}): {exc}")
    if not problems:
        if (led.window is None) != (made.shape is not None):
            problems.append("inferer: a sliding window, or SimpleInferer behind Resized, is what is mapped")
        if not done.discrete:
            problems.append("postprocessing: no AsDiscreted says from which probability on a voxel belongs to a class")
    if problems:
        raise CannotImport(
            doing=doing,
            found="; ".join(one_line(problem) for problem in problems),
            rule="each transform is done here as the bundle says, or the bundle is refused: nothing is guessed",
            way_out=f"write {INFERENCE} with the transforms that are mapped (models/README.md, Models from outside), "
            "where they do the same, and have whoever made the model confirm it",
        )
    return Plan(before=made, inferer=led, after=done)


def _calls(configuration: Configuration, key: str) -> list[Call]:
    """The classes that a part of the configuration names, in order, without those that are disabled."""
    if key not in configuration:
        raise Unmappable("it is missing")
    raw = configuration.resolve(configuration.item(key), deep=False)
    if isinstance(raw, dict) and key != "inferer":
        left = sorted(set(raw) - _COMPOSE_HARMLESS)
        if str(raw.get("_target_")).rpartition(".")[2] != "Compose" or left:
            raise Unmappable(f"{raw.get('_target_')} with {', '.join(left) or 'nothing'}; only Compose is mapped")
        raw = configuration.resolve(raw.get("transforms"), deep=False)
    items = [configuration.resolve(item, deep=False) for item in (raw if isinstance(raw, list) else [raw])]
    if not all(isinstance(item, dict) and "_target_" in item for item in items):
        raise Unmappable("something in it is no transform by name")
    return [call for call in (Call(item, configuration) for item in items) if not call.is_disabled]


def _other_ways(inference: Mapping[str, Any]) -> list[str]:
    """Where the bundle itself would take something else than the parts that are read here."""
    wanted = [
        ("dataset", "transform", "@preprocessing"),
        ("evaluator", "inferer", "@inferer"),
        ("evaluator", "postprocessing", "@postprocessing"),
    ]
    return [
        f"{part}#{key} is {inference[part][key]!r}, not {reference!r}"
        for part, key, reference in wanted
        if isinstance(inference.get(part), dict) and inference[part].get(key, reference) != reference
    ]
