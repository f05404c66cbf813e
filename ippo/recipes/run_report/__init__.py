"""The report of a run: one file of HTML, made of what the run leaves in its directory."""

from ippo.recipes.run_report.page import write_report

__all__ = ["write_report"]
