"""kMaX-DeepLab learns: the losses of final and auxiliary outputs fall, with a network that trains in seconds."""

from __future__ import annotations

import tensorflow as tf
from google.protobuf import text_format

from maxdl_tf.protos import experiment_pb2
from maxdl_tf.tasks.panoptic import PanopticTask
from tests.training import fakes
from tests.training.test_compiled_step import trainer_of

# The pixel and transformer decoders of the family, behind an encoder without attention.
EXPERIMENT = """
    model {
      variant: "kmax_tiny" num_slots: 6 mask_channels: 8 batch_norm_momentum: 0.9 sync_batch_norm: false
      semantic_branch: false attention { pixel_to_pixel: false }
      width { memory_channels: 16 transformer_width: 8 ffn_channels: 16 pixel_head_channels: 8 }
      pixel_decoder { widths: [ 16, 8, 8, 8, 8 ] blocks: [ 1, 1, 1, 1, 1 ] }
      transformer_decoder { blocks: [ 1, 1 ] }
    }
    loss {
      mask_id_weight: 1 instance_discrimination_weight: 0 pixel_contrastive_weight: 1 pixel_contrastive_samples: 20
    }
    train_dataset { file_pattern: "none" crop_size: 33 batch_size: 2 max_things: 3 }
    training { seed: 1 steps: 1000 optimizer { learning_rate: 1e-2 warmup_steps: 0 backbone_multiplier: 1 } }
"""


def test_the_losses_fall():
    task = PanopticTask(text_format.Parse(EXPERIMENT, experiment_pb2.Experiment()), for_training=True)
    task.dataset_info = fakes.DATASET_INFO
    trainer = trainer_of(task, fakes.train_batches(2, count=1))
    first = trainer.train(tf.constant(1))
    trainer.train(tf.constant(14))
    last = trainer.train(tf.constant(5))
    terms = ("pq_style_dice", "pq_style_class", "mask_id", "pixel_contrastive")
    wanted = {"total", *terms, *(f"auxiliary_{term}" for term in terms)}
    assert {name.removeprefix("losses/") for name in last if name.startswith("losses/")} == wanted
    assert last["losses/total"] < 0.9 * first["losses/total"]
    # The pq_style_dice may rise, because its weight is the probability of the right class, which rises.
    for name in wanted - {"pq_style_dice", "auxiliary_pq_style_dice"}:
        assert last[f"losses/{name}"] < first[f"losses/{name}"], name
