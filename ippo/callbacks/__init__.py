"""Lightning callbacks: everything that is added to plain PPO."""

from ippo.callbacks.answer_logger import AnswerLogger
from ippo.callbacks.checkpoint import IterationCheckpoint
from ippo.callbacks.episode_logger import EpisodeLogger
from ippo.callbacks.influence_filter import InfluenceFilterCallback
from ippo.callbacks.progress import RolloutProgress, WarmStartProgress
from ippo.callbacks.reproducible_state import ReproducibleState
from ippo.callbacks.run_record import RunRecord

__all__ = [
    "AnswerLogger",
    "EpisodeLogger",
    "InfluenceFilterCallback",
    "IterationCheckpoint",
    "ReproducibleState",
    "RolloutProgress",
    "RunRecord",
    "WarmStartProgress",
]
