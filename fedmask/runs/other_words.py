"""Words of other programs and of papers for keys of this one: what a person types first is told by its name here."""

from collections.abc import Collection, Mapping

_BY_KEY = {
    "client.learning_rate": "lr eta step_size learningrate client_lr local_lr lr_client base_lr",
    "client.head_learning_rate": "head_lr classifier_lr lr_head",
    "client.weight_decay": "wd decay l2",
    "client.local_epochs": "epoch epochs num_epochs n_epochs max_epochs num_train_epochs local_epoch num_local_epochs",
    "client.batch_size": "bs batch batchsize train_batch_size local_batch_size per_device_train_batch_size",
    "server.learning_rate": "server_lr global_lr lr_server",
    "server.combine": "strategy aggregation aggregator aggregation_rule",
    "server.clip_norm": "clip clipping max_grad_norm",
    "server.min_replies": "min_fit_clients min_train_nodes min_available_clients min_available_nodes",
    "server.timeout_seconds": "timeout round_timeout",
    "rounds": "round num_rounds n_rounds num_server_rounds server_rounds comm_rounds communication_rounds max_rounds",
    "clients": "num_clients n_clients total_clients num_supernodes num_nodes num_users num_parties num_partitions",
    "clients_per_round": "fraction_fit fraction_train client_fraction sample_fraction participation cohort_size "
    "num_clients_per_round clients_per_iter",
    "model.path": "model_name model_name_or_path model_path model_id base_model backbone encoder hf_model "
    "pretrained_model_name_or_path",
    "model.dtype": "precision torch_dtype bf16 fp16",
    "data": "dataset datasets dataset_name data_source",
    "data.tasks": "task task_name task_names",
    "data.root": "data_dir data_path data_folder dataset_dir dataset_path train_file",
    "data.max_length": "max_len maxlen max_seq_len max_seq_length seq_len sequence_length",
    "data.examples_per_client": "num_samples num_examples samples_per_client max_train_samples",
    "data.alpha": "dirichlet_alpha concentration",
    "data.partition": "partitioner partition_method iid non_iid noniid",
    "mask": "method peft peft_method rule mask_rule",
    "mask.density": "sparsity keep_ratio",
    "mask.rank": "lora_r lora_rank",
    "codec": "compression compressor quantization quantize",
    "output": "out out_dir outdir output_dir output_folder output_path save_dir save_path log_dir logdir run_dir",
    "overwrite": "force overwrite_output_dir",
    "resume": "resume_from resume_from_checkpoint checkpoint ckpt",
    "seed": "random_seed random_state rng_seed",
    "device": "gpu gpus use_gpu use_cuda cuda no_cuda",
    "workers": "num_workers n_workers n_jobs jobs num_processes",
    "threads": "num_threads n_threads",
    "score_every": "eval_every evaluate_every eval_steps eval_interval",
    "runtime": "backend engine",
}
OTHER_WORDS: Mapping[str, str] = {word: key for key, words in _BY_KEY.items() for word in words.split()}
"""In small letters, with _ between words; `data`, `mask` and `codec` are groups of conf/."""

OTHER_VALUES: Mapping[str, str] = {
    "gpu": "cuda",
    "bf16": "bfloat16",
    "fp32": "float32",
    "fedavg": "mean",
    "average": "mean",
    "full": "all",
}
"""Values likewise, of whatever key has the word among its own."""


def as_key(word: str) -> str:
    """A word as keys are written, whatever its case, dashes before it and hyphens in it."""
    return word.strip().lstrip("-").lower().replace("-", "_")


def meant_by(word: str, known: Collection[str]) -> list[str]:
    """The known keys that a word spells in another way, is the last part of, or is another program's word for.

    With a section before it, as in server.lr, the section's own key of that name is meant.
    """
    key = as_key(word)
    if key in known:
        return [key]
    section, _, last = key.rpartition(".")
    if of_that_name := [name for name in known if name.rpartition(".")[2] == last]:
        return of_that_name
    meant = OTHER_WORDS.get(last)
    if meant is None:
        return []
    in_section = f"{section}.{meant.rpartition('.')[2]}"
    return [in_section if in_section in known else meant]
