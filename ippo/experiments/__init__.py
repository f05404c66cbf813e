"""Instruments: arms side by side, and what the scores saw."""
