"""What one run is asked to do, as frozen dataclasses: every key of `conf/`, its meaning, unit and range.

The library reads these; only `fedmask.runs.compose` knows Hydra.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    name: str
    """The configuration's name in conf/model, for people: minilm, roberta-base, roberta-large, tiny."""
    hub: str | None
    """The name on the model hub, and in the local hub cache; null: the model is made from `geometry` alone."""
    path: str | None
    """A folder, or a hub name, of any encoder with a tokenizer; wins over `hub`."""
    weights: str
    """pretrained | random (seeded weights in this geometry; figures made with it say so)."""
    geometry: dict[str, int | float | str] | None
    """Arguments of the Hugging Face configuration class, with `model_type`; used where weights=random."""


@dataclass(frozen=True)
class DataConfig:
    source: str
    """demo (generated, offline) | tsv (files) | hub (the datasets library) | python (your own module)."""
    root: str | None
    """tsv: the folder of the task folders; python: the folder of your module; hub: a folder of saved data sets, or null."""
    tasks: tuple[str, ...] | None
    """Names of the tasks, in order; null: all that the source has (demo only)."""
    partition: str
    """iid | dirichlet (label skew) | natural (by task and, inside a task, by domain)."""
    alpha: float
    """Concentration of the Dirichlet partition; small is skewed. Above 0."""
    examples_per_client: int | None
    """Training examples a client (under dirichlet: on average); null: all there are. At least 1."""
    max_length: int
    """Tokens a text is cut to. 8 to 512."""


@dataclass(frozen=True)
class MaskConfig:
    rule: str
    """pafi | largest | random | hiwi | ffn_bias | bitfit | all."""
    density: float | None
    """Selected entries / parameters of the base model, a fraction; for pafi, largest and random only."""
    scope: str | None
    """global (one ranking over all tensors) | per_tensor; for pafi, largest and random only."""
    include: tuple[str, ...] | None
    """Name patterns (shell style) of candidate tensors; null: the encoder's 2-D weights."""
    exclude: tuple[str, ...]
    """Name patterns taken out of the candidates."""
    embeddings: bool
    """Whether `all` trains the embeddings too."""
    seed: int
    """Seed of the random rule."""
    rank: int
    """Width r of HiWi's networks. At least 1."""


@dataclass(frozen=True)
class ClientConfig:
    local_epochs: int
    """Passes over the client's examples in a round. At least 1."""
    batch_size: int
    """Examples a step. At least 1."""
    learning_rate: float
    """AdamW's rate for what the mask trains; by default the mask rule's own."""
    head_learning_rate: float
    """AdamW's rate for the task head."""
    weight_decay: float
    """AdamW's decoupled decay of the packed delta (towards the base weights). At least 0."""
    head: str
    """local (trained, kept, never sent) | shared (averaged over a task's clients) | frozen (seeded, never trained)."""


@dataclass(frozen=True)
class RunConfig:
    model: ModelConfig
    data: DataConfig
    mask: MaskConfig
    client: ClientConfig
    clients: int
    """Clients in the federation; client i has task i modulo the number of tasks. At least one a task."""
    clients_per_round: int | None
    """Clients drawn each round (seeded); null: all."""
    rounds: int
    """Rounds of training. At least 1."""
    baseline: str
    """none | frozen (encoder untouched, heads trained) | alone (each client by itself) | central (a task's data pooled)."""
    compare: tuple[str, ...]
    """Baselines to run after this run, with the same data, steps and scoring, into DIR/compare; shown side by side."""
    runtime: str
    """local (one process)."""
    seed: int
    """Seed of the whole run."""
    threads: int
    """CPU threads a process; null in conf: the machine's cores."""
    output: str
    """Folder of the run; null in conf: a new one under runs/."""
    overwrite: bool
    """Whether a folder that already holds a run may be replaced."""
