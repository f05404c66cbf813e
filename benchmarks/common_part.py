"""What a filter does where all rows share a part of their gradient, so that the sign of a score says little.

    python benchmarks/common_part.py --seeds 0 1 2 3 4

Two kinds of training: a segmentation, whose wrong rows have the mask of another image, and a contrastive one on
triplets, whose wrong rows have the same digit and the other one exchanged. Right rows alone or 30 % wrong ones, without
a filter and with four: by the sign and by the gap, both along the batch's own mean gradient, by the gap and compared
with gold rows along the gradient of 64 of these. Writes ``docs/results/common_part.md``. A minute of a processor.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize, softplus
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import binary_auroc
from training import make_trainer, silence

from ippo.callbacks import InfluenceFilterCallback
from ippo.experiments.comparison.statistics import interval, signed
from ippo.influence import AboveGap, LikeGold, PositiveScore, ValidationDirection

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "common_part.md"
WRONG, GOLD, ROWS, TEST, BATCH = (0.0, 0.3), 64, 640, 400, 32
ARMS = {
    "none": "without a filter",
    "sign": "`PositiveScore()`",
    "gap": "`AboveGap()`",
    "gold gap": "`AboveGap()` along gold rows",
    "gold": "`LikeGold()`",
}


class Kind(NamedTuple):
    """A training that is ready.

    Args:
        module: it trains.
        rows, gold: columns of a row each; of the training's the last one is whether the row is wrong.
        losses: of a batch, one a row.
        judged: on rows of its own that are all right; the higher the better.
        epochs: of the training.
    """

    module: L.LightningModule
    rows: TensorDataset
    gold: TensorDataset
    losses: Callable[[Any, Any], Tensor]
    judged: Callable[[], float]
    epochs: int


class Trained(L.LightningModule):
    """Any network with the mean of a loss a row."""

    def __init__(self, net: nn.Module, losses: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.net, self.losses = net, losses

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.losses(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def segmentation(seed: int, wrong: float) -> Kind:
    """Noisy discs on 16 x 16 pixels; judged by the mean intersection over union."""
    draw = torch.Generator().manual_seed(seed)

    def discs(rows: int) -> tuple[Tensor, Tensor]:
        centre, radius = 4 + 8 * torch.rand(rows, 2, 1, 1, generator=draw), torch.rand(rows, 1, 1, generator=draw)
        places = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"))
        masks = ((places - centre).square().sum(1) < (2 + 2 * radius).square()).float()
        return masks + torch.randn(masks.shape, generator=draw), masks

    def mask_losses(module: Any, batch: list[Tensor]) -> Tensor:
        told = module.net(batch[0][:, None])[:, 0]
        return binary_cross_entropy_with_logits(told, batch[1], reduction="none").mean((1, 2))

    def overlap() -> float:
        with torch.no_grad():
            told = module.net(test[0][:, None])[:, 0] > 0
        both, either = (told & (test[1] > 0)).sum((1, 2)), (told | (test[1] > 0)).sum((1, 2))
        return float((both / either).mean())

    images, masks = discs(ROWS)
    gold, test = TensorDataset(*discs(GOLD)), discs(TEST)
    bad = torch.rand(ROWS, generator=draw) < wrong
    masks = torch.where(bad[:, None, None], masks.roll(1, 0), masks)
    parts = [nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 12, 5, padding=2), nn.ReLU()]
    module = Trained(nn.Sequential(*parts, nn.Conv2d(12, 1, 5, padding=2)), mask_losses)
    return Kind(module, TensorDataset(images, masks, bad), gold, mask_losses, overlap, 8)


def contrastive(seed: int, wrong: float) -> Kind:
    """Triplets of digits; judged by how often the nearest mean of the gold rows' digits is the right one's."""
    draw = torch.Generator().manual_seed(seed)
    pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=draw)
    pixels, labels = pixels[order].float() / 16, labels[order]
    known, told = slice(0, len(labels) - TEST), slice(len(labels) - TEST, None)

    def triplets(rows: int) -> list[Tensor]:
        first = torch.randint(len(labels) - TEST, (rows,), generator=draw)
        same = labels[known] == labels[first][:, None]
        partner, other = (torch.multinomial(mask.float(), 1, generator=draw)[:, 0] for mask in (same, ~same))
        return [pixels[places] for places in (first, partner, other)]

    def triplet_losses(module: Any, batch: list[Tensor]) -> Tensor:
        anchor, partner, other = normalize(module.net(torch.stack(batch[:3], 1)), dim=-1).unbind(1)
        return softplus(((anchor * other).sum(1) - (anchor * partner).sum(1)) / 0.2)

    def nearest() -> float:
        with torch.no_grad():
            codes = normalize(module.net(pixels), dim=-1)
        means = torch.stack([codes[known][labels[known] == digit].mean(0) for digit in range(10)])
        return float(((codes[told] @ normalize(means, dim=-1).T).argmax(1) == labels[told]).float().mean())

    (first, partner, other), gold = triplets(ROWS), TensorDataset(*triplets(GOLD))
    bad = torch.rand(ROWS, generator=draw) < wrong
    partner, other = torch.where(bad[:, None], other, partner), torch.where(bad[:, None], partner, other)
    module = Trained(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)), triplet_losses)
    return Kind(module, TensorDataset(first, partner, other, bad), gold, triplet_losses, nearest, 8)


KINDS: dict[str, Callable[[int, float], Kind]] = {"segmentation": segmentation, "contrastive": contrastive}
MEASURES = {"segmentation": "intersection over union", "contrastive": "accuracy"}


def make_filter(kind: Kind, arm: str) -> InfluenceFilterCallback:
    gold = ValidationDirection(DataLoader(kind.gold, batch_size=GOLD), kind.losses) if "gold" in arm else None
    keep = {"sign": PositiveScore(), "gap": AboveGap(), "gold gap": AboveGap(), "gold": LikeGold()}[arm]
    return InfluenceFilterCallback(unit="batch", losses=kind.losses, direction=gold, keep=keep, min_survival=0.0)


class Watch(L.Callback):
    """What was dropped of right and wrong rows, and how well the scores part them."""

    def __init__(self, influence_filter: InfluenceFilterCallback) -> None:
        self.filter, self.wrong = influence_filter, torch.zeros(0, dtype=torch.bool)
        self.dropped: list[Tensor] = []
        self.bad: list[Tensor] = []
        self.areas: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: list[Tensor], batch_idx: int) -> None:
        selection, bad = self.filter.applied, self.bad[-1]
        assert selection is not None
        self.dropped.append(~selection.kept)
        if bad.any() and not bad.all():
            ranks = selection.scores.argsort().argsort().float() / len(bad)
            self.areas.append(float(binary_auroc(ranks, (~bad).long())))


class Before(L.Callback):
    """Notes which rows of a batch are wrong, while all of them are there."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: list[Tensor], batch_idx: int) -> None:
        self.watch.bad.append(batch[-1].clone())


Cell = tuple[str, float, str, int]  # kind, share of wrong rows, arm, seed


def run(cell: Cell) -> dict[str, float]:
    name, wrong, arm, seed = cell
    silence()
    L.seed_everything(seed, verbose=False)
    kind = KINDS[name](seed, wrong)
    callbacks: list[L.Callback] = []
    if arm != "none":
        watch = Watch(influence_filter := make_filter(kind, arm))
        callbacks = [Before(watch), influence_filter, watch]
    rows = DataLoader(kind.rows, BATCH, shuffle=True)
    make_trainer(callbacks, kind.epochs, Path(tempfile.mkdtemp())).fit(kind.module, rows)
    found = {"judged": kind.judged()}
    if callbacks:
        dropped, bad = torch.cat(watch.dropped), torch.cat(watch.bad)
        found["right"] = float(dropped[~bad].float().mean())
        found |= {"wrong": float(dropped[bad].float().mean()), "area": statistics.mean(watch.areas)} if wrong else {}
    print(*cell, {key: round(value, 3) for key, value in found.items()}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--report", type=Path, default=PAGE)
    options = parser.parse_args()
    cells = [(name, wrong, arm, seed) for name in KINDS for wrong in WRONG for arm in ARMS for seed in options.seeds]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = dict(zip(cells, pool.map(run, cells), strict=True))
    options.report.write_text(report(found, options.seeds))
    print(options.report.read_text())


def report(found: dict[Cell, dict[str, float]], seeds: list[int]) -> str:
    """The page under docs/results."""

    def mean(name: str, wrong: float, arm: str, key: str) -> str:
        values = [found[name, wrong, arm, seed].get(key) for seed in seeds]
        return "" if None in values else f"{statistics.mean(values):.3f}"  # type: ignore[type-var]

    lines = [
        "# Where all rows push one way",
        "",
        f"`python benchmarks/common_part.py --seeds {' '.join(map(str, seeds))}` · {os.cpu_count()} cores, "
        f"{platform.machine()}, one thread a training · python {platform.python_version()} torch {torch.__version__} "
        f"lightning {L.__version__}.",
        "",
        "In a segmentation every row first says how much of an image is foreground at all, in contrastive learning",
        "that codes must spread. Scores have this in common, right rows' and wrong ones', and it hides their sign.",
        f"Means over {len(seeds)} seeds of data, weights and order; differences from the same training without a",
        "filter, in pairs, with bootstrap 95 % intervals; *dropped* over the whole training; *area* under the ROC",
        "curve of right against wrong rows within a batch. Without gold rows, the direction is the batch's own mean",
        "gradient; `LikeGold()` takes 64 gold rows.",
    ]
    for name in KINDS:
        for wrong in WRONG:
            base = mean(name, wrong, "none", "judged")
            lines += [
                "",
                f"## {name.capitalize()}, {f'{wrong:.0%} of the rows wrong' if wrong else 'nothing is wrong'}",
                "",
                f"Without a filter, {MEASURES[name]} {base}.",
                "",
                "| | difference | right rows dropped | wrong rows dropped | area |",
                "|---|---|---|---|---|",
            ]
            for arm, title in list(ARMS.items())[1:]:
                pairs = [
                    found[name, wrong, arm, seed]["judged"] - found[name, wrong, "none", seed]["judged"]
                    for seed in seeds
                ]
                cells = " | ".join(mean(name, wrong, arm, key) for key in ("right", "wrong", "area"))
                lines.append(f"| {title} | {signed(*interval(pairs))} | {cells} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
