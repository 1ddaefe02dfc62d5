"""`get_config` and `from_config` for layers, read off the constructor's arguments."""

from __future__ import annotations

import inspect
from typing import Any

from maxdl_tf.keras_api import computing_in, keras


class Configured:
    """Mixin whose `get_config` holds the constructor's arguments; comes before the Keras class among the bases.

    Arguments may be numbers, strings, tuples, layers, initializers and objects that have `get_config`. A layer made by
    `from_config` has the same shape, not the same weights: build it, then call `set_weights`.
    """

    def __new__(cls, *args, **kwargs):
        layer = super().__new__(cls, *args, **kwargs)
        # Copying constructs without arguments and fills in the attributes afterwards.
        arguments = inspect.signature(cls.__init__).bind_partial(layer, *args, **kwargs).arguments
        arguments = {name: value for name, value in arguments.items() if name not in ("self", "kwargs")}
        # Past Keras' tracking, which would give layers among the arguments a second path in checkpoints.
        object.__setattr__(layer, "_constructor_arguments", arguments)
        return layer

    def get_config(self) -> dict[str, Any]:
        config = keras.layers.Layer.get_config(self)  # Name, trainable, dtype.
        for name, value in self._constructor_arguments.items():
            config[name] = keras.saving.serialize_keras_object(value)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]):
        arguments = dict(config)
        dtype = arguments.pop("dtype", None) or "float32"
        for name, value in arguments.items():
            arguments[name] = keras.saving.deserialize_keras_object(value)
        # Layers inside this one take the policy that it was made under.
        with computing_in(dtype["config"]["name"] if isinstance(dtype, dict) else dtype):
            return cls(**arguments)


class Layer(Configured, keras.layers.Layer):
    """A Keras layer that can be made again from its config."""

    def own_precision(self):
        """Context in which `build` makes layers, so that they compute by this layer's policy."""
        return computing_in(self.dtype_policy.name)
