"""Several processes that train as one. `run` is always a lab.runs.Run."""

import tempfile
from itertools import zip_longest
from pathlib import Path


def whole_weights(run):
    """Name and value of every weight of the policy, one by one; of a sharded one gathered, where all
    processes meet."""
    for name, weight in run.accelerator.unwrap_model(run.model).named_parameters():
        yield name, weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def refresh(run) -> None:
    """Give the copy that samples the newest weights."""
    if run.sampler is not None:
        for copy, (_, weight) in zip(run.sampler.parameters(), whole_weights(run), strict=True):
            copy.data.copy_(weight.data)


def gather(run, rows: list) -> list:
    """The rows of all processes in the order of one process: row i of process p is number i * world + p."""
    from accelerate.utils import gather_object

    if run.accelerator.num_processes == 1:
        return rows
    absent = object()
    columns = zip_longest(*gather_object([rows]), fillvalue=absent)
    return [row for column in columns for row in column if row is not absent]


def share(run, rows: list) -> list:
    """The rows that are this process's part."""
    return rows[run.accelerator.process_index :: run.accelerator.num_processes]


def join(run, rows: list) -> None:
    """Put the rows of all processes into the memory, in the order of the batch, on every process."""
    import torch

    if rows := [row for row in gather(run, rows) if row is not None]:
        ids, *columns = zip(*rows)
        run.memory.remember(list(ids), *(torch.stack(column).to(run.device) for column in columns))


def fit_memory(run, seed: int, drift) -> list[list[dict]]:
    """Train the reward networks once, on the first process, and give the same to all; their histories."""
    from accelerate.utils import broadcast_object_list

    main, histories = run.accelerator.is_main_process, []
    if main:
        histories = run.memory.fit(seed, without=drift.ids)
    if run.accelerator.num_processes > 1:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "memory.pt"
            if main:
                run.memory.save(file)
            file.write_bytes(broadcast_object_list([file.read_bytes() if main else None])[0])
            run.memory.load(file, run.device)
    return histories


def leave(run) -> None:
    """End what the processes share, first the wrapped model: where it outlives its process group, it ends the
    group's threads holding Python's lock, which one of them may be waiting for, and the run never ends (torch
    2.13; findings/model_outlives_its_process_group.sh)."""
    run.model = run.optimizer = None
    run.accelerator.end_training()


def tell(text: str) -> None:
    """Say something in one line, above the progress bars."""
    from tqdm import tqdm

    tqdm.write(text)
