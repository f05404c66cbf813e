"""Seconds of scoring a model in parts (FSDP2) against the same scoring of a whole one on each rank (DDP).

    python benchmarks/sharded.py                                        # as many options as there are sizes: --help
    python benchmarks/sharded.py --micro_batch 4 --tokens 128           # less work for the same traffic

Processes on CPUs, joined by gloo. Both ways run in turn, A B A B, in the same processes and on the same episodes:
ratios of medians are what counts. On a busy machine seconds are mostly waits of one process for another that has no
core; the ratio of the processor's time leaves them out. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from ippo.influence import ExactScorer, ValidationDirection, causal_lm_losses

VOCABULARY = 2048


def build(arguments: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def in_parts(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Until the last rank is done, and of this rank's processor."""
    dist.barrier()
    began, used = time.perf_counter(), time.process_time()
    run()
    used = time.process_time() - used
    dist.barrier()
    return time.perf_counter() - began, used


def measure(rank: int, port: int, arguments: argparse.Namespace) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=arguments.ranks)
    models: dict[str, nn.Module] = {"ddp": build(arguments), "fsdp2": in_parts(build(arguments))}
    torch.manual_seed(1 + rank)
    shape = (arguments.micro_batch, arguments.tokens)
    batches = [{"input_ids": torch.randint(VOCABULARY, shape)} for _ in range(arguments.micro_batches)]
    validation = ValidationDirection(batches[:2], causal_lm_losses)
    directions = {name: validation.compute(model) for name, model in models.items()}

    scored: dict[str, Any] = {}

    def score(name: str, scorer: ExactScorer) -> None:
        scored[name] = scorer.score(models[name], causal_lm_losses, batches, directions[name])

    def jobs(name: str) -> dict[str, Callable[[], Any]]:
        everything, last = ExactScorer(), ExactScorer(parameters=1)
        return {
            "the direction": lambda: validation.compute(models[name]),
            "scores of all parameters": lambda: score(name, everything),
            "scores of the last block": lambda: score(name, last),
        }

    work = {name: jobs(name) for name in models}
    for what in work["ddp"]:
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
        for _ in range(1 + arguments.repeats):  # the first tries formulas and probes rows
            for name in models:
                taken[name].append(seconds(work[name][what]))
        (ddp, ddp_used), (fsdp2, fsdp2_used) = (
            map(statistics.median, zip(*each[1:], strict=True)) for each in taken.values()
        )
        ratios = sorted(b / a for (a, _), (b, _) in zip(taken["ddp"][1:], taken["fsdp2"][1:], strict=True))
        if rank == 0:
            difference = ""
            if scored:
                apart = (scored["fsdp2"] - scored["ddp"]).norm() / scored["ddp"].norm()
                difference = f"{float(apart):.0e}"
            print(
                f"| {what} | {ddp:.3f} s | {fsdp2:.3f} s | {fsdp2 / ddp:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
                f"| {fsdp2_used / ddp_used:.2f} | {difference} |",
                flush=True,
            )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model, data = {"hidden": 256, "layers": 4}, {"micro_batches": 3, "micro_batch": 8, "tokens": 256}
    for option, default in {"ranks": 2, "repeats": 5, **model, **data}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    size = sum(parameter.numel() for parameter in build(arguments).parameters())
    print(
        f"{arguments.ranks} processes of one thread, {size / 1e6:.1f} M parameters, "
        f"{arguments.micro_batches} micro-batches of {arguments.micro_batch} rows of {arguments.tokens} tokens a rank; "
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    columns = ("", "ddp", "fsdp2", "ratio (least to most)", "of processor time", "scores differ by")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    torch.multiprocessing.spawn(measure, (port, arguments), nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
