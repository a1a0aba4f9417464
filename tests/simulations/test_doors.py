"""What is imported when a run starts."""

import subprocess
import sys

import pytest

LATER = {"torch", "sklearn", "matplotlib", "jinja2", "ray"}
"""What is imported when something trains, groups are made, a page is drawn, or never on one machine."""


@pytest.mark.slow
def test_a_user_does_not_wait_for_what_comes_later(tiny, tmp_path):
    """Until the nodes answer; figures of a page are drawn by other processes."""
    out = str(tmp_path / "out")
    program = f"""if True:
        import sys
        from simulations.cli import console
        from simulations.cli.main import main
        def tell(lines, event, write=console.ProgressLines.__call__):
            print(event.stage, event.done, sorted({LATER!r} & set(sys.modules)))
            write(lines, event)
        console.ProgressLines.__call__ = tell
        for more in ([], ["--out", {out!r}]):
            sys.argv = ["fl-peel", "run", {str(tiny)!r}, "--no-cache", "--set", "refinement.rounds=0", *more]
            try:
                main()
            except SystemExit as ended:
                assert not ended.code
            print("drawn", "matplotlib" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.endswith("]")]
    assert lines[:3] == ["start 0 []", "start 1 []", "data 1 []"]
    assert "heterogeneity 1 ['sklearn', 'torch']" in lines
    assert [line for line in done.stdout.splitlines() if line.startswith("drawn")] == ["drawn False"] * 2
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
