"""The PPO iteration."""
