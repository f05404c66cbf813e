"""``python -m ippo.recipes.math``: warm start, influence-filtered PPO, and a table of what it brought."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from ippo.callbacks import EpisodeLogger, IterationCheckpoint, ReproducibleState, RolloutProgress, RunRecord
from ippo.data.chat import in_chat
from ippo.data.demonstrations import require_fit
from ippo.data.prompts import PromptDataModule
from ippo.errors import UsageError
from ippo.models import build_models
from ippo.models.layouts import prepare
from ippo.models.loading import load_policy
from ippo.module import PPOModule
from ippo.recipes.filters import build_filter
from ippo.recipes.memory import longest_prompt, say_memory
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.report import print_report, scores, summarise
from ippo.recipes.run_directory import RunDirectory
from ippo.recipes.screen import quiet
from ippo.recipes.tasks import load_task
from ippo.warm_start import warm_start

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit code: 0, or 2 for a wrong argument."""
    parser = build_parser("python -m ippo.recipes.math", __doc__ or "", preset="embedded.yaml")
    try:
        config, options = parse(parser, arguments)
        run = RunDirectory(options.trainer.default_root_dir, "math", options.resume)
        if options.resume:  # what the run was started with holds, unless it is given anew
            parser.default_config_files = [*parser.default_config_files, str(run.config)]
            config, options = parse(parser, arguments)
        parser.save(config, run.config, overwrite=True)
        train(options, run)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(options: Namespace, run: RunDirectory) -> None:
    """The whole run, from the task to the table."""
    quiet()
    seed = options.seed_everything
    L.seed_everything(seed, verbose=False)
    task = load_task(options.task, options.embedded)
    texts = [row["prompt"] + row["solution"] for row in task.train]
    policy, tokenizer = load_policy(options.policy, texts, options.tiny, options.trust_remote_code, options.tokenizer)
    policy = prepare(policy, options.layout, options.models)
    task = in_chat(task, tokenizer) if options.chat else task
    require_fit(tokenizer, task, policy.config.max_position_embeddings, options.sampling.max_new_tokens)
    size = sum(parameter.numel() for parameter in policy.parameters())
    console.print(
        f"Task {task.name}: {len(task.train)} training problems, {len(task.gold)} gold solutions. {task.notice}"
    )
    console.print(f"Policy {options.policy}: {size:,} parameters. Run directory: {run.path}")
    say_memory(options, policy, longest_prompt(tokenizer, task.train), console)

    start = time.perf_counter()
    logger = TensorBoardLogger(run.path, name="", version="sft")
    progress = options.trainer.enable_progress_bar is not False
    accelerator = options.trainer.accelerator
    lora = options.lora if options.layout == "lora" else None
    policy, cached = warm_start(
        policy, tokenizer, task.train, options.sft, seed, accelerator, logger, progress, lora=lora
    )
    seconds = time.perf_counter() - start
    console.print("Warm start: reused." if cached else f"Warm start: {options.sft.steps} steps in {seconds:.0f} s.")

    L.seed_everything(seed, verbose=False)  # from here on a reused warm start and a new one draw the same numbers
    models = build_models(options.layout, policy, options.models, options.lora)
    module = PPOModule(models, tokenizer, task.reward, task.check, options.ppo, options.sampling, options.evaluation)
    data = PromptDataModule(task, options.data, seed)
    record = RunRecord()
    influence_filter = build_filter(options.filter)
    trainer = build_trainer(options.trainer, run, [influence_filter, EpisodeLogger(), record])
    before = trainer.test(module, data, verbose=False)[0]
    trainer.fit(module, data, ckpt_path=run.newest_checkpoint() if options.resume else None)
    after = trainer.test(module, data, verbose=False)[0]

    speakers = (module, *trainer.callbacks)  # type: ignore[attr-defined]
    reasons = [getattr(speaker, "stopping_reason_message", None) for speaker in speakers]
    stopped_by = next(filter(None, reasons), "max_epochs")
    sft, trained = (scores(tested, options.evaluation.samples, len(task.test)) for tested in (before, after))
    summary = summarise(sft, trained, record.iterations, stopped_by, seed)
    run.write_summary(summary)
    print_report(summary, seconds, console)
    console.print(f"Curves: tensorboard --logdir {run.path}")


def build_trainer(options: Namespace, run: RunDirectory, callbacks: Sequence[L.Callback | None]) -> L.Trainer:
    """Lightning's trainer with the user's options; what they leave open goes into the run directory."""
    arguments = options.as_dict()
    arguments["default_root_dir"] = str(run.path)
    if arguments["logger"] is None:
        arguments["logger"] = TensorBoardLogger(run.path, name="", version="ppo")
    own = [*callbacks, ReproducibleState()]
    if options.enable_progress_bar is not False:
        own.append(RolloutProgress())
    if options.enable_checkpointing is not False:
        name = "iteration-{epoch:05d}"
        own.append(
            IterationCheckpoint(run.checkpoints, name, save_on_train_epoch_end=True, auto_insert_metric_name=False)
        )
    arguments["callbacks"] = [*(callback for callback in own if callback), *(options.callbacks or [])]
    return L.Trainer(**arguments)


if __name__ == "__main__":
    sys.exit(main())
