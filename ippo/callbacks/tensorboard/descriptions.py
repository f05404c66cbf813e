"""What each curve is that does not explain itself, and what is good."""

from __future__ import annotations

import re

_SHOWN_BY_ALL = {
    "reward/mean": "What the rollouts earned, on average; an unfinished response earns at most ppo.unfinished_reward.",
    "reward/raw": "What the reward gave before the ceiling of unfinished responses.",
    "reward/unfinished": "Share of responses that did not end within sampling.max_new_tokens. They count as wrong.",
    "reward/length": "Mean number of tokens of a response.",
    "reward/zero_variance": "Share of prompts whose samples all earned the same: RLOO and GRPO learn nothing there.",
    "accuracy/em": "Share of right answers among the rollouts, before the filter, by the task's own check.",
    "accuracy/no_answer": "Share of responses without an answer that can be read.",
    "accuracy/hacked": "Share of responses that are wrong and of the kind that passes through the verifier's hole.",
    "accuracy/false_positive": "Of the right answers that could be checked, the share by unfaithful reasoning.",
    "accuracy/unverifiable": "Share of the right answers whose reasoning could not be checked.",
    "accuracy/wrong_step": "Of the right answers that could be checked, the share with a wrong step.",
    "accuracy/nonsense": "Of the right answers that could be checked, the share with a step that has no place there.",
    "accuracy/shortcut": "Of the right answers that could be checked, the share that leaves out a step.",
    "val/em": "Share of right answers among k samples of each problem.",
    "val/em_greedy": "The same of the greedy answer.",
    "val/mv": "Share of the problems whose most frequent answer is right.",
    "val/pass@k": "Share of the problems with at least one right answer among k.",
    "val/reward": (
        "What the training reward gives to these answers. It should rise with EM; if it rises alone, it is being gamed."
    ),
    "val/false_positive": "Of the right answers that could be checked, the share by unfaithful reasoning.",
    "val/unverifiable": "Of the right answers, the share whose reasoning could not be checked.",
    "val/hacked": "Share of the answers that are wrong and of the kind that passes through the verifier's hole.",
    "val/unfinished": "Share of the answers that did not end within sampling.max_new_tokens. They count as wrong.",
    "baseline/em": "val/em before training, as a line to compare with.",
    "baseline/gold_loss": "The gold loss before training, as a line to compare with.",
    "ppo/kl": (
        "Divergence from the policy before PPO, in nats a token, estimated from the sampled tokens (k1). "
        "Small and steady is good. It can be a little below zero by chance."
    ),
    "ppo/entropy": "Mean surprise of the sampled tokens, in nats. A fall to almost nothing: it no longer explores.",
    "ppo/mismatch": (
        "How far the policy of the first step is from the one that sampled, in nats a token (k3). It has not "
        "moved by then, so this should be about 0. More than 1e-3: dropout, other kernels, or half precision."
    ),
    "ppo/policy_step": "How far an update moves the policy, in nats a token (k3), the mean of its minibatches.",
    "ppo/clip_fraction": "Share of tokens whose ratio is beyond the clip. Above 0.2 or so: lower ppo.learning_rate.",
    "ppo/explained_variance": (
        "How much of the returns' variance the critic foresees: 1 is all, 0 nothing, below 0 it is worse than the mean."
    ),
    "ppo/policy_loss": "The clipped objective. Not a measure of progress: it is near 0 by design.",
    "ppo/value_loss": "Squared error of the critic; it falls while the critic learns.",
    "ppo/policy_grad_norm": (
        "Norm of the policy's gradient before it is clipped to ppo.max_grad_norm; the mean of the steps. "
        "Sudden peaks: lower ppo.learning_rate."
    ),
    "ppo/value_grad_norm": "The same of the critic.",
    "ppo/update_tokens": (
        "Response tokens that an update learned from, once each pass. What the filter drops saves them."
    ),
    "ppo/ptx_agreement": "Sum of the scores over that of their sizes: 1 when rewards pull as the gold solutions do.",
    "ppo/ptx_coef": "Factor of the gold solutions' loss (ppo.ptx_coef, ppo.ptx_schedule, AdaptivePtx).",
    "ppo/ptx_loss": "SFT loss of the gold solutions that are mixed in (ppo.ptx_coef).",
    "ppo/engine_gap": (
        "Mean difference of log-probabilities between engine and policy, in nats a token: 1e-6 in float32, "
        "1e-2 in bfloat16; more is stale weights."
    ),
    "ppo/importance": "Mean weight that makes up for the engine's own numbers; near 1 is good.",
    "ppo/importance_cut": "Share of tokens whose weight is at ppo.importance_cap.",
    "hacking/opposing": (
        "Share of the rewarded episodes whose score is negative. Level or falling is good; a rise says that "
        "rewards are earned by what the gold solutions do not do."
    ),
    "hacking/usual": "What hacking/opposing is held against: the run's own share before any rise.",
    "hacking/cusum": "Evidence for a rise, in nats; the alarm is at monitor.detector's decision_interval.",
    "hacking/rank_correlation": "Rank correlation of rewards and scores.",
    "hacking/rank_correlation_within": "The same within the samples of one prompt.",
    "hacking/survival_rewarded": "Share of the rewarded episodes that a filter by the sign would keep.",
    "hacking/survival_unrewarded": "The same of the unrewarded ones.",
    "guard/episodes": "Episodes left out because a number of theirs is not finite.",
    "guard/skipped_steps": "Optimizer steps not taken because a gradient is not finite.",
    "time/iteration": "Seconds of a whole iteration.",
    "time/rollout": "Seconds of sampling, rewards and the log-probability pass, scoring not counted.",
    "time/score": "Seconds of scoring.",
    "time/update": "Seconds of the PPO epochs.",
    "time/rollout_tokens": "Response tokens drawn a second.",
    "time/update_tokens": "Tokens of prompts and responses through forward and backward a second.",
    "time/peak_share": "Share of what the card can do in bfloat16 that an update reaches (MFU).",
    "time/memory": "Most memory so far, in GiB.",
}
_EVALUATED = re.compile("^(test|final)/")
_GROUPS = {tag.partition("/")[0] for tag in _SHOWN_BY_ALL}
_OF_A_FILTER = {
    "kept_fraction": (
        "Share of the episodes that stay. 0.4 to 0.8 is usual. Near 1: the filter has nothing to do; near 0: "
        "the gold solutions do not fit the task."
    ),
    "effective_sample_size": "As many episodes of equal weight would count as much, as a share of all.",
    "score_mean": "Mean score: gradient of an episode's loss times the direction. Its scale has no meaning of its own.",
    "gold_loss": (
        "Loss of the gold solutions, whose gradient is the direction. It should fall. If it rises, the policy "
        "moves away from them: lower ppo.learning_rate, or stop."
    ),
    "cost": "Seconds of scoring as a share of the iteration.",
    "kept_correct": "Of the right answers by faithful reasoning, the share that stays.",
    "kept_false_positive": "Of the right answers by unfaithful reasoning, the share that stays. Lower is better.",
    "kept_wrong": "Of the wrong answers, the share that stays; an unrewarded one teaches, too.",
    "kept_hacked": "Of the wrong answers that pass through the verifier's hole, the share that stays. Lower is better.",
    "kept_unverifiable": "Of the right answers whose reasoning could not be checked, the share that stays.",
}


def description(tag: str) -> str:
    """What a curve shows, or an empty text. A filter's curves are known by their last part: filters have names.

    Example:
        >>> description("ppo/value_grad_norm"), description("mine/cost"), description("mine/own")
        ('The same of the critic.', 'Seconds of scoring as a share of the iteration.', '')
    """
    group, _, name = _EVALUATED.sub("val/", tag).rpartition("/")
    known = _SHOWN_BY_ALL.get(f"{group}/{name}", "")
    return known or ("" if group in _GROUPS else _OF_A_FILTER.get(name, ""))
