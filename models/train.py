"""Train the bundled model from scratch on a CPU: `python -m models.train --out DIR`.

Two stages: most tokens at a short context, where a step is cheap, then a few at the context the model is meant for.
Hidden matrices are trained by Muon (orthogonalised momentum), embeddings and norms by AdamW. Interrupt it at any
time; the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from models.prepare import END_ID, prepare


@dataclass(frozen=True)
class Stage:
    """`steps` steps of `batch` windows of `context` tokens; learning rates rise over `warmup` steps and fall in the
    second half."""

    context: int
    batch: int
    steps: int
    warmup: int
    muon_lr: float
    adam_lr: float

    def rate(self, step: int) -> float:
        """Multiplier of both learning rates at `step`."""
        done = step / self.steps
        return min(1.0, (step + 1) / self.warmup) * (1.0 if done < 0.5 else 1.0 - 0.98 * (done - 0.5) / 0.5)


class Muon:
    """Momentum whose update is made (nearly) orthogonal by five Newton-Schulz steps (Jordan et al., 2024). For 2-D
    parameters."""

    MOMENTUM = 0.95
    DECAY = 0.01

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self.momenta = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for parameter, momentum in zip(self._parameters, self.momenta, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            momentum.mul_(self.MOMENTUM).add_(gradient)
            update = orthogonalize(gradient + self.MOMENTUM * momentum)
            rows, cols = parameter.shape
            parameter.mul_(1 - lr * self.DECAY).add_(update, alpha=-lr * max(1.0, rows / cols) ** 0.5)


def orthogonalize(gradient: Tensor, steps: int = 5) -> Tensor:
    """A matrix with the singular vectors of `gradient` and singular values near 1."""
    x: Tensor = gradient.bfloat16() / (gradient.norm() + 1e-7)
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if tall else x).float()


@dataclass
class Trainer:
    """Model, optimisers and data of one training; `stage` and `step` say how far it is."""

    model: Any
    train: Tensor
    held_out: Tensor
    stages: list[Stage]
    checkpoint: Path
    seed: int
    stage: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        hidden = [(n, p) for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        names = {n for n, _ in hidden}
        rest = [p for n, p in self.model.named_parameters() if n not in names]
        self._muon = Muon([p for _, p in hidden])
        self._adam = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0)
        self._sampler = torch.Generator().manual_seed(self.seed)

    def save(self) -> None:
        state = {
            "stage": self.stage,
            "step": self.step,
            "model": self.model.state_dict(),
            "muon": self._muon.momenta,
            "adam": self._adam.state_dict(),
            "sampler": self._sampler.get_state(),
        }
        partial = self.checkpoint.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one."""
        if not self.checkpoint.is_file():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        self.stage, self.step = state["stage"], state["step"]
        self.model.load_state_dict(state["model"])
        for momentum, saved in zip(self._muon.momenta, state["muon"], strict=True):
            momentum.copy_(saved)
        self._adam.load_state_dict(state["adam"])
        self._sampler.set_state(state["sampler"])
        return True

    def run(self, every: int) -> Iterator[tuple[int, int, float]]:
        """Train to the end; yields (stage, steps done in it, mean loss since the last report) each `every` steps and
        saves."""
        while self.stage < len(self.stages):
            stage = self.stages[self.stage]
            losses: list[float] = []
            while self.step < stage.steps:
                losses.append(self._one_step(stage))
                self.step += 1
                if self.step % every == 0 or self.step == stage.steps:
                    self.save()
                    yield self.stage, self.step, sum(losses) / len(losses)
                    losses = []
            self.stage, self.step = self.stage + 1, 0
            self.save()

    def _one_step(self, stage: Stage) -> float:
        starts = torch.randint(0, len(self.train) - stage.context - 1, (stage.batch,), generator=self._sampler)
        windows = torch.stack([self.train[i : i + stage.context + 1] for i in starts.tolist()])
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(windows[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = stage.rate(self.step)
        self._muon.step(stage.muon_lr * rate)
        for group in self._adam.param_groups:
            group["lr"] = stage.adam_lr * rate
        self._adam.step()
        self.model.zero_grad(set_to_none=True)
        return loss.item()

    @torch.no_grad()
    def evaluate(self, window: int, tokens: int) -> float:
        """Nats per token over the first `tokens` held-out tokens, in float32."""
        self.model.eval()
        total, count = 0.0, 0
        for start in range(0, min(tokens, len(self.held_out)) - window, window):
            ids = self.held_out[start : start + window + 1].unsqueeze(0)
            logits = self.model(ids[:, :-1], use_cache=False).logits[0]
            total += cross_entropy(logits.float(), ids[0, 1:], reduction="sum").item()
            count += window
        return total / max(count, 1)


def build_model(vocab: int, layers: int, hidden: int, context: int) -> Any:
    heads = max(2, hidden // 32)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        # 8/3 of the hidden size, up to a multiple of 64: the parameters of a plain feed-forward of 4 times the size.
        intermediate_size=-(-hidden * 8 // 3 // 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=hidden // heads,
        max_position_embeddings=2 * context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )
    return LlamaForCausalLM(config)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled model from scratch.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory of the finished model; progress is kept in it too")
    add("--library", type=Path, help="directory of Python sources to train on (default: the standard library)")
    add("--files", type=int, help="use only the first FILES source files")
    add("--vocab", type=int, default=4096)
    add("--layers", type=int, default=8)
    add("--hidden", type=int, default=256)
    add("--context", type=int, default=256, help="tokens per window of the first stage")
    add("--long-context", type=int, default=1024, help="tokens per window of the second stage")
    add("--batch-tokens", type=int, default=4096, help="tokens per step")
    add("--steps", type=int, default=3080, help="steps of the first stage")
    add("--long-steps", type=int, default=270, help="steps of the second stage")
    add("--every", type=int, default=50, help="steps between reports and checkpoints")
    add("--eval-tokens", type=int, default=100_000, help="held-out tokens of the final evaluation")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def as_tensor(tokens: npt.NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokens = prepare(args.out, args.vocab, args.library, args.files)
    print(f"{len(tokens.train)} tokens to train on, {len(tokens.held_out)} held out", flush=True)
    stages = [
        Stage(args.context, max(1, args.batch_tokens // args.context), args.steps, 50, 0.02, 3e-3),
        Stage(args.long_context, max(1, args.batch_tokens // args.long_context), args.long_steps, 10, 0.004, 6e-4),
    ]
    model = build_model(args.vocab, args.layers, args.hidden, args.long_context)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    checkpoint = args.out / "training.pt"
    trainer = Trainer(model, as_tensor(tokens.train), as_tensor(tokens.held_out), stages, checkpoint, args.seed + 1)
    if trainer.resume():
        print(f"going on at stage {trainer.stage + 1}, step {trainer.step}", flush=True)
    started, begun = time.monotonic(), sum(s.steps for s in stages[: trainer.stage]) + trainer.step
    for number, step, loss in trainer.run(args.every):
        done, total = sum(s.steps for s in stages[:number]) + step, sum(s.steps for s in stages)
        left = (time.monotonic() - started) / (done - begun) * (total - done)
        print(
            f"stage {number + 1} step {step}/{stages[number].steps}  loss {loss:.3f}  {left / 60:.0f} min left",
            flush=True,
        )
    nats = trainer.evaluate(args.long_context, args.eval_tokens)
    print(f"held out: {nats:.3f} nats per token, perplexity {math.exp(nats):.2f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(args.out)
    print(f"saved in {args.out}; {checkpoint.name} can be deleted", flush=True)


if __name__ == "__main__":
    main()
