"""Train the embedded reader: `python -m focus_rag.embedded.train --out DIR --minutes 90`.

The curriculum starts with copying, goes on to look-ups over few short passages, and then widens one thing at a time
(`curriculum`). Stages end when they are mastered or their steps are used up; one without either goes on until the
budget is spent, the learning rate falling to zero over the last part of it. On one machine's CPU a run with `--steps`
and one seed gives the same weights each time.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from focus_rag.embedded import names, world
from focus_rag.embedded.arguments import above_zero, device, folder, whole_number
from focus_rag.embedded.batches import BatchStream, Stage
from focus_rag.embedded.optimizers import STATE, Optimizers, load_state, save_state, state_said
from focus_rag.embedded.reader_model import ModelShape, load_weights, new_model, save
from focus_rag.embedded.real_text import RealText, load_real_text
from focus_rag.embedded.rows import Row
from focus_rag.embedded.tokenizer import load_tokenizer, train_tokenizer
from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


class TrainSettings(BaseModel):
    """How to train.

    Attributes:
        shape: Size of the model.
        seed: Of the weights and the data.
        matrix_lr: Learning rate of Muon, for the matrices inside the layers.
        lr: Learning rate of AdamW, for embeddings and norms.
        weight_decay: Of the matrices.
        warmup: Steps until the full learning rate.
        peak: Share of the learning rates that the run begins with; below 1 for one that goes on where another's decay
            stood.
        decay_from: Share of the budget after which the learning rate falls.
        bf16: Autocast to bfloat16.
        tokenizer_texts: World texts for the tokenizer, as many paragraphs of real text at most.
        snapshot_minutes: Minutes between checkpoints.
    """

    model_config = ConfigDict(frozen=True)

    shape: ModelShape = ModelShape()
    seed: int = 0
    matrix_lr: float = 0.01
    lr: float = 0.002
    weight_decay: float = 0.01
    warmup: int = 50
    peak: float = Field(default=1.0, gt=0.0, le=1.0)
    decay_from: float = Field(default=0.6, ge=0.0, lt=1.0)
    bf16: bool = True
    tokenizer_texts: int = 30_000
    snapshot_minutes: float = 2.0


def curriculum() -> tuple[Stage, ...]:
    """The stages of the training, in order."""
    return (
        Stage("copying few tokens", copying=1.0, copy_tokens=256, idle=0.0, until=0.9, steps=1000, lr=2.0),
        Stage("copying all tokens", copying=1.0, idle=0.0, until=0.85, steps=400, lr=2.0),
        Stage("pairs", pairs=0.95, copying=0.05, idle=0.0, until=0.85, steps=400, lr=2.0),
        Stage("plain, few passages", rich=(0.0, 0.0), missing=0.05, unstated=0.05, copying=0.05, follow_ups=(4, 8),
            until=0.9, steps=2000),
        Stage("some sentences", rich=(0.4, 0.4), missing=0.05, unstated=0.05, copying=0.02, follow_ups=(4, 8),
            until=0.9, steps=1500),
        Stage("more sentences", rich=(0.0, 0.9), missing=0.05, unstated=0.05, passages=(1, 5), copying=0.01,
            sentences=(1, 3), follow_ups=(4, 8), until=0.9, steps=3000),
        Stage("all sentences", rich=(0.4, 1.0), missing=0.06, unstated=0.08, passages=(1, 8), hard=(0, 6),
            sentences=(1, 4), follow_ups=(4, 8), long=0.1, long_passages=(10, 32), long_hard=(0, 8),
            long_follow_ups=(8, 16), copying=0.01, cloze=0.01, tokens=4096, lr=0.6),
    )  # fmt: skip


def new_tokenizer(settings: TrainSettings, real: RealText | None) -> PreTrainedTokenizerFast:
    """A tokenizer learnt on training text of the world and, if there is any, on real text."""
    rng = random.Random(settings.seed)
    telling = world.Telling(sentences=(2, 4))

    def texts() -> list[str]:
        made = []
        for _ in range(settings.tokenizer_texts):
            entity = world.new_entity(rng, "train")
            keys = world.some_keys(rng, entity, telling)
            asked = world.question(rng, "train", entity, keys[0], telling)
            made.append(f"{asked}\n{world.passage(rng, 'train', entity, keys, telling).content}")
        return made

    # So often that every proper word is merged into one token (see `names`).
    found = texts() + [" ".join(names.PROPER_WORDS)] * 1500
    if real is not None:
        found += islice(real.paragraphs, settings.tokenizer_texts // 3)
    return train_tokenizer(found, settings.shape.vocab_size)


def batch_tensors(rows: list[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `(batch, sequence)` and loss weights of the same shape, padded on the right.

    With causal attention nothing looks at padding on the right, so no mask is needed.
    """
    import torch

    length = max(len(row.tokens) for row in rows)
    ids = torch.tensor([row.tokens + [pad] * (length - len(row.tokens)) for row in rows])
    weights = torch.tensor([row.weights + [0.0] * (length - len(row.weights)) for row in rows])
    return ids, weights


def forward(
    model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor, bf16: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy, and which tokens of `ids` were predicted right `(batch, sequence)`; logits only where
    there is a weight.
    """
    import torch

    where = weights[:, 1:] > 0
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        hidden = model.model(ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][where]).float()
    targets = ids[:, 1:][where]
    per_token = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    scale = weights[:, 1:][where]
    right = torch.ones_like(weights, dtype=torch.bool)
    right[:, 1:][where] = logits.argmax(-1) == targets
    return (per_token * scale).sum() / scale.sum().clamp_min(1e-6), right


def first_answers_exact(rows: list[Row], right: torch.Tensor) -> list[bool]:
    """Whether each row's first answer, end token included, was predicted right throughout."""
    return [
        bool(right[i, row.first_answer[0] : row.first_answer[1]].all())
        for i, row in enumerate(rows)
        if row.first_answer is not None
    ]


class Trainer:
    """One training run with its checkpoints in `out`.

    Args:
        out: Folder of the run: `state.safetensors`, `tokenizer.json`, `metrics.jsonl`, `model/`.
        settings: How to train.
        stages: The curriculum.
        real: Real text to mix in, if any.
        device: Where to train.
        resume: Go on from the state in `out`.
        start: Folder of a saved model whose weights and tokenizer the run starts from, with new optimizer states.

    Raises:
        InvalidInputError: `resume` without a checkpoint in `out`, with `start`, or with another tokenizer than that of
            the checkpoint; a checkpoint in `out` that would be overwritten; or `start` of another shape.
    """

    def __init__(
        self,
        out: Path,
        settings: TrainSettings,
        stages: tuple[Stage, ...],
        real: RealText | None = None,
        device: str = "cpu",
        resume: bool = False,
        start: Path | None = None,
    ) -> None:
        self.out, self.settings, self.stages, self.device = out, settings, stages, device
        self._check_place(resume, start)
        if resume:
            self.tokenizer = load_tokenizer(out)
        else:
            self.tokenizer = load_tokenizer(start) if start else new_tokenizer(settings, real)
        self.model = new_model(settings.shape, self.tokenizer, settings.seed).to(device)
        if start is not None:
            load_weights(self.model, start)
        self.optimizers = Optimizers(self.model, settings)
        self.step = self.stage = self.stage_step = 0
        if resume:
            self._require_its_tokens()
            said = load_state(out / STATE, self.model, self.optimizers, device)
            self.step, self.stage_step = int(said["step"]), int(said["stage_step"])
            self.stage = min(int(said["stage"]), len(stages) - 1)
        self._first_step = self.step
        self.stream = BatchStream(
            self.tokenizer, real, seed=settings.seed + 7919 * self.step, longest=settings.shape.max_position_embeddings
        )
        self._running = 0.0
        out.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))

    def _check_place(self, resume: bool, start: Path | None) -> None:
        if resume and start is not None:
            raise InvalidInputError(
                "--resume goes on from the checkpoint in --out and --start begins from another model: give one of them."
            )
        if resume != (self.out / STATE).exists():
            raise InvalidInputError(
                f"There is nothing to resume in {self.out}: start without --resume."
                if resume
                else f"{self.out} holds a training already: go on with --resume, or give another --out."
            )

    def _tokens(self) -> str:
        from focus_rag.fingerprint import vocabulary_digest

        return vocabulary_digest(self.tokenizer)

    def _require_its_tokens(self) -> None:
        """A vocabulary of the same size with other words in it would fit the weights and scramble them."""
        tokens = self._tokens()
        if state_said(self.out / STATE).get("tokens", tokens) != tokens:
            raise InvalidInputError(
                f"{self.out / 'tokenizer.json'} is not what the checkpoint beside it was trained with: take the one in "
                f"{self.out / 'model'}, or start anew."
            )

    def checkpoint(self) -> None:
        """Write everything needed to go on, and the model as it would be shipped."""
        said = {"step": self.step, "stage": self.stage, "stage_step": self.stage_step, "tokens": self._tokens()}
        save_state(self.out / STATE, self.model, self.optimizers, {name: str(value) for name, value in said.items()})
        save(self.model, self.tokenizer, self.out / "model")

    def train_step(self, factor: float) -> dict[str, Any]:
        """One optimizer step at `factor` times the learning rate; returns its metrics."""
        import torch

        stage = self.stages[self.stage]
        rows = self.stream.next(stage)
        ids, weights = batch_tensors(rows, self.tokenizer.pad_token_id)
        ids, weights = ids.to(self.device), weights.to(self.device)
        loss, right = forward(self.model, ids, weights, self.settings.bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizers.step(factor)
        exact = first_answers_exact([row if row.source == "question" else Row([], []) for row in rows], right)
        if stage.copying + stage.pairs < 1.0:
            measured = sum(exact) / len(exact) if exact else None
        else:
            measured = float(right[weights == weights.max()].float().mean())
        if measured is not None:
            self._running += 0.1 * (measured - self._running)
        self.step += 1
        self.stage_step += 1
        metrics = {
            "step": self.step, "stage": stage.name, "loss": round(float(loss.detach()), 4),
            "running": round(self._running, 4),
            "exact": measured, "tokens": int(ids.numel()), "length": int(ids.shape[1]),
        }  # fmt: skip
        mastered = self._running >= stage.until or (stage.steps and self.stage_step >= stage.steps)
        if mastered and self.stage + 1 < len(self.stages):
            self.stage, self.stage_step, self._running = self.stage + 1, 0, 0.0
        return metrics

    def run(self, *, steps: int | None = None, minutes: float | None = None) -> None:
        """Train for `steps` or for `minutes`, whichever is given (both: what ends first)."""
        began = saved = time.monotonic()
        warmup = self.settings.warmup
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write(
                json.dumps({"settings": self.settings.model_dump(), "stages": [asdict(stage) for stage in self.stages]})
                + "\n"
            )
            while True:
                done = (self.step - self._first_step) / steps if steps else 0.0
                if minutes:
                    done = max(done, (time.monotonic() - began) / (60 * minutes))
                if done >= 1.0:
                    break
                decay_from = self.settings.decay_from
                factor = min(1.0, (self.step - self._first_step + 1) / warmup, (1.0 - done) / (1.0 - decay_from))
                metrics = self.train_step(factor * self.settings.peak * self.stages[self.stage].lr)
                metrics["seconds"] = round(time.monotonic() - began, 2)
                log.write(json.dumps(metrics) + "\n")
                log.flush()
                if time.monotonic() - saved > 60 * self.settings.snapshot_minutes:
                    self.checkpoint()
                    saved = time.monotonic()
        self.checkpoint()


def main(arguments: list[str] | None = None) -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(
        prog="python -m focus_rag.embedded.train",
        description="Train the embedded reader.",
        epilog="Example: python -m focus_rag.embedded.train --out runs/reader --minutes 90 --threads 2",
    )
    parser.add_argument("--out", type=folder, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=above_zero, help="budget in minutes")
    parser.add_argument("--steps", type=whole_number(1), help="budget in steps")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--stage", type=int, help="go on in this stage of the curriculum (from 0)")
    parser.add_argument("--start", type=Path, help="folder of a saved model to start from, with new optimizer states")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--real-text", type=Path, help="file in SQuAD format whose paragraphs are mixed in")
    parser.add_argument("--seed", type=whole_number(0), default=TrainSettings().seed)
    parser.add_argument(
        "--peak", type=float, default=TrainSettings().peak, help="share of the learning rates to begin with"
    )
    parser.add_argument(
        "--decay-from", type=float, default=TrainSettings().decay_from, help="share of the budget after which they fall"
    )
    parser.add_argument("--threads", type=whole_number(1), help="threads of torch on the CPU")
    options = parser.parse_args(arguments)
    if options.minutes is None and options.steps is None:
        parser.error("give a budget: --minutes or --steps")
    if options.stage is not None and not 0 <= options.stage < len(curriculum()):
        parser.error(f"--stage must lie between 0 and {len(curriculum()) - 1}")

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        settings = TrainSettings(seed=options.seed, peak=options.peak, decay_from=options.decay_from)
    except ValidationError as error:
        parser.error(f"--peak and --decay-from are shares: {error.errors()[0]['msg']}")
    try:
        real = load_real_text(options.real_text) if options.real_text else None
        trainer = Trainer(options.out, settings, curriculum(), real, options.device, options.resume, options.start)
    except InvalidInputError as error:
        parser.error(str(error))
    if options.stage is not None:
        trainer.stage, trainer.stage_step = options.stage, 0
    trainer.run(steps=options.steps, minutes=options.minutes)


if __name__ == "__main__":
    main()
