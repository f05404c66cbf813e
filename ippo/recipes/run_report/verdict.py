"""The report in words: what a run came to, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ippo.functional import difference_error
from ippo.recipes.expectations import findings
from ippo.recipes.run_report.record import Record

_GAMED = 0.1
"""By so much more than the truth a reward may rise before it is called gamed."""


@dataclass(frozen=True)
class Said:
    """A sentence of the verdict.

    Args:
        tone: whether it is good news.
        text: the sentence.
        remedy: what to try, where there is something.
    """

    tone: Literal["good", "bad", "plain"]
    text: str
    remedy: str = ""


def verdict(run: Record) -> list[Said]:
    """What the run came to, the most important first."""
    gamed = _belief(run)
    said = [*_accuracy(run, bool(gamed)), *gamed, *_greedy(run), *_reasoning(run)]
    if (alarm := run.alarm()) is not None:
        remedy = f"read hacking/iteration-{alarm:05d}-*.parquet, close the hole, and go on from hacking/before.ckpt"
        said.append(Said("bad", f"The alarm against gamed rewards sounded in iteration {alarm}.", remedy))
    said += [Said("bad", f"{one.said}.", one.remedy) for one in findings(run.iterations, run.dry_run)]
    return [*said, *_end(run)]


def chance(first: float, last: float, problems: int) -> Literal["rose", "fell", "can hardly be told apart"]:
    """What can be said of two shares of the same problems: a difference counts beyond two standard errors.

    The error is that of ``problems`` single answers to each, more than it is, as a share is of several answers.

    Example:
        >>> chance(0.25, 0.5, problems=256), chance(0.25, 0.30, problems=64)
        ('rose', 'can hardly be told apart')
    """
    if abs(last - first) <= 2 * difference_error(first, last, max(1, problems)):
        return "can hardly be told apart"
    return "rose" if last > first else "fell"


def _accuracy(run: Record, gamed: bool) -> list[Said]:
    before, after = run.summary.get("sft"), run.summary.get("trained")
    if not before or not after:
        return _validated(run)
    how = chance(before["em"], after["em"], after["n"])
    figures = f"{before['em']:.3f} to {after['em']:.3f}"
    of = f"on {after['n']} test problems, {after['k']} answers each"
    if how == "rose":
        return [Said("good", f"The share of right answers (EM) rose from {figures} {of}.")]
    if how == "fell":
        remedy = "lower ppo.learning_rate, raise ppo.kl_coef, or end the run where val/em was highest"
        return [Said("bad", f"The share of right answers (EM) fell from {figures} {of}.", remedy)]
    remedy = (
        "let it go on (--resume with a larger --trainer.max_epochs), raise ppo.learning_rate, or test more problems"
    )
    text = f"The share of right answers (EM) went from {figures} {of}: too little to tell from chance."
    return [Said("plain", text, "" if gamed else remedy)]  # more of the same would be gamed more


def _greedy(run: Record) -> list[Said]:
    """Whether the most likely answers got worse, which sampled ones do not show."""
    before, after = run.summary.get("sft") or {}, run.summary.get("trained") or {}
    if None in (before.get("em_greedy"), after.get("em_greedy")):
        return []
    if chance(before["em_greedy"], after["em_greedy"], after["n"]) != "fell":
        return []
    text = f"Greedy answers got worse: EM fell from {before['em_greedy']:.3f} to {after['em_greedy']:.3f}."
    return [Said("bad", text, "raise ppo.kl_coef, lower ppo.learning_rate, or stop earlier")]


def _validated(run: Record) -> list[Said]:
    curve = run.first_of("val/em", "accuracy/em")
    if len(curve) < 2:
        return [Said("plain", "The run has not been tested, and there is no curve yet.")]
    where = "validation problems" if run.first_of("val/em") else "rollouts"
    (first, before), (last, after) = curve[0], curve[-1]
    text = f"Not tested. On {where} the share of right answers went from {before:.3f} to {after:.3f}"
    return [Said("plain", f"{text} (iterations {first} to {last}).", f"ippo evaluate --checkpoint {run.path}")]


def _belief(run: Record) -> list[Said]:
    """Whether the reward rose with the truth."""
    before, after = run.summary.get("sft") or {}, run.summary.get("trained") or {}
    if None in (before.get("reward"), after.get("reward")):
        return []
    gained = {name: after[name] - before[name] for name in ("reward", "em")}
    if gained["reward"] - gained["em"] <= _GAMED:
        return []
    text = f"What the reward believes rose by {gained['reward']:.2f}, what is true by {gained['em']:.2f}"
    remedy = "look at rewarded wrong answers below, close the hole, and let the filter or --ppo.ptx_coef 1 act"
    return [Said("bad", f"{text}: the reward is being gamed.", remedy)]


def _reasoning(run: Record) -> list[Said]:
    before, after = run.summary.get("sft") or {}, run.summary.get("trained") or {}
    first, last = before.get("false_positive"), after.get("false_positive")
    if first is None or last is None:
        return []
    how = chance(first, last, round(after["em"] * after["n"]))
    if how == "can hardly be told apart":
        return []
    remedy = "" if how == "fell" else "see below what the filter keeps of unfaithful answers; give more gold solutions"
    text = f"Of the right answers {last:.0%} come by unfaithful reasoning; before PPO it was {first:.0%}."
    return [Said("good" if how == "fell" else "bad", text, remedy)]


def _end(run: Record) -> list[Said]:
    if not run.summary:
        return [Said("plain", "The run has not ended, or was ended from outside.", "go on with it: --resume")]
    why: Any = run.summary.get("stopped_by", "")
    if run.summary.get("interrupted"):
        return [Said("plain", f"It was {why} after {len(run.iterations)} iterations.", "go on with it: --resume")]
    if str(why).startswith("max_"):
        return []
    return [Said("plain", f"It was stopped by: {why}.")]
