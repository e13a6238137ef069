"""Products of few tokens as compiled operators: built once where a C++ compiler is, and otherwise not there.

`ready()` compiles SOURCE, the text in svdexp_code_readers.py and the svdexp_*_operators.py, into a file of the user's
cache, loads it, and compares it with torch's products before it is used. Without a compiler, on Windows, or with
SVDEXP_OPERATOR=0 in the environment there are none, and nothing is said. The same text has the same operators: torch
knows them by a name made of its hash.

Two threads or processes that build at once each write a file of their own and rename it, so a killed one leaves nothing
that others would wait for; that is why torch's own loader, whose lock stays behind, is not asked.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch

from .svdexp_bits import CODE_BITS, packed_bytes, unpack
from .svdexp_code_readers import READERS
from .svdexp_coded_operators import CODED
from .svdexp_plain_operators import PLAIN
from .svdexp_remapped_operators import REMAPPED

SWITCH = "SVDEXP_OPERATOR"
OF_NUMBERS = ("linear", "pair", "columns", "rows", "reordered", "reordered_each")
OF_CODES = ("coded", "corrected", "decode", "remapped", "renumber")
NAMES = OF_NUMBERS + OF_CODES
GROUP = 32  # codes that have one scale where operators of codes are compared with torch
LIMIT = 300  # seconds of the CPU that a compiler may take: those of the clock would say how busy a machine is
LOG = logging.getLogger(__name__)

REGISTERED = r"""
}  // namespace

TORCH_LIBRARY(SVDEXP_NAME, m) {
  m.def("linear(Tensor x, Tensor W, Tensor? bias) -> Tensor");
  m.def("pair(Tensor x, Tensor B, Tensor A, Tensor? bias) -> Tensor");
  m.def("columns(Tensor x, Tensor order, Tensor C, Tensor P, Tensor? bias) -> Tensor");
  m.def("coded(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int bits, int group, Tensor? bias) -> Tensor");
  m.def(
      "corrected(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int bits, int group, Tensor B, Tensor B_scale, "
      "Tensor A, Tensor A_scale, int rank_bits, int rank_group, Tensor? bias) -> Tensor");
  m.def("decode(Tensor(a!) to, Tensor codes, Tensor scale, Tensor? zero, int bits, int group) -> ()");
  m.def("remapped(Tensor x, Tensor codes, Tensor scale, Tensor? rest, bool inputs, Tensor? bias) -> Tensor");
  m.def("renumber(Tensor(a!) to, Tensor codes, Tensor scale, Tensor? rest, bool inputs) -> ()");
  m.def("rows(Tensor x, Tensor P, Tensor C, Tensor order, Tensor? bias) -> Tensor");
  m.def("reordered(Tensor x, Tensor order) -> Tensor");
  m.def("reordered_each(Tensor x, Tensor orders, Tensor which) -> Tensor");
}

TORCH_LIBRARY_IMPL(SVDEXP_NAME, CPU, m) {
  m.impl("linear", &linear);
  m.impl("pair", &pair);
  m.impl("columns", &columns);
  m.impl("coded", &coded);
  m.impl("corrected", &corrected);
  m.impl("decode", &decode);
  m.impl("remapped", &remapped);
  m.impl("renumber", &renumber);
  m.impl("rows", &rows);
  m.impl("reordered", &reordered);
  m.impl("reordered_each", &reordered_each);
}
"""
SOURCE = PLAIN + READERS + CODED + REMAPPED + REGISTERED

OPERATORS: dict[str, Callable[..., torch.Tensor]] = {}  # NAMES of SOURCE, if ready()
LIBRARIES: list[Any] = []  # what is registered goes with them
_ASKED: list[bool] = []  # the answer, once there is one


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def ready() -> bool:
    """Whether OPERATORS has them: asked first, they are found in the cache or compiled, where they can be."""
    if not _ASKED:
        OPERATORS.update({} if os.environ.get(SWITCH) == "0" else _made())
        _ASKED.append(bool(OPERATORS))
    return _ASKED[0]


def _made() -> dict[str, Callable[..., torch.Tensor]]:
    """Loaded, from the cache or compiled, and found right; or none."""
    compiler = next(
        filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))), None
    )
    if compiler is None or sys.platform == "win32":
        return {}
    flags = _flags()
    # not the folders of torch: environments that have the same one share what was compiled
    about = "\n".join([SOURCE, *flags, torch.__version__, compiler, _processor()])
    name = f"svdexp_{hashlib.sha256(about.encode()).hexdigest()[:16]}"
    namespace = getattr(torch.ops, name)
    try:
        if not hasattr(namespace, NAMES[0]):  # else another copy of this file has loaded it
            torch.ops.load_library(_built(compiler, flags, name))  # type: ignore[no-untyped-call]
            _describe(name)
        found = {key: getattr(namespace, key).default for key in NAMES}
        _compare(found)
    except (OSError, RuntimeError, subprocess.SubprocessError, AssertionError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        LOG.info("svdexp goes without compiled operators: %s", said[-1] if said else error)
        return {}
    return found


def _flags() -> list[str]:
    """Of the compiler, beside the source."""
    abi = int(torch.compiled_with_cxx11_abi())
    flags = ["-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-w"]
    flags += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-fopenmp"]
    return flags


def _processor() -> str:
    """What `-march=native` depends on: a home may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _built(compiler: str, flags: list[str], name: str) -> Path:
    """The library's file, compiled where it is not in the cache yet.

    Raises:
        OSError: the cache cannot be written.
        subprocess.SubprocessError: the compiler failed.
    """
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(root) / "svdexp"
    library = folder / f"{name}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    torch_folder = Path(torch.__file__).parent
    found = [f"-isystem{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source, made = Path(place) / "operators.cpp", Path(place) / library.name
        source.write_text(SOURCE)
        words = [compiler, *flags, f"-DSVDEXP_NAME={name}", str(source), *found, "-o", str(made)]
        LOG.info("svdexp compiles its operators, once: %s", library)
        limited = ["sh", "-c", f'ulimit -t {LIMIT} && exec "$@"', "sh", *words]
        subprocess.run(limited, check=True, capture_output=True)
        made.replace(library)
    return library


def _describe(name: str) -> None:
    """What torch.compile, export and the counting of FLOPs want to know."""
    from torch.utils.flop_counter import register_flop_formula

    def shaped(x: torch.Tensor, width: int | torch.SymInt) -> torch.Tensor:
        return x.new_empty((*x.shape[:-1], width))

    fakes: dict[str, Callable[..., torch.Tensor]] = {
        "linear": lambda x, W, bias: shaped(x, W.shape[0]),
        "pair": lambda x, B, A, bias: shaped(x, A.shape[0]),
        "columns": lambda x, order, C, P, bias: shaped(x, P.shape[0]),
        "rows": lambda x, P, C, order, bias: shaped(x, P.shape[0] + C.shape[0]),
        "reordered": lambda x, order: torch.empty_like(x),
        "reordered_each": lambda x, orders, which: torch.empty_like(x),
        "coded": lambda x, codes, scale, zero, bits, group, bias: shaped(x, scale.shape[0]),
        "corrected": lambda x, codes, scale, *others: shaped(x, scale.shape[0]),
        "remapped": lambda x, codes, scale, rest, inputs, bias: shaped(
            x, codes.shape[0] + (0 if inputs or rest is None else rest.shape[0])
        ),
    }
    # torch.library.register_fake would look for its caller among all modules, which takes longer than the rest of this
    library: Any = torch.library.Library(name, "FRAGMENT")  # type: ignore[no-untyped-call]
    LIBRARIES.append(library)
    library.impl("decode", lambda to, codes, scale, zero, bits, group: None, "Meta")
    library.impl("renumber", lambda to, codes, scale, rest, inputs: None, "Meta")
    for operator, fake in fakes.items():
        library.impl(operator, fake, "Meta")
        own: dict[str, Callable[..., int]] = {
            "coded": _flops_of_codes,
            "corrected": _flops_corrected,
            "reordered_each": lambda *args, **how: 0,
        }
        count = own.get(operator, _flops)
        register_flop_formula(getattr(getattr(torch.ops, name), operator))(count)


def _flops(x_shape: Any, *others: Any, out_shape: Any = None, **how: Any) -> int:
    """Two for each number of the matrices and each token."""
    tokens = 1
    for size in x_shape[:-1]:
        tokens *= size
    matrices = (shape for shape in others if isinstance(shape, tuple) and len(shape) == 2)
    return int(2 * tokens * sum(rows * columns for rows, columns in matrices))


def _flops_of_codes(x_shape: Any, codes: Any, scale: Any, *others: Any, out_shape: Any = None, **how: Any) -> int:
    """The same of codes, which are packed: a row has as many scales as it has groups."""
    return int(2 * prod(x_shape) * scale[0])


def _flops_corrected(x: Any, codes: Any, scale: Any, *others: Any, out_shape: Any = None, **how: Any) -> int:
    """The same of a matrix in codes and two factors of a correction, the scales of the first of which tell its rank."""
    rank = others[4][0]
    return int(2 * (prod(x) * (scale[0] + rank) + prod(x[:-1]) * rank * scale[0]))


def _compare_codes(given: Mapping[str, Callable[..., Any]], generator: torch.Generator) -> None:
    """The operators of codes with numbers that torch makes of them.

    Raises:
        AssertionError: one computes something else.
    """
    for n, bits, dtype in product((72, 96), CODE_BITS, (torch.float32, torch.bfloat16)):
        x = torch.randn(3, n, generator=generator).to(dtype)
        packed, W = _grid(9, n, bits, dtype, generator)
        found = torch.empty(9, n)
        if dtype is torch.float32:
            given["decode"](found, *packed)
            if not torch.equal(found.double(), W):
                raise AssertionError(f"a compiled operator is wrong by codes of {bits} bits")
        exact = x.double() @ W.T
        _near(given["coded"](x, *packed, None), exact)
        for r in (16, 40):
            (inner, B), (outer, A) = (_grid(*shape, 8, dtype, generator, zeros=False) for shape in ((r, n), (9, r)))
            factors = (*inner[:2], *outer[:2], 8, GROUP)
            _near(given["corrected"](x, *packed, *factors, None), exact + x.double() @ B.T @ A.T)
    m = 9
    codes = torch.randint(-127, 128, (m, m), generator=generator).to(torch.int8)
    s, rest = torch.rand(m, generator=generator).half(), torch.ones(4, m, dtype=torch.float16)
    C, X = codes.double(), torch.randn(3, m, generator=generator)
    words = s.view(torch.int16), rest.view(torch.int16)
    stacked = torch.cat([C * s.double(), rest.double()])
    _near(given["remapped"](X, codes, *words, False, None), X.double() @ stacked.T)
    _near(given["remapped"](X, codes, words[0], None, True, None), X.double() @ (C * s.double()[:, None]).T)
    found = torch.empty(m + 4, m)
    given["renumber"](found, codes, *words, False)
    if not torch.equal(found.double(), stacked):
        raise AssertionError("a compiled operator is wrong by numbers of eight bits")


def _grid(
    m: int, n: int, bits: int, dtype: torch.dtype, generator: torch.Generator, zeros: bool = True
) -> tuple[tuple[Any, ...], torch.Tensor]:
    """A random matrix (m, n) in codes, in groups of GROUP: what operators get of it, and its numbers in `dtype`."""
    scale = torch.rand(m, -(-n // GROUP), generator=generator).half()
    of, wide = torch.arange(n) // GROUP, scale.to(dtype).double()
    codes, zero = (
        torch.randint(256, (packed_bytes(count, bits),), generator=generator).to(torch.uint8)
        for count in (m * n, scale.numel())
    )
    zero_of = (
        unpack(zero, scale.numel(), bits).view(scale.shape).double()
        if zeros
        else wide.new_full(wide.shape, 1 << bits - 1)
    )
    levels = unpack(codes, m * n, bits).view(m, n) - zero_of[:, of]
    return (codes, scale.view(torch.int16), zero if zeros else None, bits, GROUP), levels * wide[:, of]


def _near(found: torch.Tensor, exact: torch.Tensor) -> None:
    if not (error := (found.double() - exact).abs().max()) <= 4 * torch.finfo(found.dtype).eps * exact.abs().max():
        raise AssertionError(f"a compiled operator is wrong by {error:.1e}")


def _compare(given: Mapping[str, Callable[..., torch.Tensor]]) -> None:
    """Every operator with torch's products.

    Raises:
        AssertionError: one computes something else.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    _compare_codes(given, generator)
    m, n, r = 45, 38, 21  # none is a multiple of what is computed at once
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, bias, W, B, A, inner, outer = (
            drawn(*shape).to(dtype) for shape in ((5, n), (m,), (m, n), (r, n), (m, r), (r, n - r), (m - r, r))
        )
        of_columns, of_rows = (torch.randperm(width, generator=generator).short() for width in (n, m))
        X = x.double()
        moved = X[:, of_columns.long()]
        columns = moved[:, :r] + moved[:, r:] @ inner.double().T
        stacked = torch.cat([B.double(), outer.double() @ B.double()])[of_rows.long()]
        for found, exact in (
            (given["linear"](x, W, bias), X @ W.double().T),
            (given["pair"](x, B, A, bias), X @ B.double().T @ A.double().T),
            (given["columns"](x, of_columns, inner, A, bias), columns @ A.double().T),
            (given["rows"](x, B, outer, of_rows, bias), X @ stacked.T),
        ):
            error = (found.double() - exact - bias.double()).abs().max()
            if not error <= 4 * torch.finfo(dtype).eps * exact.abs().max():
                raise AssertionError(f"a compiled operator is wrong by {error:.1e} in {dtype}")
        both, which = torch.stack([of_columns, of_columns.flip(0)]), torch.arange(len(x)) % 2
        each = x.gather(1, both.long()[which])
        if not torch.equal(given["reordered"](x, of_columns), moved.to(dtype)) or not torch.equal(
            given["reordered_each"](x, both, which), each
        ):
            raise AssertionError(f"a compiled operator is wrong by an index in {dtype}")
