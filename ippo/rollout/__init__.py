"""Prompts become episodes: sequences, the buffer, and what samples."""
