"""The charts that answer a question, for TensorBoard's custom scalars."""

from __future__ import annotations

from collections.abc import Sequence

Layout = dict[str, dict[str, list[object]]]


def layout(filters: Sequence[str]) -> Layout:
    """Five charts that say whether a run goes well, each with what to hold it against, and five on the machinery.

    Args:
        filters: names of the filters, the first part of their curves' tags.

    Example:
        >>> list(layout(["influence"]))
        ['Is it going well?', 'Is the machinery sound?']
        >>> layout([])["Is it going well?"].keys() == layout(["influence"])["Is it going well?"].keys()
        False
    """
    well = {
        "Right answers (EM) and what the reward believes: both should rise": ["val/em", "val/reward", "baseline/em"],
        "Divergence, nats a token: small and steady": ["ppo/kl"],
    }
    if filters:
        well |= {
            "Share of the episodes that the filter keeps: 0.4 to 0.8": _of(filters, "kept_fraction"),
            "Loss of the gold solutions: should fall": [*_of(filters, "gold_loss"), "baseline/gold_loss"],
            "Rewarded episodes that oppose the gold solutions: level": ["hacking/opposing", "hacking/usual"],
        }
    machinery = {
        "Norms of the gradients, before clipping": ["ppo/policy_grad_norm", "ppo/value_grad_norm"],
        "Learning rates": ["lr-AdamW/policy", "lr-AdamW/value"],
        "Critic, explained variance: towards 1": ["ppo/explained_variance"],
        "Entropy, nats a token: no sudden fall": ["ppo/entropy"],
        "Seconds of an iteration": ["time/iteration", "time/rollout", "time/score", "time/update"],
    }
    return {
        title: {chart: ["Multiline", [f"{tag}$" for tag in tags]] for chart, tags in charts.items()}
        for title, charts in (("Is it going well?", well), ("Is the machinery sound?", machinery))
    }


def _of(filters: Sequence[str], curve: str) -> list[str]:
    return [f"{name}/{curve}" for name in filters]
