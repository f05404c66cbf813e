"""The example on docs/doctor.md, made by the doctor itself.

python docs/doctor_sample.py            # print it
python docs/doctor_sample.py --write    # and put it into the page
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("doctor.md")
COMMAND = "python -m ippo.doctor --embedded.gold_size 8 --embedded.verifier_error 0.25"


def sample() -> str:
    """What the command prints; it ends with 1, for something is wrong there on purpose."""
    words = [sys.executable, *shlex.split(COMMAND)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 1:
        raise SystemExit(f"{COMMAND} ended with {done.returncode}: {done.stderr[-500:]}")
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def into(page: str, text: str) -> str:
    """The page with ``text`` as its example."""
    block = re.compile(r"(## An example\n.*?\n```\n).*?(\n```\n)", re.DOTALL)
    assert block.search(page)
    return block.sub(lambda found: found[1] + text + found[2], page, count=1)


if __name__ == "__main__":
    made = sample()
    print(made)
    if "--write" in sys.argv:
        PAGE.write_text(into(PAGE.read_text(), made))
