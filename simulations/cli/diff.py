"""`fl-peel diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.console import AsJson, Wide, path_option, print_json, print_table


def diff(
    runs: Annotated[
        list[Path], typer.Argument(metavar="A B [C ...]", help="Output folders of `fl-peel run`; A is the reference.")
    ],
    json_file: Annotated[Path | None, path_option("--json-file", "JSON file for the figures.", "FILE")] = None,
    html_file: Annotated[Path | None, path_option("--html", "HTML file for a page.", "FILE")] = None,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Compare runs: paired differences and ratios with intervals, and corrected p-values.

    Runs need `--per-device` or `--seeds`, and the same data and split.
    """
    from simulations.engine.inputs import check_file

    for option, file in (("--json-file", json_file), ("--html", html_file)):
        if file is not None:
            check_file(file, option)

    from fl_peel.json_codec import to_plain
    from simulations.differences.diff import diff as compared
    from simulations.differences.diff import diff_page, diff_views, missing_note
    from simulations.engine.versions import versions
    from simulations.report.result_files import json_bytes, write_files

    result = compared(runs)
    if as_json:
        print_json(result)
    else:
        for view in diff_views(result):
            print_table(view, wide=wide)
    if missing_note(result):
        typer.echo(missing_note(result), err=as_json)
    if json_file is not None:
        write_files(json_file.absolute().parent, {json_file.name: json_bytes(to_plain(result))})
    if html_file is not None:
        write_files(html_file.absolute().parent, {html_file.name: diff_page(result, versions()).encode()})
        typer.echo(f"page: {html_file}", err=as_json)
