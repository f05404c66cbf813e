"""The diagnosis of a run from end to end, and its numbers against independent ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping
from parts import MakeTrainer
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from small_recipe import SMALL
from torch.utils.data import DataLoader

from ippo.experiments.comparison.arms import FOLDER
from ippo.experiments.diagnose import main
from ippo.experiments.diagnosis.blame import Blame, of_episode, of_run
from ippo.experiments.diagnosis.contrasts import CONTRASTS, auc, auc_by_iteration, kept_share
from ippo.experiments.diagnosis.side_by_side import SHARES, mean_auc, positive_share, rank_correlation
from ippo.experiments.diagnosis.stopping import no_longer_falls, stop, too_few_survive
from ippo.recipes.math import main as recipe


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests of the warm start must not find one that was made here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPPO_CACHE", str(tmp_path_factory.mktemp("diagnose-cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diagnosed") / "run"
    words = ["--filter.token_scores=true", "--filter.keep=TopFraction", f"--trainer.default_root_dir={path}"]
    assert recipe(["--filter=InfluenceFilterCallback", *words, *SMALL]) == 0
    return path


def test_reads_a_run_and_writes_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), str(run), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "diagnosis.md").read_text()
    assert "2 runs" in page
    rows = {line.split(" | ")[0]: line for line in page.splitlines()}
    survive = "| fewer than 0.1 survive"  # half of the episodes do
    assert rows[survive].startswith(f"{survive} | 0 of 2 |")
    assert " | 0 of 2 | " in rows["| gold loss, patience 5"]
    assert rows["| wrong"].count("[") >= 1
    assert (tmp_path / "auc.png").stat().st_size > 10_000
    assert "Report:" in capsys.readouterr().out


def test_what_cannot_be_read_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"run = '{tmp_path}': there are no episodes" in capsys.readouterr().err
    plain = tmp_path / "plain"
    assert recipe(["--filter=none", f"--trainer.default_root_dir={plain}", *SMALL]) == 0
    assert main([str(plain), "--out", str(tmp_path / "out")]) == 2
    assert "none of its episodes has a score" in capsys.readouterr().err
    copy = shutil.copytree(run, tmp_path / "unfinished")
    (copy / "summary.json").unlink()
    assert main([str(copy), "--out", str(tmp_path / "out")]) == 0
    assert "none of the runs has ended" in (tmp_path / "out" / "diagnosis.md").read_text()


def test_sets_further_scores_of_the_same_episodes_side_by_side(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    arm = FOLDER / "scores.yaml"
    assert recipe([f"--config={arm}", f"--trainer.default_root_dir={path}", *SMALL]) == 0
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "diagnosis.md").read_text()
    _, others = page.split("## The same episodes, scored otherwise")
    auc, shares, ranks = (part.splitlines() for part in others.split("|\n\n")[:3])
    wanted = {"score", "all parameters", "projection 256", "gold 32", "adam", "return", "lookahead"}
    for rows in (auc, shares):
        assert wanted <= {row.split(" | ")[0].removeprefix("| ") for row in rows}
    second = next(row for row in ranks if row.startswith("| 2: ")).strip("| ").split(" | ")
    assert -1 <= float(second[1]) <= 1  # with the first; none with itself
    assert len(second) == 2
    assert "scored otherwise" not in _page_of(run, tmp_path / "plain")


def _page_of(run: Path, out: Path) -> str:
    assert main([str(run), "--out", str(out)]) == 0
    return (out / "diagnosis.md").read_text()


def test_side_by_side_by_hand_and_against_scipy() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 12))
    chain = np.array(["faithful", "wrong", "wrong_step"] * 4)
    iteration = np.repeat([0, 1], 6)
    episodes = {"iteration": iteration, "chain": chain, "rewarded": np.ones(12, bool), "score": one, "score_b": other}
    expected = [spearmanr(one[iteration == place], other[iteration == place])[0] for place in (0, 1)]
    assert rank_correlation(episodes, "score", "score_b") == pytest.approx(np.mean(expected), abs=1e-6)
    assert positive_share(episodes, "score_b", SHARES["rewarded: wrong"]) == np.mean(other[chain == "wrong"] > 0)
    assert np.isnan(positive_share(episodes, "score_b", SHARES["unrewarded: right"]))
    assert np.isnan(mean_auc(episodes, "score_b", "rewarded: right, wrong"))  # fewer than five of a class an iteration
    five = {name: np.concatenate([values[chain != "wrong_step"]] * 3) for name, values in episodes.items()}
    aucs = auc_by_iteration(five, "rewarded: right, wrong", "score_b").values()
    assert mean_auc(five, "score_b", "rewarded: right, wrong") == pytest.approx(np.mean(list(aucs)))
    assert aucs != auc_by_iteration(five, "rewarded: right, wrong").values()
    late = {**episodes, "score_b": np.where(iteration == 0, np.nan, other)}  # looked at the second iteration only
    assert rank_correlation(late, "score", "score_b") == pytest.approx(expected[1], abs=1e-6)
    assert positive_share(late, "score_b", SHARES["rewarded: wrong"]) == np.mean(
        other[(chain == "wrong") & (iteration == 1)] > 0
    )


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=20),
    st.lists(st.integers(-5, 5), min_size=1, max_size=20),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_auc_is_that_of_scikit_learn_at_any_scale(better: list[int], worse: list[int], scale: float) -> None:
    scores = [np.array(values, dtype=float) * scale for values in (better, worse)]
    truth = [1] * len(better) + [0] * len(worse)
    assert auc(*scores) == pytest.approx(roc_auc_score(truth, np.concatenate(scores)), abs=1e-6)


def columns(**values: Any) -> dict[str, Any]:
    """Six episodes of one iteration: three rewarded, of which one is right by a wrong step."""
    plain = {
        "iteration": np.zeros(6, dtype=int),
        "chain": np.array(["faithful", "wrong_step", "wrong", "faithful", "wrong", "wrong"]),
        "rewarded": np.array([True, True, True, False, False, False]),
        "score": np.array([0.3, -0.1, 0.1, -0.3, 0.2, -0.2]),
        "kept": np.array([True, False, True, False, True, False]),
    }
    return {**plain, **values}


def test_contrasts_name_the_classes_that_they_say() -> None:
    found = {name: auc_by_iteration(columns(), name, fewest=1) for name in CONTRASTS}
    assert found["rewarded: right, wrong"] == {0: 0.5}  # 0.3 and -0.1 against 0.1
    assert found["rewarded: faithful, unfaithful"] == {0: 1.0}
    assert found["right reward, flipped reward"] == {0: pytest.approx(6 / 8)}  # .3 -.1 .2 -.2 against .1 -.3
    assert found["all: faithful, wrong"] == {0: pytest.approx(3 / 6)}  # 0.3 -0.3 against 0.1 0.2 -0.2
    assert found["rewarded: faithful, shortcut"] == {}
    assert auc_by_iteration(columns(), "all: faithful, wrong") == {}  # too few of both


def test_shares_that_were_kept() -> None:
    wrong = CONTRASTS["all: faithful, wrong"][1]
    assert kept_share(columns(), wrong, rewarded=True) == (1.0, 1)
    assert kept_share(columns(), wrong, rewarded=False) == (0.5, 2)
    share, size = kept_share(columns(), CONTRASTS["rewarded: faithful, shortcut"][1], rewarded=True)
    assert (np.isnan(share), size) == (True, 0)


TOKENS = ["3", "+1", "=5", "\n", "4", "*2", "=8", "\n", "####", " 8", "<eos>"]
STEPS = ["3+1=4", "4*2=8"]


def blamed(scores: list[float]) -> Blame | None:
    return of_episode(TOKENS, scores, "".join(TOKENS[:-1]), STEPS)


def test_blame_counts_guilty_tokens_among_the_lowest() -> None:
    found = blamed([0, 0, -9, 0.1, -1, -2, -3, 0.2, -99, -99, -99])  # what follows the chain does not count
    assert found == Blame(1, tokens=8, guilty=4, hits=1, chance_hits=2.0, found_lines=1, chance_lines=0.5)
    assert (found + found).token_lift == pytest.approx(0.5)
    assert (found + found).line_lift == pytest.approx(2.0)
    other = blamed([0, 0, 0, 0, -1, -2, -3, 0, 0, 0, 0])
    assert other is not None
    assert (other.hits, other.found_lines) == (1, 0)  # of four ties at 0 the first


def test_the_first_line_with_a_fifth_of_the_lowest_score_is_blamed() -> None:
    def found(first: float, second: float) -> int:
        blame = blamed([1.0, 1.0, first, 1.0, 1.0, 1.0, second, 1.0, -99, -99, -99])
        assert blame is not None
        return blame.found_lines

    assert TOKENS[:4] == ["3", "+1", "=5", "\n"]  # the bad line comes first
    assert [found(first, -1.0) for first in (-1.0, -0.2, -0.19, 0.5)] == [1, 1, 0, 0]
    assert [found(0.1, 0.2), found(0.2, 0.1)] == [1, 0]  # where no score is below zero, the lowest


def test_the_step_that_is_wrong_is_the_first_bad_line() -> None:
    steps, text = ["3+1=4", "4*2=8", "8-1=7"], "3+1=4\n4*2=9\n9-1=8\n#### 8"
    tokens = ["3+1=4", "\n", "4*2=9", "\n", "9-1=8", "\n", "#### 8"]
    first, second = (
        of_episode(tokens, scores, text, steps) for scores in ([0, 0, -2, 0, -1, 0, 0], [0, 0, -0.1, 0, -2, 0, 0])
    )
    assert first is not None
    assert second is not None
    assert (first.guilty, first.hits, first.found_lines) == (
        4,
        second.hits,
        1,
    )  # the last line is guilty, too, but it goes on from the 9
    assert second.found_lines == 0
    assert first.chance_lines == second.chance_lines == pytest.approx(1 / 3)


def test_blame_is_not_laid_where_it_cannot_be() -> None:
    text = "".join(TOKENS[:-1])
    assert of_episode(TOKENS, [0.0] * 11, text, ["3+1=5", "4*2=8"]) is None  # no line is guilty
    assert of_episode(TOKENS, [0.0] * 11, text, ["1+1=2"]) is None  # all are
    assert of_episode(TOKENS, [0.0] * 11, "another text", STEPS) is None
    assert of_episode(["8", "<eos>"], [0.0, 0.0], "8", STEPS) is None  # no chain


def test_only_rewarded_chains_of_the_kind_are_blamed() -> None:
    text = "".join(TOKENS[:-1])
    rows = {"prompt": ["a", "a", "a", "?"], "response": [text] * 4, "tokens": [TOKENS] * 4}
    rows["token_scores"] = [[0.0] * 11] * 4
    kinds, rewarded = np.array(["wrong_step", "wrong_step", "wrong", "wrong_step"]), np.array([True, False, True, True])
    assert of_run({**rows, "chain": kinds, "rewarded": rewarded}, {"a": STEPS}, "wrong_step").episodes == 1


def test_a_stop_is_that_of_the_filter() -> None:
    kept, em = [0.5, 0.1, 0.5, 0.1, 0.1, 0.1], [0.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    seconds = {"rollout": 1.0, "update": 1.0}
    run = [{"kept_fraction": share, "em": one, "seconds": seconds} for share, one in zip(kept, em, strict=True)]
    assert too_few_survive(run, minimum=0.2) == 4
    assert too_few_survive(run, minimum=0.05) is None
    found = stop(run, 4)
    assert (found.iteration, found.after_peak) == (4, 1)
    assert (found.lost, found.saved) == (pytest.approx(0.75 - 0.7), pytest.approx(1 / 6))


class Scripted(L.LightningModule):
    """Logs one given loss an epoch."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.losses[self.current_epoch])

    def configure_optimizers(self) -> None:
        return None


@pytest.mark.parametrize("patience", [1, 3, 10, 40])
def test_a_stop_is_that_of_lightnings_early_stopping(patience: int, make_trainer: MakeTrainer) -> None:
    losses = np.random.default_rng(0).random(50).tolist()
    callback = EarlyStopping("loss", patience=patience, check_on_train_epoch_end=True)
    trainer = make_trainer(callback, max_epochs=50)
    trainer.fit(Scripted(losses), DataLoader([0]))
    stopped = trainer.current_epoch - 1 if trainer.current_epoch < 50 else None
    assert no_longer_falls([{"gold_loss": loss} for loss in losses], patience) == stopped


def test_a_run_without_a_gold_loss_is_not_stopped_by_it() -> None:
    assert no_longer_falls([{"gold_loss": None}], 1) is None  # a run without a filter
