"""Hold the ONNX files that ``build.py`` writes to what TensorFlow computes from the same weights.

    python parity.py check MODELS_DIRECTORY     needs onnxruntime; reads parity.npz beside this file
    python parity.py make WHEEL                 needs tensorflow and tf_keras; writes parity.npz

``make`` runs the wheel's own layers (``unet_generalized.py``), not those of ``build.py``, on two images per
network that this file computes, and keeps the probability at some voxels of each. So ``check``, and the
project's tests, need no TensorFlow. The numbers kept here were made with tensorflow 2.21.0 and tf_keras
2.21.0 on a CPU; that takes two minutes and 12 GB of memory.

TensorFlow computes in float64. In float32 its sums over millions of voxels are so coarse that its own
probabilities are off by up to 0.6 (``Graph.activate`` in ``graph.py`` says why).

Arrays are (x, y, z), float32; image values are those that the networks expect, from -0.5 to 0.5. A program
that imports this file puts its folder first in ``sys.path``, for ``build`` and ``weights``.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from build import LIVER, NETWORKS, Network
from numpy.typing import NDArray
from weights import open_wheel

FIXTURE = Path(__file__).with_name("parity.npz")

IMAGES = ("noise", "body")

POINTS = 200
"""Voxels kept per image: half spread evenly over the output, half where the probability is nearest to 0.5."""

TOLERANCE = 1e-4
"""Greatest difference of a probability that ``check`` accepts; 3.5e-5 was seen over all voxels on a CPU.

A GPU needs its convolutions in float32, not TF32, to keep it.
"""


def image(network: Network, kind: str) -> NDArray[np.float32]:
    """Compute one of the images; it is the same everywhere.

    Parameters
    ----------
    network
        Gives the size.
    kind
        ``noise``: each voxel for itself, uniform from -0.5 to 0.5. ``body``: an organ with three round
        lesions, in a body of softer tissue (liver network) or in nothing (lesion network), a little noisy.

    Returns
    -------
    image
        Shape (x, y, z) of the network's input, float32.
    """
    # The raw stream of a bit generator is fixed for ever; the distributions of numpy's Generator are not.
    raw = np.random.PCG64(20).random_raw(int(np.prod(network.input_size))).reshape(network.input_size)
    noise = (raw >> np.uint64(40)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)
    if kind == "noise":
        return noise

    # Places are in units of half the image: -1 to 1 along each axis.
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in network.input_size), indexing="ij")
    voxels = np.full(network.input_size, -0.5)
    if network.folder == LIVER.folder:
        voxels[(x / 0.95) ** 2 + (y / 0.8) ** 2 < 1] = 0.1
        organ = ((x - 0.35) / 0.5) ** 2 + ((y - 0.1) / 0.55) ** 2 + ((z - 0.1) / 0.5) ** 2 < 1
        lesions = ((0.5, 0.1, 0.2, 0.1), (0.2, 0.3, 0.0, 0.06), (0.4, -0.2, -0.1, 0.04))
    else:
        organ = (x / 0.9) ** 2 + (y / 0.8) ** 2 + (z / 0.9) ** 2 < 1
        lesions = ((0.1, 0.1, 0.2, 0.15), (-0.25, 0.2, 0.0, 0.08), (0.2, -0.25, -0.2, 0.06))
    voxels[organ] = 0.28
    for at_x, at_y, at_z, radius in lesions:
        voxels[(x - at_x) ** 2 + (y - at_y) ** 2 + (z - at_z) ** 2 < radius**2] = 0.12
    inside = voxels > -0.5
    voxels[inside] += 0.1 * noise[inside]
    return voxels.astype(np.float32)


def difference(models: Path, network: Network, kind: str) -> float:
    """Run an ONNX file on one of the images.

    Parameters
    ----------
    models
        Holds ``ct-liver/1/model.onnx`` and ``ct-liver-lesion/1/model.onnx``.
    network
        Which of the two.
    kind
        The image: one of ``IMAGES``.

    Returns
    -------
    worst
        Greatest difference of a probability from TensorFlow's at the voxels kept.
    """
    import onnxruntime  # here, as ``make`` runs where TensorFlow is and this need not be

    kept = np.load(FIXTURE)
    path = models / network.folder / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = image(network, kind)[np.newaxis, np.newaxis]
    probability = np.asarray(session.run(["probability"], {"input": batch})[0]).reshape(-1)
    name = f"{network.folder}.{kind}"
    return float(np.abs(probability[kept[f"{name}.voxels"]] - kept[f"{name}.probability"]).max())


def make(wheel: Path) -> None:
    """Write the fixture.

    Parameters
    ----------
    wheel
        The file of ``pyliverlesionseg`` 0.3.
    """
    kept: dict[str, NDArray[Any]] = {}
    for network in NETWORKS:
        model = reference(network, wheel)
        for kind in IMAGES:
            batch = image(network, kind)[np.newaxis, ..., np.newaxis].astype(np.float64)
            probability = model(batch, training=False).numpy().reshape(-1)
            evenly = np.linspace(0, probability.size - 1, POINTS // 2).astype(np.int64)
            unsure = np.argsort(np.abs(probability - 0.5), kind="stable")[: POINTS - evenly.size]
            voxels = np.concatenate([evenly, unsure])
            kept[f"{network.folder}.{kind}.voxels"] = voxels.astype(np.int32)
            kept[f"{network.folder}.{kind}.probability"] = probability[voxels].astype(np.float32)
    np.savez_compressed(FIXTURE, **kept)  # type: ignore[arg-type]


def reference(network: Network, wheel: Path) -> Any:
    """Build a network with the wheel's own code.

    Parameters
    ----------
    network
        Which of the two.
    wheel
        The file of ``pyliverlesionseg`` 0.3.

    Returns
    -------
    model
        A Keras model, channels last, float64.
    """
    pairs = [(pathway.down, pathway.up) for pathway in network.pathways]
    unet = types.ModuleType("unet_generalized")
    with open_wheel(wheel) as archive, tempfile.TemporaryDirectory() as folder, _old_keras() as tf_keras:
        tf_keras.backend.set_floatx("float64")
        source = archive.read("pyliverlesionseg/architectures/unet_generalized.py")
        exec(compile(source, "unet_generalized.py", "exec"), unet.__dict__)
        with contextlib.redirect_stdout(io.StringIO()):
            model = unet.create_unet_like_model(
                number_input_features=1,
                subsample_factors_per_pathway=[(network.factor**depth,) * 3 for depth in range(len(pairs))],
                kernel_sizes_per_pathway=[[[c.kernel for c in side] for side in pair] for pair in pairs],
                number_features_per_pathway=[[[c.features for c in side] for side in pair] for pair in pairs],
                output_size=list(network.output_size),
                padding="same" if network.padded else "valid",
                upsampling="linear" if network.interpolated else "copy",
                residual_connections=network.residual,
            )
        weights = Path(folder, "weights.hdf5")
        weights.write_bytes(archive.read(network.weights))
        model.load_weights(str(weights))
    return model


@contextlib.contextmanager
def _old_keras() -> Iterator[Any]:
    """Let the wheel's code of 2018 import today's tf_keras under the names of then; gives tf_keras.

    Four layers differ. Upsampling takes its size as integers, where the wheel has floats. Both poolings are
    written out, as TensorFlow has no kernel for them in float64. Convolutions go slab by slab: TensorFlow's
    own would take 25 GB in float64.
    """
    tf: Any = importlib.import_module("tensorflow")
    tf_keras: Any = importlib.import_module("tf_keras")

    class Conv3D(tf_keras.layers.Conv3D):  # type: ignore[misc]
        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            depth, *_ = extents = kernel.shape[:3]
            if self.padding == "same":
                inputs = tf.pad(inputs, [(0, 0), *((extent // 2, extent // 2) for extent in extents), (0, 0)])
            starts = range(0, inputs.shape[1] - depth + 1, 12)
            slabs = [inputs[:, start : start + 12 + depth - 1] for start in starts]
            return tf.concat([tf.nn.conv3d(slab, kernel, [1] * 5, "VALID") for slab in slabs], axis=1)

    def maximum_of_blocks(size: Any, _strides: Any) -> Any:
        i, j, k = (int(extent) for extent in size)

        def maximum(values: Any) -> Any:
            _, x, y, z, channels = values.shape
            blocks = tf.reshape(values, (-1, x // i, i, y // j, j, z // k, k, channels))
            return tf.reduce_max(blocks, axis=(2, 4, 6))

        return tf_keras.layers.Lambda(maximum)

    def mean_of_neighbours(size: Any, **_stride_1_valid: Any) -> Any:
        def mean(values: Any) -> Any:
            for axis, extent in enumerate(map(int, size), start=1):
                stop = values.shape[axis] - extent + 1
                shifts = [tf.range(shift, shift + stop) for shift in range(extent)]
                values = sum(tf.gather(values, shift, axis=axis) for shift in shifts) / extent
            return values

        return tf_keras.layers.Lambda(mean)

    def repeated(size: Any) -> Any:
        return tf_keras.layers.UpSampling3D(tuple(int(extent) for extent in size))

    layers = types.ModuleType("keras.layers")
    layers.__dict__.update({name: getattr(tf_keras.layers, name) for name in dir(tf_keras.layers)})
    layers.__dict__.update(
        Conv3D=Conv3D,
        MaxPooling3D=maximum_of_blocks,
        AveragePooling3D=mean_of_neighbours,
        UpSampling3D=repeated,
    )
    keras = types.ModuleType("keras")
    keras.__dict__.update(backend=tf_keras.backend, regularizers=tf_keras.regularizers)
    names = {"keras": keras, "keras.models": tf_keras.models, "keras.layers": layers}
    names |= {f"keras.layers.{part}": layers for part in ("convolutional", "advanced_activations", "normalization")}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield tf_keras
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def main() -> int:
    """Check or make, from the command line."""
    parser = argparse.ArgumentParser(description="Compare the ONNX files with TensorFlow.")
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="compare the ONNX files with the numbers kept beside this file")
    checking.add_argument("models", type=Path, help="the model repository")
    making = commands.add_parser("make", help="compute those numbers again, with TensorFlow")
    making.add_argument("wheel", type=Path, help="the wheel of pyliverlesionseg 0.3")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.wheel)
        return 0
    kept = True
    for network, kind in itertools.product(NETWORKS, IMAGES):
        worst = difference(arguments.models, network, kind)
        print(f"{network.folder}, {kind}: {worst:.1e}")
        kept = kept and worst <= TOLERANCE
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
