"""Lightning callbacks: everything that is added to plain PPO."""

from ippo.callbacks.episode_logger import EpisodeLogger
from ippo.callbacks.influence_filter import InfluenceFilterCallback
from ippo.callbacks.reproducible_state import ReproducibleState
from ippo.callbacks.rollout_progress import RolloutProgress
from ippo.callbacks.run_record import RunRecord

__all__ = ["EpisodeLogger", "InfluenceFilterCallback", "ReproducibleState", "RolloutProgress", "RunRecord"]
