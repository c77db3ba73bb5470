"""Reads pickles without running them.

A pickle is a program for a small stack machine. The usual machine imports and calls whatever the program names; this
one imports and calls nothing. A name in the file stays a name. A call is looked up in a short table of the
constructors that weights are made of; whatever is not in the table becomes an `Inert` placeholder, because checkpoints
carry the optimizer, the command line and much else that nobody needs. Names that only an attack would use are refused.

What a file can cost is bounded by its size: sizes are checked before anything is allocated, long byte strings stay
views of the file, arrays are built when they are asked for, nothing recurses, and the instructions are counted.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Callable, Literal

import numpy as np

from paddle_dense.errors import AGAIN, DAMAGED, HostileFileError, WeightsError, shown

_MAX_STEPS = 4_000_000  # a large checkpoint with its optimizer takes some 100 000
_MAX_NAME = 500
_MAX_LONG = 1024  # bytes of an integer
_MAX_DIGITS = 2500
_MAX_INDEX = 10  # digits; with longer ones a file could have many of the same hash
_MANY_NUMBERS = 1 << 16  # of the memo, which a file may give without having that many objects
_MAX_DIMS = 32
_MAX_ELEMENTS = 2**48
_NUMERIC = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_NEWLINE = re.compile(rb"\n")
_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
_ESCAPE = re.compile(rb"""\\([\\'"abfnrtv]|x[0-9A-Fa-f]{2})?""")  # a backslash, and what a repr puts after one
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

# What no training script saves. Without the underscore that a private twin begins with: _io, _socket, _ctypes.
# fmt: off
_HOSTILE_MODULES = {
    "os", "posix", "nt", "subprocess", "posixsubprocess", "sys", "importlib", "frozen_importlib", "imp", "runpy",
    "socket", "shutil", "ctypes", "pty", "pdb", "bdb", "pickle", "cPickle", "marshal", "shelve", "zipimport", "pkgutil",
    "pydoc", "timeit", "cProfile", "webbrowser", "popen2", "requests", "urllib2", "httplib", "ftplib", "smtplib",
    "telnetlib", "imaplib", "osx_support", "pip", "ensurepip", "doctest", "cgitb", "codeop", "idlelib", "lib2to3",
}
_HOSTILE_NAMES = {
    "builtins.eval", "builtins.exec", "builtins.execfile", "builtins.compile", "builtins.__import__", "builtins.open",
    "builtins.input", "builtins.breakpoint", "builtins.globals", "builtins.locals", "builtins.__dict__",
    "builtins.apply", "io.open", "io.open_code", "io.FileIO", "types.CodeType", "types.FunctionType", "code.interact",
    "code.InteractiveInterpreter", "code.InteractiveConsole", "commands.getoutput", "commands.getstatusoutput",
    "operator.attrgetter", "operator.methodcaller", "urllib.request", "http.client", "asyncio.subprocess",
    "asyncio.create_subprocess_shell", "distutils.spawn", "distutils.file_util", "test.support", "trace.Trace",
    "profile.run", "profile.Profile", "platform.popen", "uuid._get_command_stdout", "logging.config", "torch.hub",
    "torch.load", "torch.ops", "torch.package", "torch.serialization.load", "torch.jit.load",
    "torch.jit.unsupported_tensor_ops", "torch.utils.bottleneck", "torch.utils.collect_env",
    "torch.utils.cpp_extension", "torch.utils.model_zoo", "torch.utils._config_module", "torch._inductor.codecache",
    "torch._dynamo.guards", "torch.fx.experimental.symbolic_shapes.ShapeEnv", "paddle.load", "paddle.hub",
    "paddle.framework.load", "paddle.framework.io.load", "paddle.jit.load",
    "paddle.utils.cpp_extension", "paddle.utils.download", "numpy.load", "numpy.fromfile",
    "numpy.memmap", "numpy.f2py", "numpy.testing", "numpy.ctypeslib", "numpy.lib.npyio", "numpy.lib._npyio_impl",
    "numpy.lib.format", "pandas.read_pickle", "pandas.io.pickle", "joblib.load", "dill.load", "dill.loads",
    "cloudpickle.load", "cloudpickle.loads",
}
# fmt: on


# What a file holds


class Lazy:
    """Something in a file that becomes an array when asked for."""

    __slots__ = ()

    def numpy(self, room: float = math.inf) -> np.ndarray:
        """The array; a WeightsError goes on from the tensor's name, also where it has more than `room` bytes.

        What takes no more memory than the file does need not look at `room`.
        """
        raise NotImplementedError

    def form(self) -> tuple[tuple[int, ...] | None, bool]:
        """The shape that the file gives, None for one that cannot be, and whether the numbers are floats."""
        raise NotImplementedError

    def build(self, state: object) -> None:
        """Takes the state that the file sets after making it."""
        raise NotImplementedError


class Name:
    """A class or function that the file names; never imported."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Inert:
    """What a call that is not in the table would have made: its name, arguments and state, never run."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple) -> None:
        self.name, self.args = name, args
        self.state: object = None

    def build(self, state: object) -> None:
        """Takes the state as it is now: objects take its items, and no longer ask what becomes of it.

        Raises:
            TypeError: there is one already, to which some objects would add this one, and others not.
        """
        if self.state is not None:
            raise TypeError("a second state")
        self.state = dict(state) if isinstance(state, dict) else state


class Key:
    """A dict key that is no plain value, compared by identity: hashing what it holds could recurse forever."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class DType:
    """A numpy.dtype: its code, such as "f4", its byte order, and whether an array has it already."""

    __slots__ = ("code", "order", "used")

    def __init__(self, code: object, *_: object) -> None:
        text = code if isinstance(code, str) else shown(code)
        self.used = False
        self.code, self.order = text[text[:1] in ("<", ">", "=", "|") :], ">" if text.startswith(">") else "<"

    def build(self, state: tuple) -> None:
        version, order = state[:2]
        if version not in range(5) or order not in ("<", ">", "=", "|"):  # as numpy has it
            raise ValueError("a dtype of a version to come")
        if self.used:
            raise ValueError("a dtype that changes under the array that has it")
        self.order = ">" if order == ">" else "<"


class Array(Lazy):
    """A numpy.ndarray; its state is numpy's: (version, shape, dtype, whether Fortran order, bytes)."""

    __slots__ = ("state",)

    def __init__(self, state: tuple | None = None) -> None:
        self.build(state)

    def build(self, state: object) -> None:
        self.state = state
        if isinstance(state, tuple) and len(state) in (4, 5) and isinstance(state[-3], DType):
            state[-3].used = True

    def form(self) -> tuple[tuple[int, ...] | None, bool]:
        if not isinstance(self.state, tuple) or len(self.state) not in (4, 5):
            return None, False
        shape, dtype = self.state[-4:-2]
        return whole_numbers(shape), isinstance(dtype, DType) and dtype.code[:1] == "f"

    def numpy(self, room: float = math.inf) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) not in (4, 5):
            raise WeightsError(f"has no content, {DAMAGED}")
        *version, shape, dtype, fortran, data = self.state
        if version not in ([], [0], [1]) or not isinstance(fortran, int):  # as numpy has it
            raise WeightsError(f"is of a version that numpy never wrote, {DAMAGED}")
        if not isinstance(shape, tuple):  # a list could grow after the array was made
            raise WeightsError(f"has no valid shape, {DAMAGED}")
        if not isinstance(dtype, DType) or dtype.code not in _NUMERIC:
            kind = shown(dtype.code) if isinstance(dtype, DType) else describe(dtype)
            raise WeightsError(f"holds {kind} values instead of numbers: save it as float32")
        if isinstance(data, str):  # a byte string of Python 2
            data = data.encode("latin1")
        if not isinstance(data, (bytes, memoryview)):
            raise WeightsError(f"holds {describe(data)} where its numbers should be, {DAMAGED}")
        return decode(data, dtype.order + dtype.code, shape, "F" if fortran else "C")


def describe(value: object) -> str:
    """What a value from a file is, in a few words; never its content, which may be nested without end."""
    if isinstance(value, Inert):
        return f"a {shown(value.name)} object"
    if isinstance(value, Name):
        return f"the name {shown(value.text)}"
    if isinstance(value, Lazy):
        return "a tensor"
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"


def whole_numbers(shape: object) -> tuple[int, ...] | None:
    """A shape from a file if it is one that can be compared: a tuple of integers."""
    return shape if isinstance(shape, tuple) and all(type(n) is int for n in shape) else None


def element_count(shape: object) -> int:
    """How many elements an array of a shape from a file has; a WeightsError goes on from the tensor's name."""
    if not isinstance(shape, (tuple, list)) or len(shape) > _MAX_DIMS:
        raise WeightsError(f"has no valid shape, {DAMAGED}")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise WeightsError(f"has no valid shape, {DAMAGED}")
    if math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        raise WeightsError(f"claims an impossible shape, {DAMAGED}")
    return math.prod(shape)


def decode(data: bytes | memoryview, code: str, shape: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
    """The numbers in `data` as an array of `shape`: a view of `data` where `interpret` allows it.

    Raises:
        WeightsError: the data is longer or shorter than the shape asks for; goes on from the tensor's name.
    """
    needed = element_count(shape) * stored_dtype(code).itemsize
    if len(data) != needed:
        raise WeightsError(f"has {len(data)} bytes where its shape {list(shape)} needs {needed}, {DAMAGED}")
    return interpret(np.frombuffer(data, stored_dtype(code)), code).reshape(tuple(shape), order=order)


def stored_dtype(code: str) -> np.dtype:
    """The dtype to read numbers as before `interpret` makes them what `code`, numpy's or "bf16", says."""
    return np.dtype("<u2" if code == "bf16" else "u1" if code.endswith("b1") else code)


def interpret(stored: np.ndarray, code: str) -> np.ndarray:
    """Numbers read as `stored_dtype(code)`, as the little-endian numbers they are; copied only where they differ."""
    if code == "bf16":
        return bfloat16_to_float32(stored)
    if code.endswith("b1"):
        return np.asarray(stored != 0)  # a stray byte must not become a bool that is neither; and always an array
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False)


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """bfloat16 numbers, given as uint16, as float32: they are its upper half, so this is exact."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


# The table of constructors


def _plain_key(key: object) -> object:
    """The key itself where hashing and comparing it is cheap, whatever the file chose."""
    if key is None or isinstance(key, (str, bytes, bool)):
        return key
    if isinstance(key, (int, float)) and -(2**63) <= key < 2**63:
        return key
    if isinstance(key, Array):  # which Python cannot hash
        raise TypeError("an array as a key")
    return Key(key)


def _make_dict(items: Any = (), *_: object) -> dict:
    pairs = items.items() if isinstance(items, dict) else items
    return {_plain_key(key): value for key, value in pairs}


def _counter(counts: object = None, *_: object) -> dict:
    if not isinstance(counts, (dict, type(None))):  # of which it would count the items
        raise TypeError("a Counter that Python did not write")
    return _make_dict(counts or ())


def _same(*args: object) -> object:
    """list(x), tuple(x), set(x): x itself will do, since it is only read; copies would cost what the file does not."""
    return args[0] if args else []


def _encode(text: str | bytes | memoryview = b"", *_: object) -> bytes | memoryview:
    return text.encode("latin1") if isinstance(text, str) else text


def _scalar(dtype: object, data: object = b"") -> object:
    try:
        return Array((1, (), dtype, False, data)).numpy().item()
    except WeightsError:  # a string, a date: nothing that weights need
        return Inert("numpy.core.multiarray.scalar", (dtype, data))


def _reconstruct(kind: object, shape: object, dtype: object) -> Array:
    """An array without content, which BUILD gives it; numpy looks at the arguments, so they say of damage."""
    if not isinstance(kind, Name) or shape != (0,) or dtype not in ("b", b"b"):
        raise TypeError("an array that numpy did not write")
    return Array()


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> Array:
    if order not in ("C", "F"):
        raise ValueError("an order that numpy does not write")
    return Array((1, shape, dtype, order == "F", data))


_KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _make_dict,
    "collections.Counter": _counter,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _make_dict,
    "builtins.list": _same,
    "builtins.tuple": _same,
    "builtins.set": _same,
    "builtins.frozenset": _same,
    "builtins.bytes": _encode,
    "builtins.bytearray": _encode,
    "_codecs.encode": _encode,
    "numpy.dtype": DType,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
}
# What leaves its arguments to __init__, which NEWOBJ does not call.
_EMPTY_WHEN_NEW = {f"collections.{name}" for name in ("OrderedDict", "Counter", "defaultdict")}
_EMPTY_WHEN_NEW |= {f"builtins.{name}" for name in ("dict", "list", "set", "bytearray")}


@lru_cache(maxsize=1024)
def _name(module: str, name: str) -> Name:
    if len(module) + len(name) > _MAX_NAME:
        raise WeightsError(f"names a class with {len(module) + len(name)} characters, {DAMAGED}")
    root, dot, rest = module.partition(".")
    root = _OLD_MODULES.get(root, root)
    text = f"{root}{dot}{rest}.{name}"
    # Pickles reach through attributes: `logging` and `os.system` would name os.system, `argparse` and `_os` its module.
    parts = text.lstrip("_").split(".")
    named = (parts[0], *(part.lstrip("_") for part in name.split(".")))
    hostile = not _HOSTILE_MODULES.isdisjoint(named)
    if hostile or any(".".join(parts[:end]) in _HOSTILE_NAMES for end in range(2, 6)):
        raise HostileFileError(
            f"asks to run {shown(text)}, which no weights need: open it with nothing else and take the weights from a "
            f"source you trust"
        )
    return Name(text.replace("numpy._core.", "numpy.core.", 1))  # numpy 2's name for numpy 1's numpy.core


# The machine


def unpickle(
    data: memoryview,
    known: Mapping[str, Callable[..., Any]] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    start: int = 0,
) -> tuple[Any, int]:
    """Reads one pickle, of protocol 0 to 5.

    Sets are read as lists, long byte strings as views of `data`, keys that are no plain values as `Key`.

    Args:
        data: what holds the pickle.
        known: constructors besides those of Python and numpy, by dotted name.
        persistent: turns a persistent id into an object.
        start: where in `data` the pickle begins.

    Returns:
        The object, and where in `data` the pickle ends.

    Raises:
        HostileFileError: it names something that only an attack needs.
        WeightsError: it is damaged, cut short, or uses what no weight file uses.
    """
    machine = _Machine(data, {**_KNOWN, **(known or {})}, persistent, start)
    return machine.run(), machine.position


def _integer(line: bytes) -> int:
    """An integer as pickle writes it; others it reads in another way than Python does: 012 is 10, +1 True."""
    if not _INTEGER.fullmatch(line):
        raise ValueError("an integer that pickle does not write")
    return int(line)


class _Machine:
    """`stack` holds what was pushed since the last mark, `below` the stacks under the marks."""

    def __init__(self, data: memoryview, known: Mapping, persistent: Callable | None, start: int) -> None:
        self.data, self.position = memoryview(data), start
        self.known, self.persistent = known, persistent
        self.stack: list = []
        self.below: list[list] = []
        self.memo: dict[int, Any] = {}
        self.framed = start  # where the last frame ends
        # An honest file is read once, and every instruction of it has a byte or more.
        self.budget = min(_MAX_STEPS, 2 * len(data) + 1000) + len(data) // 16

    def run(self) -> Any:
        data, size = self.data, len(self.data)
        at = self.position
        try:
            while True:
                at = self.position
                if at >= size:
                    raise WeightsError(f"is cut short in the middle of its pickle: {AGAIN}")
                code = data[at]
                self.position = at + 1
                if code == _STOP:
                    return self.stack.pop()
                instruction = _INSTRUCTIONS.get(code)
                if instruction is None:
                    raise WeightsError(f"holds pickle instruction {code:#04x}, which no weight file uses, {DAMAGED}")
                self.budget -= 1
                if self.budget < 0:
                    self.spend(0)
                instruction(self)
        except WeightsError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
            raise WeightsError(f"holds a pickle that makes no sense at byte {at}, {DAMAGED}") from error

    def spend(self, cost: int) -> None:
        """Bounds the time and memory that a file can ask for by repeating itself."""
        self.budget -= cost
        if self.budget < 0:
            raise WeightsError("takes more instructions to read than a weight file has: save the tensors alone")

    # Reading the program

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise WeightsError(
                f"wants {size} bytes at byte {self.position} of {len(self.data)} of its pickle, {DAMAGED}"
            )
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def byte(self) -> int:
        """What `number` gives for one byte, sooner: every second instruction has one."""
        return self.take(1)[0]

    def text(self, size: int) -> str:
        return str(self.take(size), "utf-8", "surrogatepass")

    def line(self, limit: int | None = None) -> bytes:
        found = _NEWLINE.search(self.data, self.position)
        if found is None:
            raise WeightsError(f"is cut short in the middle of its pickle: {AGAIN}")
        line = bytes(self.data[self.position : found.start()])
        self.position = found.end()
        if limit is not None and len(line) > limit:
            raise ValueError("a line that is too long")
        return line

    # The stack

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def to_mark(self) -> list:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def last(self, count: int) -> tuple:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError("too few items on the stack")
        del self.stack[-count:]
        return items

    def remember(self, index: int) -> None:
        if index > _MANY_NUMBERS and index > len(self.data):  # every number before it has taken a byte
            raise ValueError("a number that the memo cannot have come to")
        self.memo[index] = self.stack[-1]

    def extend(self, items: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Inert):
            raise TypeError("items for what is no list")

    def update(self, items: list | tuple) -> None:
        if len(items) % 2:
            raise ValueError("a key without a value")
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_make_dict(zip(items[::2], items[1::2])))
        elif not isinstance(self.stack[-1], Inert):
            raise TypeError("items for what is no dict")

    # Instructions that do not fit in the table

    def protocol(self) -> None:
        if self.byte() > 5:
            raise ValueError("a protocol that does not exist")

    def frame(self) -> None:
        begins, size = self.position - 1, self.number(8)
        if begins < self.framed:
            raise ValueError("a frame in a frame")
        self.take(size)
        self.framed = self.position
        self.position -= size

    def digits(self) -> None:
        line = self.line(_MAX_DIGITS)
        self.push(line == b"01" if line in (b"00", b"01") else _integer(line))

    def integer(self, size: int) -> None:
        if size > _MAX_LONG:
            raise ValueError("an integer that is too long")
        self.push(self.number(size, signed=True))

    def quoted(self) -> None:
        line = self.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            raise ValueError("a string without quotes")
        # Not one pattern for the whole string, whose matching takes a hundred times the string's memory.
        if not all(escape[1] for escape in _ESCAPE.finditer(line, 1, len(line) - 1)):
            raise ValueError("an escape that no string is written with")
        self.push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))

    def dictionary(self) -> None:
        items = self.to_mark()
        self.push({})
        self.update(items)

    def name(self) -> None:
        module = str(self.line(), "utf-8")
        self.push(_name(module, str(self.line(), "utf-8")))

    def name_from_stack(self) -> None:
        module, name = self.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no string")
        self.push(_name(module, name))

    def instance(self) -> None:
        self.name()
        kind = self.stack.pop()
        self.call(kind, tuple(self.to_mark()))

    def construct(self) -> None:
        kind, *args = self.to_mark()
        self.call(kind, tuple(args))

    def new(self, kind: object, args: object, keywords: object = None) -> None:
        if isinstance(kind, Name) and kind.text in _EMPTY_WHEN_NEW and args != ():
            raise TypeError("a new container with something in it")
        self.call(kind, args, keywords)

    def call(self, callee: object, args: object, keywords: object = None) -> None:
        if not isinstance(args, tuple):
            raise TypeError("arguments that are no tuple")
        if not isinstance(callee, (Name, Inert)):
            raise TypeError("a call of what is nothing to call")
        name = callee.text if isinstance(callee, Name) else callee.name
        if not isinstance(callee, Name) or name not in self.known or keywords:
            self.push(Inert(name, args))
            return
        # The same long argument can be used again and again, and a constructor may copy it.
        for arg in args:
            if isinstance(arg, (str, list, tuple, dict)):
                self.spend(len(arg) // 16 if isinstance(arg, str) else len(arg))
        self.push(self.known[name](*args))

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(state, dict):
            self.spend(len(state))  # which is copied
        # An OrderedDict's attributes (a state_dict's _metadata) say nothing about the tensors in it.
        if not isinstance(self.stack[-1], (dict, list, tuple)):
            self.stack[-1].build(state)

    def persistent_id(self, key: object) -> None:
        if self.persistent is None:
            raise WeightsError("refers to data outside the file, so it is no weight file: save the tensors themselves")
        self.push(self.persistent(key))


_STOP = ord(".")
# Extension codes and buffers outside the file are missing on purpose.
_INSTRUCTIONS: dict[int, Callable[[_Machine], object]] = {
    code[0]: run
    for code, run in {
        b"\x80": _Machine.protocol,
        b"\x95": _Machine.frame,
        # values
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"I": _Machine.digits,
        b"J": lambda m: m.push(m.number(4, signed=True)),
        b"K": lambda m: m.push(m.byte()),
        b"M": lambda m: m.push(m.number(2)),
        b"L": lambda m: m.push(_integer(m.line(_MAX_DIGITS).removesuffix(b"L"))),
        b"\x8a": lambda m: m.integer(m.byte()),
        b"\x8b": lambda m: m.integer(m.number(4, signed=True)),
        b"F": lambda m: m.push(float(m.line(_MAX_DIGITS))),
        b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        # text and bytes; the byte strings of Python 2 are read as latin1, which loses nothing
        b"S": _Machine.quoted,
        b"T": lambda m: m.push(str(m.take(m.number(4, signed=True)), "latin1")),
        b"U": lambda m: m.push(str(m.take(m.byte()), "latin1")),
        b"V": lambda m: m.push(str(m.line(), "raw-unicode-escape")),
        b"X": lambda m: m.push(m.text(m.number(4))),
        b"\x8c": lambda m: m.push(m.text(m.byte())),
        b"\x8d": lambda m: m.push(m.text(m.number(8))),
        b"C": lambda m: m.push(bytes(m.take(m.byte()))),
        b"B": lambda m: m.push(m.take(m.number(4))),
        b"\x8e": lambda m: m.push(m.take(m.number(8))),
        b"\x96": lambda m: m.push(m.take(m.number(8))),
        # the stack and the memo
        b"(": _Machine.mark,
        b"0": _Machine.pop,
        b"1": _Machine.to_mark,
        b"2": lambda m: m.push(m.stack[-1]),
        b"p": lambda m: m.remember(int(m.line(_MAX_INDEX))),
        b"q": lambda m: m.remember(m.byte()),
        b"r": lambda m: m.remember(m.number(4)),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"g": lambda m: m.push(m.memo[int(m.line(_MAX_INDEX))]),
        b"h": lambda m: m.push(m.memo[m.byte()]),
        b"j": lambda m: m.push(m.memo[m.number(4)]),
        # containers; a set is a list here
        b")": lambda m: m.push(()),
        b"]": lambda m: m.push([]),
        b"}": lambda m: m.push({}),
        b"\x8f": lambda m: m.push([]),
        b"t": lambda m: m.push(tuple(m.to_mark())),
        b"\x85": lambda m: m.push(m.last(1)),
        b"\x86": lambda m: m.push(m.last(2)),
        b"\x87": lambda m: m.push(m.last(3)),
        b"l": lambda m: m.push(m.to_mark()),
        b"\x91": lambda m: m.push(m.to_mark()),
        b"d": _Machine.dictionary,
        b"a": lambda m: m.extend([m.stack.pop()]),
        b"e": lambda m: m.extend(m.to_mark()),
        b"\x90": lambda m: m.extend(m.to_mark()),
        b"s": lambda m: m.update(m.last(2)),
        b"u": lambda m: m.update(m.to_mark()),
        # names and what is done with them
        b"c": _Machine.name,
        b"\x93": _Machine.name_from_stack,
        b"R": lambda m: m.call(*m.last(2)),
        b"\x81": lambda m: m.new(*m.last(2)),
        b"\x92": lambda m: m.new(*m.last(3)),
        b"i": _Machine.instance,
        b"o": _Machine.construct,
        b"b": _Machine.build,
        b"P": lambda m: m.persistent_id(str(m.line(), "latin1")),
        b"Q": lambda m: m.persistent_id(m.stack.pop()),
    }.items()
}
