"""Steps of TRL's GRPOTrainer on the fixed work, one for each line `step` on standard input.

    PEER_PYTHON benchmarks/peers/trl_step.py MODEL_FOLDER

Run by benchmarks/step.py in the Python that TRL is installed in.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import step_work as work
import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

# TRL's default; of 4, 8, 16 and 64 none was quicker, and 64 suffers most where other programs use the caches
MICRO_BATCH = 8


class Turns(TrainerCallback):
    """Waits before each step and tells what it took after it."""

    def __init__(self, line: work.Line, seen: dict[str, Any]) -> None:
        self.line, self.seen = line, seen

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the word; end with the input."""
        if not self.line.wait():
            sys.exit(0)
        self.seen.update(trained_tokens=0, forward_tokens=0, loss=0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell."""
        self.line.done(**self.seen)


def main() -> None:
    """Build the trainer and let it run."""
    line = work.Line()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    folder = sys.argv[1]
    seen: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as out:
        trainer = make_trainer(folder, out, line, seen)
        count_work(trainer, line, seen)
        line.say(
            {
                "ready": True,
                "trl": trl.__version__,
                "transformers": transformers.__version__,
                "torch": torch.__version__,
            }
        )
        trainer.train()


def make_trainer(folder: str, out: str, line: work.Line, seen: dict[str, Any]) -> Any:
    """GRPOTrainer with the settings of the fixed work, all responses sampled at once."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    names = work.words()
    rows = [{"prompt": " ".join(names[i] for i in ids)} for ids in work.prompts()]
    config = trl.GRPOConfig(
        output_dir=out,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=work.PROMPTS * work.SAMPLES // MICRO_BATCH,
        num_generations=work.SAMPLES,
        max_completion_length=work.RESPONSE_TOKENS,
        beta=0.0,
        temperature=1.0,
        learning_rate=work.LEARNING_RATE,
        weight_decay=work.WEIGHT_DECAY,
        lr_scheduler_type="constant",
        max_steps=1_000_000,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1_000_000,
        shuffle_dataset=False,
        seed=0,
    )
    return trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=config,
        reward_funcs=lambda completions, **_: [work.reward(i) for i in range(len(completions))],
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Turns(line, seen)],
    )


def count_work(trainer: Any, line: work.Line, seen: dict[str, Any]) -> None:
    """Time the phases and count the tokens that the loss is taken over."""
    phases = line.phases
    trainer._generate = phases.timed("generate", trainer._generate)
    trainer._get_per_token_logps_and_entropies = phases.timed(
        "forward", trainer._get_per_token_logps_and_entropies
    )
    trainer.accelerator.backward = phases.timed("backward", trainer.accelerator.backward)
    create = trainer.create_optimizer

    def created(*args: Any, **kwargs: Any) -> Any:
        optimizer = create(*args, **kwargs)
        optimizer.step = phases.timed("optimizer", optimizer.step)
        return optimizer

    trainer.create_optimizer = created
    loss_of = trainer._compute_loss

    def compute(model: Any, inputs: dict[str, Any]) -> Any:
        seen["trained_tokens"] += int(inputs["completion_mask"].sum())
        seen["forward_tokens"] += inputs["prompt_mask"].numel() + inputs["completion_mask"].numel()
        loss = loss_of(model, inputs)
        seen["loss"] += float(loss.detach())
        return loss

    trainer._compute_loss = compute


if __name__ == "__main__":
    main()
