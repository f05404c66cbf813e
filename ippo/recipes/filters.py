"""The filters that have a name on the command line, and what each stands for."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import ArgumentParser

from ippo.callbacks import InfluenceFilterCallback, RewardHackingMonitor
from ippo.callbacks.reward_hacking_monitor import knows_gold
from ippo.errors import require

FilterName = Literal["last_block", "uniform", "paper", "tempered", "probe", "none"]


def _filter(parameters: int | None, weight: str, keep: str = "PositiveScore", **weighing: Any) -> dict[str, Any]:
    """Options of the callback, as ``config.yaml`` has them."""
    init_args = {
        "scorer": {"class_path": "ippo.influence.ExactScorer", "init_args": {"parameters": parameters}},
        "keep": {"class_path": f"ippo.influence.{keep}"},
        "weight": {"class_path": f"ippo.influence.{weight}", "init_args": weighing},
    }
    return {"class_path": "ippo.callbacks.InfluenceFilterCallback", "init_args": init_args}


FILTERS: dict[str, dict[str, Any]] = {
    "paper": _filter(None, "Proportional"),
    "last_block": _filter(1, "Uniform"),
    "uniform": _filter(None, "Uniform"),
    "tempered": _filter(None, "Proportional", min_effective=0.5),
    "probe": _filter(1, "Uniform", keep="PositiveProbe"),
}


def build_filter(choice: FilterName | InfluenceFilterCallback) -> InfluenceFilterCallback | None:
    """The callback behind a name, or the callback itself; None for plain PPO."""
    if not isinstance(choice, str):
        return choice
    if choice == "none":
        return None
    parser = ArgumentParser()
    parser.add_argument("--filter", type=InfluenceFilterCallback)
    return parser.instantiate(parser.parse_object({"filter": FILTERS[choice]})).filter


def build_monitor(
    monitor: RewardHackingMonitor, influence_filter: InfluenceFilterCallback | None
) -> RewardHackingMonitor | None:
    """The monitor, where it has a filter to listen to.

    Raises:
        UsageError: if it has none, and shall stop the run.
    """
    if influence_filter is not None and knows_gold(influence_filter):
        return monitor
    remedy = "it listens to a filter that knows gold solutions: where it shall not act, add --filter.dry_run true"
    require(not monitor.stop, "monitor.stop", monitor.stop, remedy)
    return None
