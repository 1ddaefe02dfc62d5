"""Trains and evaluates MaX-DeepLab.

--mode train trains to the end of the experiment's steps; train_and_eval also measures the panoptic quality on
eval_dataset on the way; eval measures the newest checkpoint once; continuous_eval measures each new one while
another process trains. A training that was interrupted goes on from its last checkpoint: give the same command again.
SIGTERM and Ctrl-C save the current step and end with exit status 143 and 130; a second Ctrl-C ends at once. Exit status
75: another worker is gone; start all of them again.
An experiment with `task: classification` pretrains a backbone; accuracy is measured then.

What is left in --model_dir:

    experiment.textproto     the experiment with its base, placeholders and overrides resolved
    ckpt-STEP.*              checkpoints
    train/, eval/            curves and pictures for TensorBoard
    metrics.json             figures of the last evaluation; of each one in eval/metrics-STEP.json
    run_info.json            versions, devices and git revision of each start
    nonfinite-STEP.npz       the batch of a step whose loss or gradient was not finite

Example:

    maxdl-train --config_file configs/shapes/tiny.textproto --mode train_and_eval --model_dir runs/shapes
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags

from maxdl_tf import class_table, command_line
from maxdl_tf.errors import UserError
from maxdl_tf.evaluate import check_shards

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from maxdl_tf.checkpoints.save_restore import Checkpoints
    from maxdl_tf.class_table import DatasetInfo
    from maxdl_tf.data.record_streams import DataService
    from maxdl_tf.models.max_deeplab import MaXDeepLab
    from maxdl_tf.protos import experiment_pb2
    from maxdl_tf.training.ema import WeightAverages
    from maxdl_tf.training.loop import Plan
    from maxdl_tf.training.optimizers import Optimizers
    from maxdl_tf.training.step import Trainer

FLAGS = flags.FlagValues()
_CONFIG_FILE = flags.DEFINE_string("config_file", None, "Experiment textproto.", required=True, flag_values=FLAGS)
_MODE = flags.DEFINE_enum(
    "mode",
    "train_and_eval",
    ["train", "eval", "train_and_eval", "continuous_eval"],
    "What to do.",
    flag_values=FLAGS,
)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Folder of the checkpoints, curves and metrics.", required=True, flag_values=FLAGS
)
_OVERRIDE = flags.DEFINE_multi_string(
    "override",
    [],
    "Textproto fragment merged over --config_file, such as 'training { steps: 100 }'.",
    flag_values=FLAGS,
)
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "auto",
    ["auto", "one_device", "mirrored", "multi_worker", "tpu"],
    "How a batch is spread over devices. auto: the TPU of --tpu, the hosts of TF_CONFIG, all GPUs, or the CPU.",
    flag_values=FLAGS,
)
_DATA_SERVICE = flags.DEFINE_string(
    "data_service",
    None,
    "Dispatcher of tf.data service, grpc://host:port, whose workers make the training batches; they read file_pattern "
    "themselves, and want at least as many shards as they are.",
    flag_values=FLAGS,
)
_TPU = flags.DEFINE_string("tpu", None, "Name or address of a TPU; local on a TPU host.", flag_values=FLAGS)

_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the command.


def main(argv: list[str]) -> int | None:
    del argv
    mode = _MODE.value
    trains, evaluates = mode.startswith("train"), mode != "train"
    model_dir = _MODEL_DIR.value
    experiment = load_and_check(trains, evaluates)
    with command_line.quiet_imports():
        import orbit

        from maxdl_tf import class_table, factory, tasks
        from maxdl_tf.checkpoints.save_restore import Checkpoints
        from maxdl_tf.training import distribution, run_info
        from maxdl_tf.training.ema import WeightAverages
        from maxdl_tf.training.interruption import StopSignals
        from maxdl_tf.training.loop import Loop
        from maxdl_tf.training.step import StopTraining

    dataset_info = class_table.of_dataset(experiment.train_dataset if trains else experiment.eval_dataset)
    task = tasks.task_of(experiment)
    strategy = distribution.create_strategy(_STRATEGY.value, _TPU.value)
    writes = distribution.is_chief(strategy)
    say = print_to_stderr if writes else lambda line: None
    check_strategy(experiment, strategy, trains, evaluates)

    say(f"building {experiment.model.variant!r} for {distribution.describe(strategy)}")
    set_seed(experiment)
    with strategy.scope():
        model = task.build_model(experiment, dataset_info, for_training=trains)
        global_step = orbit.utils.create_global_step()
        optimizers = factory.build_optimizers(experiment, model) if trains else None
    averages = None
    if trains and experiment.training.ema_decay:
        averages = WeightAverages(strategy, model, experiment.training.ema_decay)
    checkpoints = Checkpoints(
        model_dir,
        model=model,
        global_step=global_step,
        optimizers=optimizers.by_name if trains else None,
        averages=averages,
        keep=experiment.training.checkpoints_to_keep,
        writes=writes,
        say=say,
    )
    loop = Loop(global_step=global_step, model_dir=model_dir, checkpoints=checkpoints, averages=averages, writes=writes)
    evaluator = None
    if evaluates:
        evaluator = task.build_evaluator(
            experiment,
            dataset_info,
            strategy,
            model,
            show_picture=show_in_tensorboard,
            num_pictures=experiment.training.summary_images,
        )

    datasets = [experiment.train_dataset] * trains + [experiment.eval_dataset] * evaluates
    if mode == "continuous_eval":
        with factory.naming_bad_records(experiment, *datasets):
            loop.evaluate_continuously(
                evaluator, steps=experiment.training.steps, timeout_seconds=experiment.evaluation.timeout_seconds
            )
    elif mode == "eval":
        if checkpoints.restore_latest() is None:
            raise UserError(f"no checkpoint in {model_dir}; train first, or name another --model_dir")
        with factory.naming_bad_records(experiment, *datasets):
            loop.evaluate(evaluator)
    else:
        step = restore_or_start(experiment, model, optimizers, averages, checkpoints, say)
        if writes:
            prepare_model_dir(experiment, checkpoints)
            run = run_info.describe_run(_CONFIG_FILE.value, step=step, devices=distribution.describe(strategy))
            run_info.append_run(model_dir, run)
        experiment = with_seed_of_step(experiment, step)
        set_seed(experiment)
        service = data_service(experiment, step)
        trainer = build_trainer(
            experiment, dataset_info, strategy, model, optimizers, averages, global_step, say, service
        )
        with StopSignals() as signals:
            try:
                with distribution.noticing_lost_workers(strategy), factory.naming_bad_records(experiment, *datasets):
                    loop.train(trainer, plan_of(experiment), evaluator, signals.is_received)
            except StopTraining:
                # As of a process that the signal killed. Where there are several workers, another one may have got it.
                return 128 + (signals.received or signal.SIGTERM)
            except distribution.WorkerLostError as error:
                print_to_stderr(f"maxdl-train: {error}")
                return _TRY_AGAIN
    return None


def load_and_check(trains: bool, evaluates: bool) -> experiment_pb2.Experiment:
    """The experiment; what can be found wrong without TensorFlow is found here, in a second."""
    from maxdl_tf import config
    from maxdl_tf.files import disk_space
    from maxdl_tf.protos import training_pb2
    from maxdl_tf.training import addons

    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    if trains and experiment.training.optimizer.kind == training_pb2.OptimizerOptions.radam_lookahead:
        addons.require_addons()
    class_tables = {}
    for name, wanted in (("train_dataset", trains), ("eval_dataset", evaluates)):
        if wanted:
            check_shards(experiment, name)
            class_tables[name] = class_table.of_dataset(getattr(experiment, name))
    if len({(table.classes, table.label_divisor, table.ignore_label) for table in class_tables.values()}) > 1:
        raise UserError("train_dataset and eval_dataset have different class tables; they must be equal")
    if trains and _DATA_SERVICE.value:
        check_data_service(experiment)
    if trains and not experiment.training.steps:
        raise UserError(f"experiment {experiment.name!r} has no training.steps; say how long to train")
    if not trains and "://" not in _MODEL_DIR.value and not os.path.isdir(_MODEL_DIR.value):
        raise UserError(f"--model_dir {_MODEL_DIR.value} is not there; train first, or mend the path")
    disk_space.check_writable(_MODEL_DIR.value)
    return experiment


def check_data_service(experiment: experiment_pb2.Experiment) -> None:
    if not _DATA_SERVICE.value.startswith("grpc://"):
        raise UserError(f"--data_service {_DATA_SERVICE.value}: wanted grpc://host:port")
    if experiment.train_dataset.cache:
        raise UserError(
            "train_dataset.cache does not go with --data_service, whose workers get other files in each epoch; "
            "add --override 'train_dataset { cache: false }'"
        )


def check_strategy(
    experiment: experiment_pb2.Experiment, strategy: tf.distribute.Strategy, trains: bool, evaluates: bool
) -> None:
    """Raises UserError where the experiment cannot run on these devices."""
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync
    batch_size, parts = experiment.train_dataset.batch_size, experiment.training.accumulate_steps
    if trains and batch_size % (replicas * parts):
        wanted = f"the {replicas} replicas" + (f" times training.accumulate_steps {parts}" if parts > 1 else "")
        raise UserError(f"train_dataset.batch_size {batch_size} is not a multiple of {wanted}; make it one")
    is_compiled = experiment.training.jit_compile and not isinstance(strategy, tf.distribute.TPUStrategy)
    if trains and is_compiled and experiment.model.sync_batch_norm and replicas > 1:
        raise UserError(
            f"training.jit_compile does not go with model.sync_batch_norm on {replicas} replicas, which would have to "
            "meet inside of what is compiled; switch one of them off, or use --strategy one_device"
        )
    if evaluates and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise UserError(
            f"--mode {_MODE.value} does not run on several hosts; use --mode train there, and --mode continuous_eval "
            "on one more host"
        )


def with_seed_of_step(experiment: experiment_pb2.Experiment, step: int) -> experiment_pb2.Experiment:
    """The experiment, with another seed where a run goes on at `step`: it is to see other images than it saw before."""
    if not experiment.training.HasField("seed"):
        return experiment
    reseeded = type(experiment).FromString(experiment.SerializeToString())
    reseeded.training.seed += step
    return reseeded


def set_seed(experiment: experiment_pb2.Experiment) -> None:
    """Seeds initial weights, drop path and dropout; the data take the seed from the experiment themselves."""
    if experiment.training.HasField("seed"):
        from maxdl_tf.keras_api import keras

        keras.utils.set_random_seed(experiment.training.seed % 2**32)  # NumPy takes 32 bits.


def restore_or_start(
    experiment: experiment_pb2.Experiment,
    model: MaXDeepLab,
    optimizers: Optimizers,
    averages: WeightAverages | None,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
) -> int:
    """Puts weights into the model: model_dir's, else those of initial_checkpoint, else random; gives the step."""
    from maxdl_tf.checkpoints.initial_weights import load_initial_weights

    restored = checkpoints.restore_latest()
    if restored is not None:
        return restored.step
    if experiment.training.initial_checkpoint:
        load_initial_weights(model, experiment.training.initial_checkpoint, say=say)
        optimizers.restart()
        if averages is not None:
            averages.restart()
    return 0


def prepare_model_dir(experiment: experiment_pb2.Experiment, checkpoints: Checkpoints) -> None:
    """Clears away what a killed run left, makes sure that the checkpoints will fit, and leaves the experiment there."""
    import tensorflow as tf

    from maxdl_tf import config
    from maxdl_tf.checkpoints.save_restore import checkpoint_paths
    from maxdl_tf.files import disk_space

    checkpoints.remove_leftovers()
    # A new checkpoint is complete before the oldest goes.
    missing = experiment.training.checkpoints_to_keep + 1 - len(checkpoint_paths(checkpoints.directory))
    disk_space.check_space(checkpoints.directory, checkpoints.size, max(1, missing))
    with tf.io.gfile.GFile(os.path.join(checkpoints.directory, "experiment.textproto"), "w") as file:
        file.write(config.experiment_to_text(experiment))


def build_trainer(
    experiment: experiment_pb2.Experiment,
    dataset_info: DatasetInfo,
    strategy: tf.distribute.Strategy,
    model: MaXDeepLab,
    optimizers: Optimizers,
    averages: WeightAverages | None,
    global_step: tf.Variable,
    say: Callable[[str], None],
    service: DataService | None,
) -> Trainer:
    from maxdl_tf import tasks
    from maxdl_tf.training import distribution
    from maxdl_tf.training.nonfinite import NonFiniteSteps
    from maxdl_tf.training.step import StepOptions, Trainer

    task = tasks.task_of(experiment)
    return Trainer(
        strategy=strategy,
        model=model,
        loss=task.build_loss(experiment, dataset_info),
        optimizers=optimizers,
        batches=strategy.distribute_datasets_from_function(
            lambda context: task.build_train_batches(experiment, dataset_info, context, service)
        ),
        global_step=global_step,
        options=StepOptions(
            batch_size=experiment.train_dataset.batch_size,
            steps_per_loop=experiment.training.steps_per_loop,
            accumulate_steps=experiment.training.accumulate_steps,
            jit_compile=experiment.training.jit_compile,
        ),
        averages=averages,
        nonfinite=NonFiniteSteps(
            _MODEL_DIR.value,
            allowed=experiment.training.skip_nonfinite_steps,
            suffix=distribution.worker_suffix(strategy),
            say=say,
        ),
    )


def data_service(experiment: experiment_pb2.Experiment, step: int) -> DataService | None:
    """That of --data_service; this run's workers share its job, which runs of other experiments or steps do not."""
    if not _DATA_SERVICE.value:
        return None
    from maxdl_tf.data.record_streams import DataService

    digest = hashlib.sha256(experiment.SerializeToString(deterministic=True)).hexdigest()[:16]
    return DataService(_DATA_SERVICE.value, f"{_MODEL_DIR.value}@{step}:{digest}")


def show_in_tensorboard(image_id: str, picture: np.ndarray) -> None:
    import tensorflow as tf

    tf.summary.image(f"examples/{image_id}", picture[None])


def plan_of(experiment: experiment_pb2.Experiment) -> Plan:
    from maxdl_tf.training.loop import Plan

    return Plan(
        steps=experiment.training.steps,
        per_checkpoint=experiment.training.steps_per_checkpoint,
        per_summary=experiment.training.steps_per_summary,
        per_evaluation=experiment.evaluation.steps_between_evaluations,
    )


def print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
