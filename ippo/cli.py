"""``ippo``: the package's command line. Each word is a program of its own, imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ippo.errors import near

_WORDS = {
    "train": "warm start and influence-filtered PPO on a task",
    "evaluate": "judge a run's checkpoint, or any Hugging Face model",
    "export": "write a run's trained policy as a Hugging Face directory",
    "report": "a run as one HTML page: verdict, curves, what was kept, answers",
    "compare": "run arms x seeds, and tell which way to train is better",
    "diagnose": "what the filter's scores saw in finished runs",
    "doctor": "examine a policy and a task before a long run",
    "demo": "a verifier that can be gamed: the filter and plain PPO, side by side",
}
_HELP = "\n".join(
    (
        "usage: ippo WORD [--OPTION VALUE ...]",
        "",
        "Find and drop the rollouts that would hurt your model, before PPO trains on them.",
        "",
        *(f"  {word:<10}{meaning}" for word, meaning in _WORDS.items()),
        "",
        "  ippo demo                         # the embedded task, about three minutes",
        "  ippo doctor --task gsm8k --policy Qwen/Qwen2.5-0.5B",
        "  ippo WORD --help                  # its options, with examples",
        "  ippo --version",
    )
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the words; returns its exit code, or 2 where there is no such word."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    word = words.pop(0) if words else "--help"
    if word in ("-h", "--help", "help"):
        print(_HELP)
        return 0
    if word == "--version":
        from ippo import __version__

        print(f"ippo {__version__}")
        return 0
    if word in ("train", "evaluate", "export"):
        from ippo.recipes.command import command
        from ippo.recipes.recipe import Recipe
        from ippo.recipes.tasks import TASKS

        return command(Recipe("math", "", TASKS, "tiny", "ippo"), [word, *words])
    if word == "report":
        from ippo.recipes.run_report import command as report

        return report.main(words)
    if word == "compare":
        from ippo.experiments import compare

        return compare.main(words, "ippo compare")
    if word == "diagnose":
        from ippo.experiments import diagnose

        return diagnose.main(words, "ippo diagnose")
    if word == "demo":
        from ippo.experiments import demo

        return demo.main(words, "ippo demo")
    if word == "doctor":
        from ippo.doctor.__main__ import main as doctor

        return doctor(words, "ippo doctor")
    print(f"error: {word!r} is no word of ippo: use {', '.join(_WORDS)}{near(word, _WORDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
