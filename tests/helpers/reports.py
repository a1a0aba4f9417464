"""A run's report as files."""

from simulations.report.result_files import write_results
from simulations.report.run_files import RUN
from strategies.figures.schema import to_json


def write_report(result, out_dir):
    """Write the files of a run, all or none, and return their paths."""
    return write_results(out_dir, RUN.contents(to_json(result)))
