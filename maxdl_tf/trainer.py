"""Trains and evaluates MaX-DeepLab.

--mode selects what a run does:

    train             trains to the last step of the experiment
    train_and_eval    trains, and measures panoptic quality on eval_dataset in between and at the end
    eval              measures the latest checkpoint
    continuous_eval   measures each new checkpoint while another process trains

The same command resumes an interrupted run from its last checkpoint. SIGTERM and Ctrl-C save the current step and exit
with status 143 and 130; a second Ctrl-C exits at once. Exit status 75 means that another worker has ended: start all
workers again. An experiment with `task: classification` pretrains a backbone and is measured by its accuracy.

--model_dir holds:

    experiment.textproto     the experiment with its base and overrides; placeholders remain
    dataset_info.textproto   its class table
    ckpt-STEP.*              checkpoints
    best/                    checkpoint of the evaluation with the highest PQ, or top-1 accuracy
    train/, eval/            curves and pictures for TensorBoard
    metrics.json             metrics of the last evaluation; eval/metrics-STEP.json has those of each one
    run_info.json            command line, versions, devices and git revision of each start
    nonfinite-STEP.npz       the batch of a step whose loss or gradient was not finite

Example:

    maxdl-train --config_file configs/shapes/max_deeplab_tiny_81.textproto --mode train_and_eval \\
        --model_dir runs/shapes
"""

from __future__ import annotations

import contextlib
import signal
from typing import NamedTuple

from absl import flags

from maxdl_tf import command_flags, command_line


class Mode(NamedTuple):
    """Whether a run trains, and whether it evaluates."""

    trains: bool
    evaluates: bool


_MODES = {
    "train": Mode(trains=True, evaluates=False),
    "eval": Mode(trains=False, evaluates=True),
    "train_and_eval": Mode(trains=True, evaluates=True),
    "continuous_eval": Mode(trains=False, evaluates=True),
}
_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the command.

FLAGS = flags.FlagValues()
_CONFIG_FILE, _OVERRIDE = command_flags.define_experiment(FLAGS, "training { steps: 100 }")
_MODE = flags.DEFINE_enum("mode", "train_and_eval", list(_MODES), "Mode of the run.", flag_values=FLAGS)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Folder of the checkpoints, curves and metrics.", required=True, flag_values=FLAGS
)
_STRATEGY = command_flags.define_strategy(FLAGS, "multi_worker", "tpu")
_DATA_SERVICE = flags.DEFINE_string(
    "data_service",
    None,
    "Address of a tf.data service dispatcher, grpc://host:port, whose workers make the training batches. They read "
    "file_pattern themselves and need at least one shard each.",
    flag_values=FLAGS,
)
_TPU = flags.DEFINE_string("tpu", None, "Name or address of a TPU. On a TPU host: local.", flag_values=FLAGS)


def main(argv: list[str]) -> int | None:
    del argv
    from maxdl_tf import config
    from maxdl_tf.files.folder_lock import FolderLock
    from maxdl_tf.tasks import checks

    mode, model_dir = _MODES[_MODE.value], _MODEL_DIR.value
    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    written_as = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value, keep_placeholders=True)
    checks.check_run(experiment, model_dir, **mode._asdict(), data_service=_DATA_SERVICE.value)
    with command_line.quiet_imports():
        from maxdl_tf.tasks.run import Run, print_to_stderr
        from maxdl_tf.training import distribution
        from maxdl_tf.training.interruption import StopSignals
        from maxdl_tf.training.step import StopTraining

    if mode.trains:
        distribution.set_intra_op_threads(experiment.training.intra_op_threads)
    strategy = distribution.create_strategy(_STRATEGY.value, _TPU.value)
    if not mode.trains:
        this_run = Run(experiment, model_dir, strategy, **mode._asdict())
        if _MODE.value == "eval":
            this_run.evaluate()
        else:
            this_run.evaluate_continuously()
        return None
    # One lock for all workers of a run.
    lock = FolderLock(model_dir, f"--model_dir {model_dir}") if distribution.is_chief(strategy) else None
    with lock or contextlib.nullcontext():
        this_run = Run(experiment, model_dir, strategy, **mode._asdict(), written_as=written_as, lock=lock)
        trainer = this_run.start_training(_CONFIG_FILE.value, _DATA_SERVICE.value)
        with StopSignals() as signals:
            try:
                this_run.train(trainer, signals.is_received)
            except StopTraining:
                # The exit status of a process killed by this signal. Another worker may have received it.
                return 128 + (signals.received or signal.SIGTERM)
            except distribution.WorkerLostError as error:
                print_to_stderr(f"maxdl-train: {error}")
                return _TRY_AGAIN
    return None


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
