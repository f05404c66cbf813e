"""The screen of a recipe: what it writes, and what it keeps away so that its own lines can be read."""

from __future__ import annotations

import logging
import warnings

from rich.console import Console
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

# Each is true, known, and nothing that the user of a recipe can or should act on.
_EXPECTED = (
    r".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 calls a function that torch 2.13 deprecates
    r".*does not have many workers.*",  # prompts are texts in memory: workers would only cost
    r".*module\(s\) in eval mode at the start.*",  # PPO trains with dropout off, so that the first ratio is 1
    r".*callbacks used to create the checkpoint need to be provided.*",  # judging a checkpoint needs none of them
    r"Could not find a config file in .*",  # PEFT, of a base that is no hub model: it assumes what is true
    r"Detected call of .lr_scheduler.step.*",  # where nothing survived the first iteration there was no step to take
    r".*Checkpoint directory .* exists and is not empty.*",  # meant so: --resume goes on there
)

console = Console()


def quiet() -> None:
    """Hide Lightning's notices about devices and tips, the bars of model files, and warnings that are expected."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    warnings.formatwarning = _in_a_line
    logging.getLogger("transformers.generation.configuration_utils").setLevel(logging.ERROR)  # greedy has no top_k
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)


def _in_a_line(message: object, *_: object, **__: object) -> str:
    """A warning without the line of code that gave it, and not on the line of a bar."""
    below_a_bar = "\n" if any(not bar.disable for bar in getattr(tqdm, "_instances", ())) else ""
    return f"{below_a_bar}{message}\n"
