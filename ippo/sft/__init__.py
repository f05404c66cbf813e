"""Supervised fine-tuning: the warm start of PPO, and its baseline."""

from ippo.sft.module import SFTModule, SFTOptions, demonstration_loader, demonstration_loss

__all__ = ["SFTModule", "SFTOptions", "demonstration_loader", "demonstration_loss"]
