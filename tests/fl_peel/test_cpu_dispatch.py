"""Libraries run one code path, named before they load, unless the user chose; a report can tell."""

import json
import os
import subprocess
import sys

import pytest

from fl_peel import cpu_dispatch
from fl_peel.cpu_dispatch import SWITCH, described, pinned, processor_flags
from tests.golden.values import kept
from tests.helpers.root import ROOT

MODERN = frozenset({"avx2", "fma", "sse2"})
PINNED = {"openblas": "Haswell", "mkl": "COMPATIBLE", "torch": "AVX2", "numpy": "X86_V3"}


def test_every_library_is_told_where_the_processor_can():
    assert pinned(MODERN, "2.4.6") == {
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_CBWR": "COMPATIBLE",
        "ATEN_CPU_CAPABILITY": "avx2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    }
    assert "AVX512_SKX" in pinned(MODERN, "1.26.4")["NPY_DISABLE_CPU_FEATURES"]
    assert pinned(MODERN - {"fma"}, "2.4.6") == pinned(MODERN - {"avx2"}, "2.4.6") == {}


def test_flags_are_those_of_linux(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: sse2 fma avx2\nbugs\t\t: x\nflags\t\t: other\n")
    monkeypatch.setattr(cpu_dispatch.platform, "machine", lambda: "x86_64")
    assert processor_flags(cpuinfo) == MODERN
    assert processor_flags(tmp_path / "none") == frozenset()
    monkeypatch.setattr(cpu_dispatch.platform, "machine", lambda: "aarch64")
    assert processor_flags(cpuinfo) == frozenset()


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setattr(cpu_dispatch, "processor_flags", lambda: MODERN)
    monkeypatch.setattr(cpu_dispatch, "late", {})
    environ = {"OPENBLAS_CORETYPE": "Zen"}
    cpu_dispatch.pin(environ)
    assert environ["OPENBLAS_THREAD_TIMEOUT"] == "14"
    waits = {"OPENBLAS_THREAD_TIMEOUT": "26", SWITCH: "native"}
    cpu_dispatch.pin(waits)
    assert waits["OPENBLAS_THREAD_TIMEOUT"] == "26"
    assert environ["OPENBLAS_CORETYPE"] == "Zen"
    assert environ["MKL_CBWR"] == "COMPATIBLE"
    # this process has loaded NumPy, and torch perhaps: what is set now they do not read
    assert cpu_dispatch.late["NPY_DISABLE_CPU_FEATURES"] == "numpy"
    assert "OPENBLAS_CORETYPE" not in cpu_dispatch.late
    native = {SWITCH: "native"}
    cpu_dispatch.pin(native)
    assert native == {SWITCH: "native"}


@pytest.mark.parametrize(
    ("result", "late", "text"),
    [
        (PINNED, {}, "pinned"),
        (PINNED | {"mkl": "none"}, {}, "pinned"),
        (PINNED, {"MKL_CBWR": "torch"}, "native: .*; too late for torch"),
        (PINNED | {"openblas": "Haswell, Zen"}, {}, "native: openblas Haswell, Zen, mkl COMPATIBLE"),
        (PINNED | {"mkl": "native"}, {}, "native: .*mkl native"),
        (PINNED | {"torch": "AVX512"}, {}, "native: .*torch AVX512"),
        (PINNED | {"numpy": "AVX512_ICL"}, {}, "native: .*numpy AVX512_ICL"),
        (PINNED | {"numpy": "X86_V4"}, {}, "native: .*numpy X86_V4"),
    ],
)
def test_a_report_says_whether_figures_are_those_of_every_processor(result, late, text):
    import re

    assert re.fullmatch(text if text == "pinned" else text + ".*", described(result, late))


def printed_by(code, folder=ROOT, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in {*pinned(MODERN, "2.4.6"), SWITCH}}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


ASK = "from fl_peel.cpu_dispatch import code_paths; import scipy.linalg; print(code_paths())"


@pytest.mark.skipif(not processor_flags() >= cpu_dispatch.NEEDED, reason="needs AVX2 and FMA on Linux")
@pytest.mark.slow
def test_importing_the_package_first_is_enough():
    assert printed_by("import fl_peel.kernels; " + ASK) == "pinned"
    assert printed_by("import numpy; " + ASK).endswith("; too late for numpy")
    assert printed_by(ASK, **{SWITCH: "native"}).startswith("native: ")
    assert printed_by(ASK, MKL_CBWR="AVX2").startswith("native: ")


@pytest.mark.engine
@pytest.mark.skipif(not processor_flags() >= cpu_dispatch.NEEDED, reason="needs AVX2 and FMA on Linux")
def test_a_pinned_run_is_the_same_to_the_last_bit_on_another_processor(tiny, compiled_for_others, tmp_path):
    """From pretraining to recall and the model's tables: with loops compiled for haswell, libraries on one thread."""

    def results(name, threads, **environment):
        arguments = ["run", str(tiny), "--set", "user_groups.neighbour_weight=0.1", "--out", str(tmp_path / name)]
        code = f"import sys; sys.argv[1:] = {arguments!r}; from simulations.cli.main import main; main()"
        chosen = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        printed_by(code, tiny.parent, PYTHONPATH=str(ROOT), **chosen, **environment)
        model = sorted((tmp_path / name / "model").glob("*.safetensors"))
        assert model
        report = kept(json.loads((tmp_path / name / "report.json").read_text()))
        return report, [file.read_bytes() for file in model]

    other = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CACHE_DIR": compiled_for_others, "XDG_CACHE_HOME": str(tmp_path)}
    assert results("mine", "2") == results("other", "1", **other)
