"""Sections `data`, `env`, `checkpointing`, `logger`, `cluster`, `data_plane`: all around the policy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nemo_thinkprune.recipe.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    absent,
)


class Dataset(Section):
    """One data set: a local file (data_path) or one that NeMo-RL knows (dataset_name)."""

    dataset_name: str | None = absent()
    """NeMo-RL: registered name or dotted path of a class."""
    data_path: str | None = absent()
    """JSONL or Parquet file, or hub id, of problems with answers."""
    data_files: str | list[str] | None = absent()
    """Files of a hub data set."""
    input_key: str | None = absent()
    """Column of the question; absent: the usual names are tried."""
    output_key: str | None = absent()
    """Column of the answer; absent: the usual names are tried."""
    sources: list[str] | None = absent()
    """Keep rows whose source is one of these, such as numina_amc_aime."""
    subset: str | None = absent()
    """Configuration of a hub data set."""
    split: str | None = absent()
    """Split of a hub data set."""
    max_samples: PositiveInt | None = absent()
    """At most this many rows."""
    prompt_file: str | None = None
    """NeMo-RL's prompt template; ThinkPrune's prompts come from thinkprune.prompt_family."""
    system_prompt_file: str | None = None
    """NeMo-RL's system prompt; likewise."""
    env_name: str | None = absent()
    """Environment that scores the responses."""
    processor: str | None = absent()
    """NeMo-RL's data processor."""
    download_dir: str | None = absent()
    """Where NeMo-RL puts downloads."""
    split_validation_size: NonNegativeFloat | None = absent()
    """Share or number of rows held out for validation."""
    seed: NonNegativeInt | None = absent()
    """Seed of that split."""
    repeat: PositiveInt | None = absent()
    """Use each row this often."""
    variant: str | None = absent()
    """Variant of some of NeMo-RL's data sets."""
    extract_answer: bool | None = absent()
    """For some of NeMo-RL's data sets."""


def _as_list(value: Any) -> Any:
    """A single data set may be written without a list around it."""
    return [value] if isinstance(value, dict) else value


Datasets = Annotated[list[Dataset], BeforeValidator(_as_list)]


class Data(Section):
    """Section `data`."""

    max_input_seq_length: PositiveInt = 1024
    """Longest prompt in tokens; longer ones are dropped."""
    shuffle: bool = True
    """New order of the problems in each epoch."""
    num_workers: NonNegativeInt = 1
    """Loader processes of NeMo-RL."""
    use_multiple_dataloader: bool = False
    """NeMo-RL: one loader for each data set."""
    num_prompts_per_dataloader: PositiveInt | None = absent()
    """NeMo-RL: prompts from each loader."""
    custom_dataloader: str | None = absent()
    """NeMo-RL: own loader."""
    add_bos: bool | None = absent()
    """Supervised training in NeMo-RL."""
    add_eos: bool | None = absent()
    """Supervised training in NeMo-RL."""
    add_generation_prompt: bool | None = absent()
    """Supervised training in NeMo-RL."""
    add_system_prompt: bool | None = absent()
    """Supervised training in NeMo-RL."""
    train: Datasets = Field(min_length=1)
    """Training problems: one data set or a list; always a list once loaded.  Required."""
    validation: Datasets | None = None
    """Problems on which checkpoints are selected; never the ones that results are reported on."""
    default: Dataset | None = None
    """Values for keys that a data set does not have."""


class Environment(Section):
    """One environment of NeMo-RL, under its name in `env`."""

    num_workers: PositiveInt = 8
    """Scoring workers."""
    math_verify_impl: str | None = absent()
    """Verifier of NeMo-RL's own mathematics environment."""
    verifier_type: str | None = absent()
    """Kind of verifier."""
    stop_strings: list[str] | None = absent()
    """Strings that end a response."""


class PretrainedCheckpoint(Section):
    """Megatron weights to start from instead of those of policy.model_name."""

    path: str
    """Folder of an iteration (iter_N) in torch_dist format, or a folder of such folders."""
    format: Literal["megatron_bridge", "megatron_lm"] = "megatron_bridge"
    """megatron_bridge: written by this program or by NeMo-RL."""


class Checkpointing(Section):
    """Section `checkpointing`."""

    enabled: bool = True
    """Switch."""
    checkpoint_dir: str = "checkpoints"
    """Folder; a relative one is inside the run folder."""
    metric_name: str | None = "val:accuracy"
    """By what keep_top_k ranks: val:accuracy, val:mean_tokens, train: and a metric; null: the newest."""
    higher_is_better: bool = True
    """Direction of that rank."""
    keep_top_k: PositiveInt | None = None
    """Keep only the best so many, and the newest; null: all, which the selection between rounds needs."""
    save_period: PositiveInt = 20
    """Save every so many steps, and after the last."""
    checkpoint_must_save_by: str | None = None
    """NeMo-RL: DD:HH:MM:SS after which to save and end; the local engine does so on SIGTERM or SIGUSR1."""
    save_optimizer: bool = True
    """Save what resuming needs beside the weights."""
    model_save_format: str | None = "safetensors"
    """DTensor backend only."""
    save_consolidated: bool = False
    """DTensor backend only."""
    model_cache_dir: str | None = absent()
    """DTensor backend only."""
    model_repo_id: str | None = absent()
    """DTensor backend only."""
    is_peft: bool | None = absent()
    """DTensor backend only."""
    is_async: bool | None = absent()
    """DTensor backend only."""
    pretrained_checkpoint: PretrainedCheckpoint | None = absent()
    """Weights to start from: another name of policy.pretrained_checkpoint, which follows it."""


class Wandb(Section):
    """Weights & Biases."""

    project: str = "nemo-thinkprune"
    """Project."""
    name: str | None = absent()
    """Name of the run."""
    entity: str | None = absent()
    """Team."""


class Swanlab(Section):
    """SwanLab; NeMo-RL only."""

    project: str = "nemo-thinkprune"
    """Project."""
    name: str | None = absent()
    """Name of the run."""


class Tensorboard(Section):
    """TensorBoard."""

    log_dir: str | None = absent()
    """Folder."""


class Mlflow(Section):
    """MLflow; NeMo-RL only."""

    experiment_name: str | None = absent()
    """Experiment."""
    run_id: str | None = absent()
    """Run to continue."""
    run_name: str | None = absent()
    """Name of the run."""
    tracking_uri: str | None = absent()
    """Server."""
    artifact_location: str | None = absent()
    """Where files go."""


class GpuMonitoring(Section):
    """How often GPU usage is recorded."""

    collection_interval: PositiveFloat = 10.0
    """Seconds between readings."""
    flush_interval: PositiveFloat = 10.0
    """Seconds between writes."""


class Logger(Section):
    """Section `logger`; metrics.jsonl is always written."""

    log_dir: str = "logs"
    """Folder; a relative one is inside the run folder."""
    num_val_samples_to_print: NonNegativeInt = 0
    """NeMo-RL: validation responses shown on the terminal."""
    wandb_enabled: bool = False
    """Weights & Biases, offline unless its own settings say otherwise."""
    tensorboard_enabled: bool = False
    """TensorBoard."""
    swanlab_enabled: bool = False
    """SwanLab."""
    mlflow_enabled: bool = False
    """MLflow."""
    monitor_gpus: bool = False
    """NeMo-RL: record GPU usage."""
    wandb: Wandb = Field(default_factory=Wandb)
    """Weights & Biases."""
    tensorboard: Tensorboard = Field(default_factory=Tensorboard)
    """TensorBoard."""
    swanlab: Swanlab = Field(default_factory=Swanlab)
    """SwanLab."""
    mlflow: Mlflow = Field(default_factory=Mlflow)
    """MLflow."""
    gpu_monitoring: GpuMonitoring = Field(default_factory=GpuMonitoring)
    """GPU usage."""


class Cluster(Section):
    """Section `cluster`: the number of ranks is num_nodes x gpus_per_node."""

    gpus_per_node: PositiveInt = 1
    """GPUs of a node; on a CPU machine, processes."""
    num_nodes: PositiveInt = 1
    """Nodes."""
    master_port_range_low: PositiveInt = 25000
    """Ports for rendezvous, from."""
    master_port_range_high: PositiveInt = 28000
    """Ports for rendezvous, to."""
    segment_size: PositiveInt | None = None
    """Nodes of an NVLink domain."""


class DataPlane(Section):
    """Section `data_plane`: NeMo-RL's TransferQueue; changes how batches travel, not what is trained."""

    enabled: bool = False
    """Switch."""
    impl: Literal["transfer_queue"] = "transfer_queue"
    """Implementation."""
    backend: Literal["simple", "mooncake_cpu"] = "simple"
    """Storage."""
    storage_capacity: PositiveInt = 1_000_000
    """Samples kept."""
    num_storage_units: PositiveInt = 2
    """Storage shards."""
    claim_meta_poll_interval_s: PositiveFloat = 0.5
    """Seconds between polls."""
    global_segment_size: PositiveInt = 549_755_813_888
    """Bytes, for mooncake_cpu."""
    local_buffer_size: PositiveInt = 68_719_476_736
    """Bytes, for mooncake_cpu."""
    controller_address: str | None = absent()
    """Controller."""
    ack_timeout_ms: PositiveInt | None = absent()
    """Milliseconds to an acknowledgement."""
    observability: dict[str, Any] | None = absent()
    """Metrics of the queue."""
