"""The report of a run: one file, offline, readable, and whatever a model wrote is text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from small_recipe import SMALL

from ippo.cli import main as ippo
from ippo.recipes.math import main
from ippo.recipes.run_report import write_report
from ippo.recipes.run_report.record import Record
from ippo.recipes.run_report.verdict import verdict
from ippo.rollout.episodes import write_parquet

HOSTILE = "<script>document.title = 'owned'</script><img src=http://x.invalid/a.png onerror=alert(1)> & 'x' \"y\""
WELL = {"em": 0.4, "reward": 0.4, "kept_fraction": 0.6, "gold_loss": 1.0, "unfinished": 0.1}
SECONDS = {"rollout": 1.0, "scoring": 1.0, "update": 1.0}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tags, attributes, text and headings of a page; complains of a tag that does not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data
            if self._open[-1] in ("h2", "h3"):
                self.headings.append(data)


def shares(em: float, **others: Any) -> dict[str, Any]:
    rest = {"em_greedy": 0.5, "mv": 0.5, "pass_at_k": 0.5, "false_positive": 0.2, "hacked": 0.0, "reward": em}
    return {"em": em, **rest, "k": 4, "n": 256, **others}


def summary(before: dict[str, Any], after: dict[str, Any] | None, **others: Any) -> dict[str, Any]:
    iterations = [{**WELL, "seconds": SECONDS}, {**WELL, "seconds": SECONDS}]
    facts = {"stopped_by": "max_epochs", "interrupted": False, "seed": 0, "device": "cpu", "versions": {"torch": "2"}}
    return {"sft": before, "trained": after, "iterations": iterations, **facts, **others}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run by hand, whose model and prompts mean harm."""
    run = tmp_path / "<b>run"
    run.mkdir()
    (run / "config.yaml").write_text(f"task: embedded\npolicy: {json.dumps(HOSTILE)}\nseed_everything: 0\n")
    (run / "summary.json").write_text(json.dumps(summary(shares(0.2), shares(0.6))))
    answer = {"prompt": HOSTILE, "response": HOSTILE, "correct": False, "finished": True, "reward": 1.0}
    (run / "answers.json").write_text(json.dumps({"of": "test", "before": [answer], "after": [answer]}))
    rows = 4
    columns = {
        "prompt": [HOSTILE] * rows,
        "response": [f"{HOSTILE}{row}" for row in range(rows)],
        "reward": [1.0, 1.0, 0.0, 0.0],
        "finished": [True] * rows,
        "chain": ["hacked", "faithful", "wrong", HOSTILE],
        "score": [-2.0, 3.0, -1.0, 1.0],
        "kept": [False, True, False, True],
        "reason": [HOSTILE, "", HOSTILE, ""],
        "tokens": [[HOSTILE, "b"]] * rows,
        "token_scores": [[-3.0, 1.0]] * rows,
    }
    write_parquet(columns, run / "episodes" / "iteration-00003-rank-00.parquet")
    return run


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe, as it leaves its directory."""
    run = tmp_path_factory.mktemp("runs") / "real"
    options = ["--filter.token_scores=true", "--filter.init_args.min_survival=0", "--trainer.max_epochs=3"]
    assert main([*SMALL, f"--trainer.default_root_dir={run}", *options]) == 0
    return run


def read(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


class TestARunLeavesOne:
    def test_with_all_its_parts(self, real: Path) -> None:
        page = read(real)
        wanted = {"Verdict", "Figures", "Curves", "What the filter kept", "Best and worst scored episodes"}
        assert set(page.headings) >= wanted | {"Answers before and after", "Validation", "Loss of the gold solutions"}
        assert page.tags.count("svg") >= 5
        assert ("class", "baseline") in page.attributes
        assert "4 test problems" in page.text
        assert json.loads((real / "answers.json").read_text()).keys() == {"of", "before", "after"}

    def test_with_its_own_curves(self, real: Path) -> None:
        curve = Record(real).curves["val/em"]
        assert [iteration for iteration, _ in curve] == [0, 1, 2, 3]

    def test_and_a_command_makes_it_anew_for_one_that_has_none(
        self, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = Path(shutil.copytree(real, tmp_path / "old"))
        for name in ("report.html", "answers.json"):
            (old / name).unlink()
        assert ippo(["report", str(old)]) == 0
        assert capsys.readouterr().out == f"Report: {old / 'report.html'}\n"
        assert "This run has kept none." in read(old).text

    def test_without_tensorboards_files_it_has_what_the_summary_knows(self, real: Path, tmp_path: Path) -> None:
        bare = Path(shutil.copytree(real, tmp_path / "bare", ignore=shutil.ignore_patterns("ppo")))
        write_report(bare)
        headings = read(bare).headings
        assert "Loss of the gold solutions" in headings
        assert "Divergence, nats a token" not in headings

    def test_of_one_that_was_killed_too(self, real: Path, tmp_path: Path) -> None:
        killed = Path(shutil.copytree(real, tmp_path / "killed"))
        (killed / "summary.json").unlink()
        write_report(killed)
        page = read(killed)
        assert "The run has not ended, or was ended from outside." in page.text
        assert "Validation" in page.headings

    def test_no_run_is_told_in_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert ippo(["report", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"error: run = '{tmp_path}': there is no config.yaml: " + (
            "give the directory of a run\n"
        )


class TestWhatAModelWrote:
    def test_is_text_and_nothing_else(self, hostile: Path) -> None:
        write_report(hostile)
        page = read(hostile)
        assert not {"script", "img", "b", "iframe", "object", "link"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert page.text.count("<script>document.title") >= 8  # shown as it is

    def test_the_page_asks_for_nothing(self, hostile: Path) -> None:
        write_report(hostile)
        text = (hostile / "report.html").read_text()
        assert "default-src 'none'" in text  # so would the browser refuse it
        assert not {"src", "href", "srcset", "action"} & {name for name, _ in read(hostile).attributes}
        assert "url(" not in text
        assert "@import" not in text

    def test_tokens_are_coloured_by_their_own_scores(self, hostile: Path) -> None:
        write_report(hostile)
        text = (hostile / "report.html").read_text()
        found = re.findall(r'<span class="(high|low)" style="--strength:([\d.]+)" title="(-?\d+)">', text)
        assert set(found) == {("low", "1.0", "-3"), ("high", "0.58", "1")}

    @pytest.mark.skipif(BROWSER is None, reason="there is no browser")
    @pytest.mark.parametrize("width", [390, 1440])
    def test_in_a_browser_it_runs_no_script_and_shows_all(self, hostile: Path, tmp_path: Path, width: int) -> None:
        write_report(hostile)
        measured = tmp_path / "measured.html"  # the page's own policy forbids scripts: what looks stands outside
        frame = f'<iframe id="f" style="width:{width}px;height:900px;border:0" src="{hostile.as_uri()}/report.html">'
        look = (
            "onload=()=>{const d=document.getElementById('f').contentDocument;"
            "document.title=d.title+'|'+d.documentElement.scrollWidth+'|'+d.querySelectorAll('h2').length}"
        )
        measured.write_text(f"<title>-</title>{frame}</iframe><script>{look}</script>")
        command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        shown = subprocess.run(
            [*command, profile, "--virtual-time-budget=3000", "--dump-dom", measured.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        title = re.search(r"<title>(.*?)</title>", shown.stdout)
        assert title is not None, shown.stderr[-2000:]
        name, across, headings = title[1].split("|")
        assert name == "&lt;b&gt;run · report"  # not owned
        assert int(across) <= width  # nothing reaches out of the page
        assert int(headings) == 7


class TestVerdict:
    def said(self, tmp_path: Path, found: dict[str, Any]) -> list[tuple[str, str]]:
        (tmp_path / "config.yaml").write_text("task: embedded\n")
        (tmp_path / "summary.json").write_text(json.dumps(found))
        return [(one.tone, one.text) for one in verdict(Record(tmp_path))]

    @pytest.mark.parametrize(
        ("after", "tone", "words"),
        [
            (shares(0.6), "good", "rose from 0.200 to 0.600 on 256 test problems, 4 answers each"),
            (shares(0.05), "bad", "fell from 0.200 to 0.050"),
            (shares(0.24), "plain", "too little to tell from chance"),
            (shares(0.25, reward=0.8), "bad", "the reward is being gamed"),
            (shares(0.6, em_greedy=0.3), "bad", "Greedy answers got worse: EM fell from 0.500 to 0.300."),
            (shares(0.6, false_positive=0.01), "good", "Of the right answers 1% come by unfaithful reasoning"),
            (shares(0.6, false_positive=0.6), "bad", "before PPO it was 20%"),
        ],
    )
    def test_says_what_the_run_came_to(self, tmp_path: Path, after: dict[str, Any], tone: str, words: str) -> None:
        found = self.said(tmp_path, summary(shares(0.2), after))
        assert any(tone == one and words in text for one, text in found), found

    def test_tells_nobody_to_go_on_with_a_reward_that_is_gamed(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("task: embedded\n")
        for believed, more in ((0.24, True), (0.9, False)):
            found = summary(shares(0.2), shares(0.24, reward=believed))
            (tmp_path / "summary.json").write_text(json.dumps(found))
            assert any("--resume" in one.remedy for one in verdict(Record(tmp_path))) == more

    def test_a_filter_that_only_looked_dropped_nothing_on_purpose(self, tmp_path: Path) -> None:
        idle = {**WELL, "kept_fraction": 1.0, "seconds": SECONDS}
        for looked, tones in ((False, ["good", "bad"]), (True, ["good"])):
            chosen = {"class_path": "ippo.callbacks.InfluenceFilterCallback", "init_args": {"dry_run": looked}}
            (tmp_path / "summary.json").write_text(json.dumps(summary(shares(0.2), shares(0.6), iterations=[idle])))
            for options in ({"filter": chosen}, {"filter": "none", "trainer": {"callbacks": [chosen]}}):
                (tmp_path / "config.yaml").write_text(json.dumps(options))
                assert [one.tone for one in verdict(Record(tmp_path))] == tones

    def test_of_a_run_that_goes_well_is_short(self, tmp_path: Path) -> None:
        assert len(self.said(tmp_path, summary(shares(0.2), shares(0.6)))) == 1

    def test_says_what_is_below_expectation(self, tmp_path: Path) -> None:
        low = {"em": 0.0, "reward": 0.0, "unfinished": 0.9, "kept_fraction": 1.0, "gold_loss": 1.0, "seconds": SECONDS}
        found = self.said(tmp_path, summary(shares(0.2), shares(0.6), iterations=[low, low]))
        assert [tone for tone, _ in found] == ["good", "bad", "bad", "bad", "bad"]

    def test_says_that_it_was_interrupted(self, tmp_path: Path) -> None:
        cut = summary(shares(0.2), None, interrupted=True, stopped_by="interrupted by SIGINT")
        assert self.said(tmp_path, cut)[-1] == ("plain", "It was interrupted by SIGINT after 2 iterations.")

    def test_names_the_iteration_of_the_alarm(self, tmp_path: Path) -> None:
        (tmp_path / "hacking").mkdir()
        (tmp_path / "hacking" / "iteration-00007-rank-00.parquet").touch()
        found = self.said(tmp_path, summary(shares(0.2), shares(0.6)))
        assert ("bad", "The alarm against gamed rewards sounded in iteration 7.") in found
