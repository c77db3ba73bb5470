"""Export: Paddle Inference files and ONNX, each of them run and compared with the model before it appears.

===========  =======================================================  =======================================
format       files                                                    metadata
===========  =======================================================  =======================================
``paddle``   ``NAME.json`` (Paddle 2: ``NAME.pdmodel``), the          ``NAME.meta.json``
             program, and ``NAME.pdiparams``, its weights
``onnx``     ``NAME.onnx``                                            inside, in ``metadata_props``, as JSON
===========  =======================================================  =======================================

The metadata name the inputs and outputs and say what the network is (``arch``, ``config``), how images are prepared
for it (``preprocessing``), what its outputs mean (``labels``) and which version of this package wrote the file.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Literal, NamedTuple, Optional

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.static import InputSpec

from paddle_dense import __version__
from paddle_dense.data import Preprocessing
from paddle_dense.deploy.fused_layers import copied_for_experts, fused_sfr
from paddle_dense.deploy.fusing import check_form
from paddle_dense.deploy.judging import TOLERANCE, Answers, judge
from paddle_dense.errors import WeightsError, naming
from paddle_dense.evaluation import as_arrays, double_precision, evaluation, on_cpu, paddle_in_double_precision
from paddle_dense.files.atomic import PathLike, move_together, temporary_folder, unwritable
from paddle_dense.files.sidecar import names_in
from paddle_dense.files.weights import open_file, parse_json, read_bounded
from paddle_dense.layers import CondConv2D, CondenseLGC, CondenseSFR, RoutedCondConv2D
from paddle_dense.prediction import Classifier
from paddle_dense.surgery import Rules, rewrite

Runner = Callable[[np.ndarray], list[np.ndarray]]
Shape = Sequence[Optional[int]]  # of a batch; None for a side that may be any number
Describe = Callable[[Sequence[str]], dict[str, Any]]  # from the names of the outputs to the metadata

INPUT_NAME = "image"
_OPSET = 17
_DEFAULT_SIZE = 224
_MOST_METADATA = 1 << 24  # bytes
_EXTRA = "pip install paddle_dense[deploy]"
# Paddle 3 writes its programs as JSON, Paddle 2 as protobuf.
PROGRAM_SUFFIX = ".pdmodel" if paddle.__version__.startswith("2.") else ".json"


class Exported(tuple[Path, ...]):
    """The files of an export, the model itself first.

    Attributes:
        max_rel_diff: largest difference between what the file and the model answered, relative to the answers' scale;
            in float64 where float32 cannot decide, see `paddle_dense.deploy.judging`.
    """

    max_rel_diff: float


def export(
    model: nn.Layer,
    path: PathLike,
    format: str = "paddle",
    input_size: int | None = None,
    batch: int | None = None,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model as Paddle Inference files or as ONNX, once the written file answers as the model does.

    Args:
        model: a network in evaluation mode, fused or condensed; it stays as it is.
        path: the files' name without a suffix, ``"out/cdnv2_a"``; what stands there is replaced.
        format: ``"paddle"`` or ``"onnx"``.
        input_size: side of the images in pixels; None for any height and width.
        batch: images in a batch; None for any number.
        labels: name of each class, for the metadata, in place of the model's own `classes`.
        metadata: further entries for the metadata, as JSON takes them.

    Returns:
        The files, the model itself first; and how far their answers are from the model's.

    Raises:
        ValueError: an argument cannot be used, or the model is in training mode or in the trained form.
        WeightsError: the model cannot be exported, or the file does not answer as the model does; nothing is written.
        ImportError: a package that the format needs is not installed.
    """
    target = _target(path, format)
    way = _FORMATS[format]
    for name, value in (("input_size", input_size), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be 1 or more, or None for any")
    check_form(model, "export")
    labels = getattr(model, "classes", None) if labels is None else labels
    described = _describe(model, input_size, labels, metadata)
    with on_cpu(), temporary_folder(target) as folder, _asking_the_disk(folder, target, model):
        # A copy that can be rewritten, the root included, and that computes where float32 is float32.
        original = nn.Sequential(copy.deepcopy(model)).to(device="cpu")
        network = copy.deepcopy(original)
        batches = _random_batches(model, input_size, batch)
        with evaluation(network):
            expected = [as_arrays(network(paddle.to_tensor(x))) for x in batches]
        if labels is not None and expected[0][0].shape[1:] != (len(labels),):
            raise ValueError(
                f"there are {len(labels)} labels for outputs {list(expected[0][0].shape[1:])}: give one for each class"
            )
        shape = [batch, batches[0].shape[1], input_size, input_size]
        written = way.write(
            network, folder / target.name, shape, lambda names: {**described, **_ports(names, shape, expected)}
        )
        try:
            with quiet():
                answers = [[run(x) for x in batches] for run in way.load(written)]
        except Exception as error:  # whatever an engine raises
            raise WeightsError(
                f"{target}: the exported file does not run, so nothing is written: give another format, a static batch "
                f"and input_size, or the network before it was fused"
            ) from error

        def exactly() -> tuple[Answers, Answers]:
            exact, truth = _in_float64(original, way.rules, folder / f"{target.name}.exact", shape, batches)
            return exact * len(answers), truth * len(answers)

        found = [answer for of_engine in answers for answer in of_engine]
        worst, warning = judge(found, expected * len(answers), exactly)
        if not worst <= TOLERANCE:
            raise WeightsError(
                f"{target}: the exported file differs from the model by {worst:.1e} of its outputs' scale "
                f"(allowed: {TOLERANCE:.0e}), so nothing is written: choose another format or version of Paddle"
            )
        exported = Exported(move_together(written, target.parent))
    exported.max_rel_diff = worst
    if warning:
        warnings.warn(warning, UserWarning, stacklevel=2)
    return exported


def _in_float64(
    model: nn.Sequential, rules: Rules, stem: Path, shape: Shape, batches: Sequence[np.ndarray]
) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """What the model's program and the model itself answer in float64.

    The program is run without oneDNN, which knows float32 alone; and ONNX Runtime has no convolution in float64, so for
    both formats it is Paddle's.
    """
    with double_precision():
        exact = nn.Sequential(paddle_in_double_precision(model[0]))
        images = [x.astype("float64") for x in batches]
        with evaluation(exact):
            truth = [as_arrays(exact(paddle.to_tensor(x))) for x in images]
        run = load_paddle(_write_program(exact, stem, shape, rules, "float64"), optimise=False)
        with quiet():
            return [run(x) for x in images], truth


# What is exported


def _describe(
    model: nn.Layer, input_size: int | None, labels: Sequence[str] | None, metadata: Mapping[str, Any] | None
) -> dict[str, Any]:
    described: dict[str, Any] = {"paddle_dense": __version__}
    if hasattr(model, "config"):
        described.update(arch=model.arch, config=model.config)
    preprocessing = getattr(model, "preprocessing", None)
    if preprocessing is not None:
        if input_size is not None:
            resize = preprocessing.resize * input_size // preprocessing.input_size
            preprocessing = replace(preprocessing, input_size=input_size, resize=resize)
        described["preprocessing"] = preprocessing.as_dict()
    if labels is not None:
        described["labels"] = list(labels)
    described.update(metadata or {})
    try:
        return json.loads(json.dumps(described))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata are not what JSON can hold ({error}): give texts and numbers") from None


def _random_batches(model: nn.Layer, input_size: int | None, batch: int | None) -> list[np.ndarray]:
    """Two batches that differ in whatever may differ."""
    channels = getattr(model, "config", {}).get("in_channels", 3)
    size = getattr(model, "input_size", _DEFAULT_SIZE) if input_size is None else input_size
    other = (size, size) if input_size else (size + 32, size + 64)
    random = np.random.default_rng(0)
    return [
        random.standard_normal((images, channels, *sides), np.float32)
        for images, sides in ((batch or 1, (size, size)), (batch or 2, other))
    ]


# Layers that a format has no operator for, and equals that it has


class _Gather(nn.Layer):
    """Channels in another order: [N, C, H, W] -> [N, len(index), H, W]."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return paddle.index_select(x, self.index, axis=1)


def _plain_lgc(layer: CondenseLGC) -> nn.Layer:
    """The shuffle at its end as a gather: ONNX has no channel shuffle."""
    order = paddle.arange(layer.conv.weight.shape[0]).reshape([layer.groups, -1]).t().flatten()
    return nn.Sequential(_Gather(layer.index), layer.norm, layer.activation, layer.conv, _Gather(order))


# Paddle Inference 3.3 crashes where it fuses a LeakyReLU into the convolution before it, and paddle2onnx 2.1 loses the
# slope of one; `_leaky` gives it back to ONNX.
_FOR_PADDLE: Rules = {CondenseSFR: fused_sfr, nn.LeakyReLU: lambda layer: nn.PReLU(1, layer._negative_slope)}
_FOR_ONNX: Rules = {
    **_FOR_PADDLE,
    CondenseLGC: _plain_lgc,
    CondConv2D: copied_for_experts,
    RoutedCondConv2D: copied_for_experts,
}


# Paddle Inference


def _write_paddle(network: nn.Sequential, stem: Path, shape: Shape, describe: Describe) -> tuple[Path, ...]:
    files = _write_program(network, stem, shape, _FOR_PADDLE)
    described = describe(_predictor(files).get_output_names())
    metadata = stem.with_name(f"{stem.name}.meta.json")
    metadata.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return (*files, metadata)


def _write_program(
    network: nn.Sequential, stem: Path, shape: Shape, rules: Rules, dtype: Literal["float32", "float64"] = "float32"
) -> tuple[Path, Path]:
    """Trace the network into ``STEM.json`` (or ``.pdmodel``) and ``STEM.pdiparams``."""
    with paddle.no_grad():
        rewrite(network, rules)
    _forget_aborted_traces()
    try:
        with quiet():
            spec = InputSpec(list(shape), dtype, INPUT_NAME)
            paddle.jit.save(paddle.jit.to_static(network, input_spec=[spec], full_graph=True), str(stem))
    except Exception as error:  # anything may come out of a network's own code
        # Among the lines of a traceback through Paddle's compiler is the one that tells the error itself.
        lines = re.findall(r"^\s*(\w*Error: .*)", str(error), re.MULTILINE) or [type(error).__name__]
        raise WeightsError(
            f"{type(network[0]).__name__} cannot be traced into a static program ({lines[-1]}): "
            f"use tensor operations alone in its forward, or give a static batch and input_size"
        ) from error
    return stem.with_name(stem.name + PROGRAM_SUFFIX), stem.with_name(f"{stem.name}.pdiparams")


def _forget_aborted_traces() -> None:
    """Paddle 3 keeps what an aborted trace recorded under its program's address, where a later program may stand."""
    with suppress(ImportError, AttributeError):  # other versions
        from paddle.jit.dy2static.parameter_recorder import _global_parameter_recorder as recorder

        recorder.params_dict.clear()
        recorder.tensor2value.clear()


def load_paddle(
    files: Sequence[Path], threads: int | None = None, onednn: bool = False, optimise: bool = True
) -> Runner:
    """Paddle Inference on the CPU, as a function from a batch of images to the list of outputs.

    Args:
        files: the program, then its weights.
        threads: of its mathematics library; as many as Paddle has chosen unless given.
        onednn: let oneDNN compute. Paddle 3 does so unless `Config.disable_mkldnn` is called, although networks that
            are fused for Paddle are faster without.
        optimise: let Paddle rewrite the program, of which Paddle 2 knows no other way than float32.
    """
    predictor = _predictor(files, threads, onednn, optimise)
    entry = predictor.get_input_handle(predictor.get_input_names()[0])
    exits = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def run(x: np.ndarray) -> list[np.ndarray]:
        entry.reshape(x.shape)
        entry.copy_from_cpu(x)
        predictor.run()
        return [handle.copy_to_cpu() for handle in exits]

    return run


def _predictor(files: Sequence[Path], threads: int | None = None, onednn: bool = False, optimise: bool = True) -> Any:
    from paddle.inference import Config, create_predictor

    config = Config(str(files[0]), str(files[1]))
    config.disable_gpu()
    config.disable_glog_info()
    if onednn:
        config.enable_mkldnn()
    else:
        config.disable_mkldnn()
    config.switch_ir_optim(optimise)
    if threads:
        config.set_cpu_math_library_num_threads(threads)
    with quiet():
        return create_predictor(config)


# ONNX

# An operator that paddle2onnx does not know ends the whole process, so it gets one of its own.
_CONVERT = """
import sys, paddle2onnx
program, weights, target, opset = sys.argv[1:]
content = paddle2onnx.export(program, weights, None, opset_version=int(opset), verbose=False)
open(target, "wb").write(content)
"""


def _write_onnx(network: nn.Sequential, stem: Path, shape: Shape, describe: Describe) -> tuple[Path, ...]:
    for package in ("onnx", "onnxruntime", "paddle2onnx"):
        _need(package)
    kind = type(network[0]).__name__
    program = _write_program(network, stem, shape, _FOR_ONNX)
    raw = stem.with_name(f"{stem.name}.raw")
    command = [sys.executable, "-c", _CONVERT, *map(str, program), str(raw), str(_OPSET)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode or not raw.exists():
        raise WeightsError(
            f"paddle2onnx cannot convert this {kind}, most often because of an operator that it does not know: "
            f'export it with format="paddle", or fuse it first'
        ) from RuntimeError(done.stdout.decode(errors="replace"))
    target = stem.with_name(f"{stem.name}.onnx")
    _finish_onnx(raw, target, describe)
    return (target,)


def _finish_onnx(raw: Path, target: Path, describe: Describe) -> None:
    """Give inputs, outputs and their sides readable names, drop constants that nothing reads, add the metadata."""
    import onnx

    model = onnx.load(str(raw))
    graph = model.graph
    count = len(graph.output)
    names = ["output"] if count == 1 else [f"output_{number}" for number in range(count)]
    described = describe(names)
    renamed = dict(zip([output.name for output in graph.output], names))
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value, port in zip([*graph.input, *graph.output], [*described["inputs"], *described["outputs"]]):
        value.CopyFrom(onnx.helper.make_tensor_value_info(port["name"], onnx.TensorProto.FLOAT, port["shape"]))
    _leaky(graph)
    used = _names_read(graph)
    for parts, is_used in (
        (graph.node, lambda node: used.intersection(node.output)),
        (graph.initializer, lambda constant: constant.name in used),
    ):
        kept = [part for part in parts if is_used(part)]
        del parts[:]
        parts.extend(kept)
    model.producer_name, model.producer_version = "paddle_dense", __version__
    entries = {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def _leaky(graph: Any) -> None:
    """Turn each PRelu of one slope into the LeakyRelu that engines fuse into the convolution before it."""
    import onnx

    constants = {constant.name: constant for constant in graph.initializer}
    constants.update((node.output[0], node.attribute[0].t) for node in graph.node if node.op_type == "Constant")
    source = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type != "PRelu":
            continue
        slope = node.input[1]
        while slope in source and source[slope].op_type in ("Identity", "Reshape", "Unsqueeze"):
            slope = source[slope].input[0]
        slopes = set(onnx.numpy_helper.to_array(constants[slope]).flat) if slope in constants else set()
        if len(slopes) == 1:
            node.op_type = "LeakyRelu"
            del node.input[1]
            node.attribute.append(onnx.helper.make_attribute("alpha", float(slopes.pop())))


def _names_read(graph: Any) -> set[str]:
    """Names that a graph, or a branch in it, reads or returns."""
    names = {output.name for output in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _names_read(attribute.g)
    return names


def load_onnx(files: Sequence[Path], threads: int | None = None) -> Runner:
    """ONNX Runtime on the CPU, as a function from a batch of images to the list of outputs.

    Args:
        files: the model.
        threads: that work on one operator; as many as there are cores unless given.
    """
    return _runner(_session(files[0], threads))


def load_openvino(files: Sequence[Path], threads: int | None = None) -> Runner:
    """OpenVINO on the CPU, as a function from a batch of images to the list of outputs; arguments as of `load_onnx`."""
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # it would tie the threads of several processes to the same cores
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    network = openvino.Core().compile_model(str(files[0]), "CPU", settings)
    return lambda x: list(network([x]).values())


def _session(path: Path, threads: int | None) -> Any:
    onnxruntime = _need("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _runner(session: Any) -> Runner:
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def load_exported(path: PathLike, threads: int | None = None) -> Classifier:
    """What `export` wrote, run by Paddle Inference or ONNX Runtime, for `paddle_dense.predict`.

    Args:
        path: ``NAME.onnx``; or any of Paddle Inference's files, or their name without a suffix.
        threads: of the engine; as many as it chooses unless given.

    Raises:
        WeightsError: a file is missing, damaged, or was not written here.
        ImportError: ONNX Runtime is not installed.
    """
    format = "onnx" if str(path).endswith(".onnx") else "paddle"
    files = exported_files(path, format)
    for file in files:
        with naming(file), open_file(file):
            pass
    with naming(files[-1]):
        told = None if format == "onnx" else read_bounded(files[-1], _MOST_METADATA)
    try:
        with quiet():
            if told is None:
                session = _session(files[0], threads)
                run, told = _runner(session), session.get_modelmeta().custom_metadata_map
            else:
                run = load_paddle(files, threads)
    except ImportError:
        raise
    except Exception as error:  # whatever an engine raises
        raise WeightsError(f"{files[0]}: cannot be run ({type(error).__name__}): export the network again") from error
    try:
        preprocessing, labels, batch = _read_metadata(told)
    except (LookupError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{files[-1]}: does not say how images are prepared for it: export it with python -m paddle_dense.deploy"
        ) from error
    return Classifier(os.fspath(path), lambda images: run(images)[0], preprocessing, labels, batch)


def _read_metadata(told: bytes | Mapping[str, str]) -> tuple[Preprocessing, list[str] | None, int | None]:
    """Preprocessing, class names and the fixed size of a batch, from the metadata of an export.

    Args:
        told: the JSON, or its entries, each of which is JSON or a text.
    """
    entries = ("inputs", "preprocessing", "labels")
    if isinstance(told, bytes):
        whole = parse_json(told)
    else:
        whole = {key: parse_json(told[key]) for key in entries if key in told}
    batch, channels, *_ = whole["inputs"][0]["shape"]
    preprocessing = Preprocessing.read(whole["preprocessing"], channels)
    labels = whole.get("labels")
    if labels is not None and names_in({"classes": labels}, len(labels)) is None:
        raise ValueError("labels that are no names")
    return preprocessing, labels, batch if type(batch) is int and batch > 0 else None


def is_exported(path: PathLike) -> bool:
    """Whether `export` would have written a file of this name: ``.onnx``, or one of Paddle Inference's three."""
    target = Path(path)
    if target.suffix == ".onnx":
        return True
    *_, ending = _FORMATS["paddle"].suffixes
    return bool(target.name) and _target(target, "paddle").with_name(_target(target, "paddle").name + ending).is_file()


def _need(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise ImportError(f"ONNX needs {package}: {_EXTRA}") from None
    except ValueError as error:  # paddle2onnx 2 on Paddle 2
        raise ImportError(
            f"this {package} cannot be used ({error}): install one for Paddle {paddle.__version__}"
        ) from None


def _ports(names: Sequence[str], shape: Shape, expected: list[list[np.ndarray]]) -> dict[str, Any]:
    """Names and shapes of what goes in and out; a side that may be any number has a name instead of one."""
    sides = ("batch", "channels", "height", "width")
    inputs = [{"name": INPUT_NAME, "shape": [side or name for side, name in zip(shape, sides)]}]
    outputs = []
    for name, *answers in zip(names, *expected):
        known = [len({answer.shape[axis] for answer in answers}) == 1 for axis in range(answers[0].ndim)]
        of_output = [f"{name}_{side}" if axis else side for axis, side in enumerate(sides)]
        outputs.append(
            {"name": name, "shape": [n if same else side for n, same, side in zip(answers[0].shape, known, of_output)]}
        )
    return {"inputs": inputs, "outputs": outputs}


# Files and noise


class _Format(NamedTuple):
    suffixes: tuple[str, ...]
    rules: Rules
    write: Callable[..., tuple[Path, ...]]
    load: Callable[[Sequence[Path]], list[Runner]]


_FORMATS = {
    "paddle": _Format(
        (PROGRAM_SUFFIX, ".pdiparams", ".meta.json"),
        _FOR_PADDLE,
        _write_paddle,
        lambda files: [load_paddle(files, onednn=onednn) for onednn in (False, True)],
    ),
    "onnx": _Format((".onnx",), _FOR_ONNX, _write_onnx, lambda files: [load_onnx(files)]),
}


def exported_files(path: PathLike, format: str) -> tuple[Path, ...]:
    """The files that `export` writes, the model itself first.

    Raises:
        ValueError: there is no such format, or the path names no file.
        WeightsError: one of them would replace the sidecar of weights.
    """
    target, suffixes = _target(path, format), _FORMATS[format].suffixes
    return tuple(target.with_name(target.name + suffix) for suffix in suffixes)


def _target(path: PathLike, format: str) -> Path:
    """The files' name without a suffix of theirs."""
    if format not in _FORMATS:
        raise ValueError(f"unknown format {format!r}: choose one of {', '.join(_FORMATS)}")
    path, suffixes = Path(path), _FORMATS[format].suffixes
    # The longest, for .meta.json ends in .json as well.
    ending = max((suffix for suffix in suffixes if path.name.endswith(suffix)), key=len, default="")
    name = path.name[: len(path.name) - len(ending)]
    if not name:
        raise ValueError(f"{os.fspath(path)!r} names no file: give a folder and a name")
    path = path.with_name(name)
    for suffix in (".pdparams", ".safetensors"):
        weights = path.with_name(name + suffix)
        if ".json" in suffixes and weights.exists():
            raise WeightsError(f"{path}.json is the sidecar of {weights}: export under another name")
    return path


@contextmanager
def _asking_the_disk(folder: Path, target: Path, model: nn.Layer) -> Iterator[None]:
    """Neither Paddle nor its converter says that a disk is full: whatever fails in the block, see if there is room."""
    try:
        yield
    except Exception as error:
        try:
            with open(folder / "room", "wb") as room:
                room.write(bytes(4 * sum(tensor.size for tensor in model.state_dict().values())))
                room.flush()
                os.fsync(room.fileno())
        except OSError as full:
            raise unwritable(target, full) from error
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back Python's warnings and what C++ code prints, which becomes the cause of an error in the block."""
    with tempfile.TemporaryFile() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _flush()
        kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
        for descriptor, _ in kept:
            os.dup2(log.fileno(), descriptor)
        try:
            yield
        except Exception as error:
            _flush()
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            raise error from (RuntimeError(said) if said else error.__cause__)
        finally:
            _flush()
            for descriptor, before in kept:
                os.dup2(before, descriptor)
                os.close(before)


def _flush() -> None:
    """Empty the buffers of Python and C, so that each text ends where it belongs."""
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError, TypeError, AttributeError):  # TypeError: Windows
        ctypes.CDLL(None).fflush(None)
