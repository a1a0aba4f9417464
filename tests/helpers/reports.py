"""A run's report as files."""

from simulations.report.result_files import write_results
from simulations.report.run_files import report_contents


def write_report(result, out_dir):
    """Write the files of a run, all or none, and return their paths."""
    return write_results(out_dir, report_contents(result))
