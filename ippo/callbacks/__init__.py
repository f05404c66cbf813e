"""Lightning callbacks: everything that is added to plain PPO."""

from ippo.callbacks.adaptive_kl import AdaptiveKL
from ippo.callbacks.adaptive_ptx import AdaptivePtx
from ippo.callbacks.answer_logger import AnswerLogger
from ippo.callbacks.checkpoint import IterationCheckpoint
from ippo.callbacks.dashboard import Dashboard
from ippo.callbacks.episode_logger import EpisodeLogger
from ippo.callbacks.graceful_stop import GracefulStop
from ippo.callbacks.influence_filter import InfluenceFilterCallback
from ippo.callbacks.numeric_guard import NumericGuard
from ippo.callbacks.progress import RolloutProgress, WarmStartProgress
from ippo.callbacks.reproducible_state import ReproducibleState
from ippo.callbacks.reward_hacking_monitor import RewardHackingMonitor
from ippo.callbacks.run_record import RunRecord
from ippo.callbacks.throughput import Throughput

__all__ = [
    "AdaptiveKL",
    "AdaptivePtx",
    "AnswerLogger",
    "Dashboard",
    "EpisodeLogger",
    "GracefulStop",
    "InfluenceFilterCallback",
    "IterationCheckpoint",
    "NumericGuard",
    "ReproducibleState",
    "RewardHackingMonitor",
    "RolloutProgress",
    "RunRecord",
    "Throughput",
    "WarmStartProgress",
]
