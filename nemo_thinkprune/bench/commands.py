"""What `thinkprune bench` and `thinkprune bench compare` do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.hf_config import read_hf_config
from nemo_thinkprune.bench.describe import (
    describe_conditions,
    describe_machine,
    describe_work,
    recipe_digest,
    recipe_name,
)
from nemo_thinkprune.bench.peak import cpu_peak, cpu_peak_beside, given_peak, gpu_peak
from nemo_thinkprune.bench.picture import picture
from nemo_thinkprune.bench.result import RESULT_FILE, SCHEMA, Conditions, Machine, Peak, Result
from nemo_thinkprune.bench.run import Plan, Records, run_steps
from nemo_thinkprune.bench.steps import counting, local_steps, nemo_rl_steps
from nemo_thinkprune.bench.summary import measurement_errors, summarise
from nemo_thinkprune.bench.table import result_table
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.rounds.commands import EngineChoice
from nemo_thinkprune.rounds.length_reward_formula import length_reward_formula
from nemo_thinkprune.training.stopping import stop_signals

Say = Callable[[str], None]
TABLE_FILE, PICTURE_FILE = "bench.txt", "bench.svg"
WRONG = 1


def bench(
    recipe: str,
    overrides: Sequence[str],
    *,
    steps: int,
    warmup: int,
    out: Path | None,
    engine: str,
    on_cpu: bool,
    nemo_rl_root: Path | None,
    peak_tflops: float | None,
    fixed_length: bool = False,
    say: Say,
) -> int:
    """Measure real steps of a recipe; 0, or 1 when a number cannot be true.

    Raises:
        UserError: a recipe that the engine cannot run, a place that holds a benchmark already, or one that cannot
            be written to; the table was said then.
        JobFailed: a rank died or hung.
        JobStopped: SIGTERM or SIGUSR1 came; nothing is left.
    """
    loaded = load_recipe(recipe, overrides)
    length_reward_formula(loaded)
    choice = EngineChoice(engine, nemo_rl_root, on_cpu)
    plan = Plan(recipe=loaded, engine=choice, steps=steps, warmup=warmup, fixed_length=fixed_length)
    refuse_fixed_length(plan)
    folder = result_folder(recipe_name(recipe), out)
    with stop_signals():  # one that comes when the steps are done must not end what is left to write
        result = measured(recipe_name(recipe), plan, folder, peak_tflops=peak_tflops)
        text = result_table(result)
        try:
            say(text)  # first: a full disk must not take the numbers with it, nor a closed pipe the files
        finally:
            files = {PICTURE_FILE: picture(result), TABLE_FILE: text + "\n", RESULT_FILE: result.to_json()}
            write_files(folder, files)
    say(f"\nNumbers:  {folder / RESULT_FILE}\nPicture:  {folder / PICTURE_FILE}")
    say(f"Next:     thinkprune bench compare {folder / RESULT_FILE} OTHER/{RESULT_FILE}")
    return WRONG if result.errors else 0


def measured(name: str, plan: Plan, folder: Path, *, peak_tflops: float | None) -> Result:
    """Run the steps, with what is measured beside them before and after; raises as `bench`."""
    peaks = _Peaks(plan, peak_tflops)
    return _assembled(name, plan, run_steps(plan, folder), peaks)


def refuse_fixed_length(plan: Plan) -> None:
    """Refuse --fixed-length where the engine would end responses all the same.

    Raises:
        UserError: vLLM generates, which also ends at the model's own end token.
    """
    if plan.fixed_length and plan.engine.name == "nemo-rl" and not plan.engine.on_cpu:
        raise UserError(
            "--fixed-length works with the local engine and with --engine nemo-rl --on-cpu; vLLM ends responses at the "
            "model's own end token whatever the recipe says: leave it away"
        )


def result_folder(recipe: str, out: Path | None) -> Path:
    """Where the result goes: `out`, or the first of bench/RECIPE, bench/RECIPE_2, ... that holds none.

    Raises:
        UserError: `out` holds a benchmark already.
    """
    if out is not None:
        if (out / RESULT_FILE).exists():
            raise UserError(
                f"{out} holds a benchmark already: give another place, or remove {out / RESULT_FILE}"
            )
        return out
    folder, number = Path("bench") / recipe, 1
    while (folder / RESULT_FILE).exists():
        number += 1
        folder = Path("bench") / f"{recipe}_{number}"
    return folder


@dataclass(slots=True)
class _Peaks:
    """Where the peak of a device is from; what is measured beside the run is measured before it too."""

    plan: Plan
    tflops: float | None
    before: float | None = None

    def __post_init__(self) -> None:
        if self.tflops is None and self.plan.engine.name == "nemo-rl" and self.plan.engine.on_cpu:
            self.before = self._beside()

    def _beside(self) -> float:
        recipe = self.plan.recipe
        return cpu_peak_beside(recipe.policy.precision, recipe.thinkprune.runtime.threads_per_rank)

    def of(self, records: Records, conditions: Conditions, machine: Machine) -> Peak:
        """The peak of one device of a run."""
        if self.tflops is not None:
            return given_peak(self.tflops)
        if conditions.device == "cuda":
            return gpu_peak(machine.gpus, conditions.precision)
        precision, threads = conditions.precision, conditions.threads or 1
        if self.before is not None:
            return cpu_peak([self.before, self._beside()], precision=precision, threads=threads, beside=True)
        measured = [told["flops_per_s"] for told in records.devices]
        return cpu_peak(measured, precision=precision, threads=threads)


def _assembled(name: str, plan: Plan, records: Records, peaks: _Peaks) -> Result:
    model = read_hf_config(Path(records.job.model))
    device, gpus, engine = device_facts(plan, records)
    conditions = describe_conditions(plan, records, engine=engine, device=device)
    machine = describe_machine(gpus)
    peak = peaks.of(records, conditions, machine)
    local = plan.engine.name == "local"
    ours = local or plan.engine.on_cpu
    how = counting(records.job.recipe, model, on_our_policy=ours, device=device)
    steps = (local_steps if local else nemo_rl_steps)(records, plan.measured, how)
    summary = summarise(steps, conditions, peak)
    return Result(
        schema=SCHEMA,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        recipe=name,
        recipe_sha256=recipe_digest(records.job.recipe),
        warmup=plan.warmup,
        work=describe_work(plan, records, model),
        conditions=conditions,
        machine=machine,
        peak=peak,
        steps=tuple(steps),
        summary=summary,
        errors=tuple(measurement_errors(summary)),
        notes=tuple(notes(plan)),
    )


def device_facts(plan: Plan, records: Records) -> tuple[str, list[str], str]:
    """Type of the devices, names of GPUs, and the engine with its version."""
    if plan.engine.name == "local":
        told = records.devices
        return told[0]["type"], [one["name"] for one in told if one["type"] == "cuda"], "the local engine"
    from nemo_thinkprune.cluster.find import find_nemo_rl
    from nemo_thinkprune.doctor.gpus import gpu_facts

    version = find_nemo_rl(plan.engine.nemo_rl_root).version
    if plan.engine.on_cpu:
        return "cpu", [], f"NeMo-RL {version} with CPU workers"
    return "cuda", [gpu.name for gpu in gpu_facts().devices], f"NeMo-RL {version}"


def notes(plan: Plan) -> list[str]:
    """What a reader should know of a measurement on this engine."""
    recipe, found = plan.recipe, []
    if plan.fixed_length:
        found.append(
            "Every response ran to the limit and counts as cut: rewards and losses of these steps mean nothing, nor do "
            "the seconds of scoring where the recipe gives cut responses no reward without reading them."
        )
    else:
        found.append(
            "Lengths are those that this policy sampled: another policy, precision or layout samples others. To fix "
            "the work, measure with --fixed-length."
        )
    if plan.engine.name == "local":
        found.append(
            "Refit takes no time here: responses are sampled from the very weights that are trained."
        )
    else:
        found.append(
            "NeMo-RL scores while it generates and has one timer for old and reference log-probs; it tells neither "
            "processor time nor memory."
        )
    if recipe.checkpointing.enabled:
        period = recipe.checkpointing.save_period
        found.append(
            f"A checkpoint was written after every step; the recipe writes one every {period} steps."
        )
    if plan.engine.name == "nemo-rl" and recipe.grpo.async_grpo.enabled:
        found.append(
            "Responses are generated beside the updates: their FLOPs are in no phase, and so not in the step's MFU."
        )
    return found


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Write the files of a result, the JSON last; all of them or none.

    Raises:
        UserError: One cannot be written, for want of room or otherwise.
    """
    written = []
    try:
        for name, text in files.items():
            written.append(folder / name)
            write_atomic(folder / name, text)
    except BaseException as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"cannot write {written[-1]} ({error.strerror or error}), so that {', '.join(files)} are not kept: the "
            "table is all there is of this measurement; make room or give another --out, and measure again"
        ) from error


def compare(first: Path, second: Path, *, say: Say) -> None:
    """Compare two benchmarks of the same work.

    Raises:
        UserError: one of them cannot be read, or they measured different work.
    """
    from nemo_thinkprune.bench.compare import comparison
    from nemo_thinkprune.bench.result import read_result

    say(comparison(read_result(first), read_result(second)))
