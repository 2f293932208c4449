"""Train the reader of real text: `python -m focus_rag.embedded.real_reader.train --pack DIR --out DIR --minutes 9`.

Everything is read from the pack. A run stops after `--minutes` with a checkpoint and goes on with `--resume`; the
learning rate follows the whole budget (`--budget-minutes`), not the single run. Both count a run from its start. The
checkpoint is the bfloat16 model in files under 16 MB, loadable by transformers. Full-precision weights and optimizer
states are larger than what may be carried, so they go to `--scratch`, a folder that stays on the machine; where it is
gone, a run goes on from the bfloat16 weights with new optimizer states and warms up again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import Field

from focus_rag.embedded.arguments import above_zero, device, folder, whole_number
from focus_rag.embedded.optimizers import STATE, Optimizers, load_state, save_state, state_said
from focus_rag.embedded.reader_model import ModelShape, load_weights, new_model, save
from focus_rag.embedded.real_reader.mix import Mix, RowMaker, curriculum
from focus_rag.embedded.real_reader.pack import Pack
from focus_rag.embedded.real_reader.stream import Batch, Stream, StreamSettings, batch_of
from focus_rag.embedded.rows import Row
from focus_rag.embedded.tokenizer import load_tokenizer
from focus_rag.embedded.train import TrainSettings
from focus_rag.errors import FocusRagError, InvalidInputError
from focus_rag.whole_files import write_whole

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

LARGEST_FILE = "15MB"
LARGEST_MODEL = 64_000_000
"""Bytes of a checkpoint in all, in files of at most `LARGEST_FILE`."""
_TOKENIZER_BYTES = 2_000_000
_PROGRESS = "progress.json"
_FOLLOWED = ("seed", "shape", "batch_tokens", "pool_batches", "curriculum")
"""Settings that weights and the order of the batches follow from: a resumed run has to have the same."""


class ReaderSettings(TrainSettings):
    """How to train the reader of real text; what is not here stands in `TrainSettings`.

    Attributes:
        shape: 23 million parameters at a vocabulary of 16,384; the pack's vocabulary replaces `vocab_size`.
        warmup: Steps until the full learning rate, and again where optimizer states were lost.
        budget_minutes: Minutes of all runs together, which the learning rate follows; each is counted as `--minutes`
            counts it, from its start, so that runs that use up the budget end at a learning rate of 0.
        batch_tokens: Tokens of a step, padding included.
        pool_batches: Batches drawn and sorted by length together.
        log_every: Steps between lines of the metrics.
        dev_every: Steps between measurements on held-out articles.
        dev_rows: Questions of each such measurement.
        dev_passages: Numbers of passages they are measured at.
        curriculum: The mixes of rows, in order.
    """

    shape: ModelShape = ModelShape(
        vocab_size=16_384, hidden_size=448, intermediate_size=1024, layers=8, heads=8, key_heads=2, head_dim=64
    )
    warmup: int = 50
    budget_minutes: float = Field(default=7.0, gt=0.0)
    batch_tokens: int = Field(default=131_072, ge=1)
    pool_batches: int = Field(default=24, ge=1)
    log_every: int = Field(default=20, ge=1)
    dev_every: int = Field(default=500, ge=1)
    dev_rows: int = 200
    dev_passages: tuple[int, ...] = (1, 8)
    curriculum: tuple[Mix, ...] = curriculum()


def toy_settings() -> ReaderSettings:
    """The whole recipe at a size that two CPU cores train: it shows that it runs, not what it reaches."""
    mixes = curriculum()
    return ReaderSettings(
        shape=ModelShape(hidden_size=128, intermediate_size=320, layers=4, heads=4, key_heads=2, head_dim=32),
        batch_tokens=4096,
        pool_batches=8,
        warmup=20,
        log_every=5,
        dev_every=50,
        dev_rows=32,
        dev_passages=(1, 4),
        curriculum=(
            *(mix.model_copy(update={"tokens": 200_000}) for mix in mixes[:-1]),
            mixes[-1].model_copy(update={"passages": (1, 5), "long": 0.0}),
        ),
    )


@dataclass
class Progress:
    """Where a run stands; stored with each checkpoint.

    Attributes:
        step: Steps done.
        pool: Pool of the stream to go on in.
        batch: Batches of it that are done.
        tokens: Tokens seen, padding not counted.
        seconds: Time so far of all runs, their starts included.
        warm_from: Step at which the optimizer states began.
        started: Whether it began from a saved model, without the stretches of copying.
        run: Drawn once for each training, which tells it from others of the same settings.
    """

    step: int = 0
    pool: int = 0
    batch: int = 0
    tokens: int = 0
    seconds: float = 0.0
    warm_from: int = 0
    started: bool = False
    run: str = field(default_factory=lambda: secrets.token_hex(8))


def answer_loss(model: LlamaForCausalLM, batch: Batch, device: str, bf16: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of a batch, and which of its predicted tokens were right, `(predicted)`.

    The vocabulary projection runs on the positions that carry weight alone; they come ready from the CPU, so that
    nothing waits for the device.
    """
    import torch

    def there(array: Any) -> torch.Tensor:
        found = torch.from_numpy(array)
        return found.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else found

    targets = there(batch.targets)
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16):
        hidden = model.model(there(batch.ids), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[there(batch.at)]).float()
    per_token = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return (per_token * there(batch.weights)).sum() / batch.total, logits.detach().argmax(-1) == targets


def exact_share(batch: Batch, right: torch.Tensor) -> float | None:
    """Share of the real questions whose first answer was predicted right throughout, given the tokens before; None
    without any.
    """
    answers = batch.first_answers
    if not len(answers):
        return None
    hits = right.cpu().numpy()
    return float(sum(hits[start:end].all() for start, end in answers) / len(answers))


class ReaderTrainer:
    """One training with its checkpoint in `out`: `model/` with `progress.json`, and `metrics.jsonl`.

    Args:
        pack: Folder of the data pack.
        out: Folder of the training.
        settings: How to train.
        scratch: Folder for full-precision weights and optimizer states; None keeps none.
        device: Where to train.
        workers: Processes that draw rows ahead; 0 draws them in between.
        resume: Go on from the checkpoint in `out`.
        start: Folder of a saved model to begin from, with new optimizer states; the stretches of copying are left out.
        compiled: Compile the layers.

    Raises:
        InvalidInputError: The model is larger than a checkpoint may be, there is nothing to resume, there is something
            that would be overwritten, the checkpoint belongs to another pack or other settings, or the model to begin
            from has other tokens than the pack.
    """

    def __init__(
        self,
        pack: Path,
        out: Path,
        settings: ReaderSettings,
        *,
        scratch: Path | None = None,
        device: str = "cpu",
        workers: int = 0,
        resume: bool = False,
        start: Path | None = None,
        compiled: bool = False,
    ) -> None:

        self.out, self.scratch, self.device = out, scratch, device
        self.pack = Pack.load(pack)
        shape = settings.shape.model_copy(update={"vocab_size": len(self.pack.tokenizer)})
        settings = settings.model_copy(update={"shape": shape})
        self.settings = settings
        self._recover()
        saved = out / "model" / _PROGRESS
        if resume != saved.exists():
            raise InvalidInputError(
                f"There is nothing to resume in {out}: start without --resume."
                if resume
                else f"{out} holds a checkpoint already: go on with --resume, or give another --out."
            )
        self.progress = Progress()
        self.model = new_model(shape, self.pack.tokenizer, settings.seed)
        size = 2 * sum(one.numel() for one in self.model.parameters()) + _TOKENIZER_BYTES
        if size > LARGEST_MODEL:
            raise InvalidInputError(
                f"A checkpoint of this shape takes {size / 1e6:.0f} MB and may take {LARGEST_MODEL / 1e6:.0f}: use "
                "fewer layers, a smaller width or vocabulary."
            )
        if resume:
            self._load_progress(saved)
        elif start is not None:
            load_weights(self.model, start)
            self._require_its_tokens(start)
            self.progress.started = True
            self._leave_copying_out()
        settings = self.settings
        self.model.to(device)
        self.optimizers = Optimizers(self.model, settings)
        self.restored = resume and self._load_scratch()
        if resume and not self.restored:
            self.progress.warm_from = self.progress.step
        self._compiled, self._dev = compiled, dict[int, list[Batch]]()
        self.stream = Stream(
            pack,
            StreamSettings(
                settings.seed,
                settings.batch_tokens,
                settings.pool_batches,
                shape.max_position_embeddings,
                settings.curriculum,
            ),
            self.progress.pool,
            self.progress.batch,
            workers,
        )

    def _leave_copying_out(self) -> None:
        read = tuple(mix for mix in self.settings.curriculum if set(mix.shares) != {"world"})
        self.settings = self.settings.model_copy(update={"curriculum": read})

    def _require_its_tokens(self, start: Path) -> None:
        """A vocabulary of the same size with other words in it would fit the weights and scramble them."""
        if load_tokenizer(start).get_vocab() != self.pack.tokenizer.get_vocab():
            raise InvalidInputError(
                f"The reader in {start} has other tokens than the pack: make the pack with `--tokenizer {start}`."
            )

    def _meet_compiler(self) -> None:
        """Have the layers compiled, forward and backward, while the workers draw the first pool.

        Layer by layer: one compilation serves all of them, and the causal mask is decided outside, where none is made.
        """
        for layer in self.model.model.layers:
            layer.compile(dynamic=True)
        rows = [Row([1] * 96, [0.0] * 64 + [1.0] * 32) for _ in range(5)]
        loss, _ = answer_loss(self.model, batch_of(rows, 0), self.device, self.settings.bf16)
        loss.backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)

    def train_step(self, factor: float) -> tuple[Batch, torch.Tensor, torch.Tensor]:
        """One step at `factor` times the learning rate: the batch, its loss, and which tokens were right."""
        import torch

        batch = self.stream.next()
        loss, right = answer_loss(self.model, batch, self.device, self.settings.bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizers.step(factor)
        progress = self.progress
        progress.step += 1
        progress.pool, progress.batch = self.stream.pool, self.stream.batch
        progress.tokens += batch.filled
        return batch, loss.detach(), right

    def run(self, *, minutes: float | None = None, steps: int | None = None, began: float | None = None) -> None:
        """Train until the budget is used up, or this run's minutes or steps are.

        Args:
            minutes: Of this run, from `began` on, as those of the budget are.
            steps: Of this run.
            began: `time.monotonic()` at which the process began; now, if left out.

        Raises:
            FocusRagError: The loss is no longer a number; the last checkpoint stands.
        """
        began = time.monotonic() if began is None else began
        if self._compiled:
            self._meet_compiler()
        entered = saved = time.monotonic()
        before, first_step = self.progress.seconds, self.progress.step
        with (self.out_folder() / "metrics.jsonl").open("a", encoding="utf-8") as log:
            start = {
                "kind": "start",
                "settings": self.settings.model_dump(),
                "pack": self.pack.about,
                "restored": self.restored,
            }
            _write(
                log, {**start, "parameters": sum(one.numel() for one in self.model.parameters()), **vars(self.progress)}
            )
            marked, tokens, padded = entered, self.progress.tokens, 0
            while True:
                now = time.monotonic()
                self.progress.seconds = before + now - began
                done = self.progress.seconds / (60 * self.settings.budget_minutes)
                over = minutes is not None and now - began >= 60 * minutes
                if done >= 1.0 or over or (steps is not None and self.progress.step - first_step >= steps):
                    break
                factor = self.rate(done)
                batch, loss, right = self.train_step(factor)
                padded += batch.ids.size
                if self.progress.step % self.settings.log_every == 0:
                    # Waits for the device, so that the time taken next is that of finished steps.
                    value = float(loss) * batch.total / float(batch.weights.sum())
                    self._require_finite(value)
                    now = time.monotonic()
                    seen = self.progress.tokens - tokens
                    _write(log, {
                        "kind": "train", "step": self.progress.step, "stretch": batch.name, "loss": round(value, 4),
                        "exact": exact_share(batch, right),
                        "tokens": self.progress.tokens, "seconds": round(self.progress.seconds, 1),
                        "factor": round(factor, 4),
                        "tokens_per_second": round(seen / (now - marked)), "padding": round(1 - seen / padded, 4),
                    })  # fmt: skip
                    marked, tokens, padded = now, self.progress.tokens, 0
                    if now - saved > 60 * self.settings.snapshot_minutes:
                        self.checkpoint()
                        saved = time.monotonic()
                if self.progress.step % self.settings.dev_every == 0:
                    _write(log, self.dev())
            last = self.dev()
            _write(log, last)
            self._require_finite(sum(last[name]["loss"] for name in last if name.endswith("passages")))
        self.checkpoint()

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FocusRagError(
                f"The loss is {loss} at step {self.progress.step}: resume from the last checkpoint with a smaller "
                "--lr-factor."
            )

    def rate(self, done: float) -> float:
        """Factor on the learning rate when a share `done` of the budget is used up."""
        warm = (self.progress.step - self.progress.warm_from + 1) / self.settings.warmup
        return min(1.0, warm, (1.0 - done) / (1.0 - self.settings.decay_from))

    def dev(self) -> dict[str, Any]:
        """Loss and exact first answers, given the tokens before, on questions of held-out training articles."""
        import torch

        if not self._dev:
            self._dev = {count: list(self._dev_batches(count)) for count in self.settings.dev_passages}
        found: dict[str, Any] = {"kind": "dev", "step": self.progress.step, "seconds": round(self.progress.seconds, 1)}
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for count, batches in self._dev.items():
                loss = weight = exact = 0.0
                for batch in batches:
                    one, right = answer_loss(self.model, batch, self.device, self.settings.bf16)
                    loss, weight = loss + float(one) * batch.total, weight + batch.total
                    exact += (exact_share(batch, right) or 0.0) * len(batch.first_answers)
                n = sum(len(batch.first_answers) for batch in batches)
                found[f"{count} passages"] = {"n": n, "loss": round(loss / weight, 4), "exact": round(exact / n, 4)}
        return found

    def _dev_batches(self, count: int) -> list[Batch]:
        longest = self.settings.shape.max_position_embeddings
        maker = RowMaker(self.pack, held_out=True, longest=longest)
        mix = Mix(
            passages=(count, count), long=0.0, missing=0.0, exchanged=0.0, thinned=0.0, follow_ups=(0, 0), titled=1.0
        )
        rng = random.Random(f"dev {count}")
        rows = [maker.question_row(rng, mix) for _ in range(self.settings.dev_rows)]
        rows = sorted((row for row in rows if len(row.tokens) <= longest), key=lambda row: len(row.tokens))
        if not rows:
            raise InvalidInputError(
                f"No held-out question fits {longest} tokens with {count} passages: use a larger window."
            )
        size = max(1, self.settings.batch_tokens // len(rows[-1].tokens))
        return [
            batch_of(rows[first : first + size], self.pack.tokenizer.pad_token_id)
            for first in range(0, len(rows), size)
        ]

    def out_folder(self) -> Path:
        """`out`, made if need be."""
        self.out.mkdir(parents=True, exist_ok=True)
        return self.out

    def checkpoint(self) -> None:
        """Replace the checkpoint in `out`, and the full state in `scratch`; a kill in between loses neither the old
        checkpoint nor the new one.
        """
        fresh, model, aside = (self.out_folder() / name for name in ("model.new", "model", "model.old"))
        for left in (fresh, aside):
            shutil.rmtree(left, ignore_errors=True)
        save(self.model, self.pack.tokenizer, fresh, LARGEST_FILE)
        said = json.dumps({**vars(self.progress), **self._followed()}, indent=1) + "\n"
        write_whole(fresh / _PROGRESS, said)
        if model.exists():
            model.rename(aside)
        fresh.rename(model)
        shutil.rmtree(aside, ignore_errors=True)
        if self.scratch is not None:
            save_state(self.scratch / STATE, self.model, self.optimizers, {"progress": said})

    def _recover(self) -> None:
        """Put a checkpoint back whose replacement was cut short: the new one where it is complete, or else the old."""
        for name in ("model.new", "model.old"):
            left = self.out / name
            if (left / _PROGRESS).exists() and not (self.out / "model").exists():
                left.rename(self.out / "model")

    def _followed(self) -> dict[str, Any]:
        """The pack and the settings that a checkpoint belongs to, as JSON has them."""
        return {"pack": self.pack.digest, **self.settings.model_dump(mode="json", include=set(_FOLLOWED))}

    def _load_progress(self, saved: Path) -> None:
        state = json.loads(saved.read_text(encoding="utf-8"))
        if state.get("started"):
            self._leave_copying_out()
        # What an older checkpoint does not say, it is not refused for.
        wrong = [name for name, value in self._followed().items() if state.pop(name, value) != value]
        if wrong:
            raise InvalidInputError(
                f"The checkpoint in {self.out} was made with another {' and another '.join(wrong)}: resume with the "
                "same, or start anew."
            )
        self.progress = Progress(**state)
        load_weights(self.model, saved.parent)

    def _load_scratch(self) -> bool:
        """Whether full-precision weights and optimizer states of this very checkpoint were there."""
        file = None if self.scratch is None else self.scratch / STATE
        said = (self.out / "model" / _PROGRESS).read_text(encoding="utf-8")
        if file is None or not file.exists() or state_said(file).get("progress") != said:
            return False
        load_state(file, self.model, self.optimizers, self.device)
        return True


def _write(log: IO[str], line: dict[str, Any]) -> None:
    log.write(json.dumps(line) + "\n")
    log.flush()


def main(arguments: list[str] | None = None) -> None:
    """Command line of the training."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m focus_rag.embedded.real_reader.train",
        description="Train the reader of real text from a data pack.",
        epilog="Example: ... --pack runs/pack --out runs/reader --device cuda --workers 12 --scratch /tmp/reader "
        "--minutes 9, then the same with --resume",
    )
    parser.add_argument("--pack", type=Path, required=True, help="folder of the data pack")
    parser.add_argument("--out", type=folder, required=True, help="folder of the training")
    parser.add_argument("--minutes", type=above_zero, help="stop this run after so many minutes, its start included")
    parser.add_argument(
        "--budget-minutes",
        type=above_zero,
        help="minutes of all runs together, their starts included; the learning rate follows them down to 0",
    )
    parser.add_argument("--steps", type=whole_number(1), help="stop this run after so many steps")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--start", type=Path, help="folder of a saved model to begin from, with new optimizer states")
    parser.add_argument("--scratch", type=folder, help="folder on this machine for full weights and optimizer states")
    parser.add_argument("--device", type=device, default="cuda", help="cuda, or cpu with --toy for a trial")
    parser.add_argument("--workers", type=whole_number(0), default=8, help="processes that draw rows ahead")
    parser.add_argument("--batch-tokens", type=whole_number(1), help="tokens of a step")
    parser.add_argument("--lr-factor", type=above_zero, default=1.0, help="factor on both learning rates")
    parser.add_argument(
        "--snapshot-minutes",
        type=above_zero,
        default=ReaderSettings().snapshot_minutes,
        help="minutes between checkpoints",
    )
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    parser.add_argument("--toy", action="store_true", help="a small model and a short curriculum, for a trial on a CPU")
    parser.add_argument("--seed", type=whole_number(0), default=ReaderSettings().seed)
    parser.add_argument("--threads", type=whole_number(1), help="threads of torch on the CPU")
    given = parser.parse_args(arguments)
    if given.resume and given.start:
        parser.error(
            "--resume goes on from the checkpoint in --out and --start begins from another model: give one of them"
        )
    if given.minutes is None and given.steps is None:
        parser.error("say how long this run may take: --minutes or --steps")

    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    settings = toy_settings() if given.toy else ReaderSettings()
    changes: dict[str, Any] = {
        "seed": given.seed,
        "snapshot_minutes": given.snapshot_minutes,
        "lr": settings.lr * given.lr_factor,
        "matrix_lr": settings.matrix_lr * given.lr_factor,
    }
    if given.budget_minutes:
        changes["budget_minutes"] = given.budget_minutes
    if given.batch_tokens:
        changes["batch_tokens"] = given.batch_tokens
    trainer = None
    try:
        trainer = ReaderTrainer(
            given.pack,
            given.out,
            settings.model_copy(update=changes),
            scratch=given.scratch,
            device=given.device,
            workers=given.workers,
            resume=given.resume,
            start=given.start,
            compiled=given.compile,
        )
        trainer.run(minutes=given.minutes, steps=given.steps, began=began)
    except FocusRagError as error:
        parser.error(str(error))
    finally:
        if trainer is not None:
            trainer.stream.close()


if __name__ == "__main__":
    main()
