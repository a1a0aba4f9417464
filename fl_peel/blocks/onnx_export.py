"""Scoring of a stored embedding as an ONNX model, for stock runtimes: ``pip install 'fl-peel[onnx]'``.

The model holds the codes and scales as the artefact does. Its one input is the user embedding, which may be left out:
then it is that of the artefact. Its output is the score of every catalogue row, minus infinity where no block is kept.
Scores are added up in the artefact's own order (docs/artefact.md), so that they are the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import number_dtype
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.errors import ArtifactError

OPSET = 18
"""The first whose ScatterElements and BitwiseAnd are those used here."""
IR_VERSION = 8
"""The oldest that has this opset: runtimes refuse newer ones than they know."""
USER, SCORES = "user", "scores"


def to_onnx(artefact: StoredEmbedding | bytes | str | Path, out: str | Path | None = None) -> bytes:
    """Convert an artefact, or the file of one, to an ONNX model; it is written to ``out``, where given.

    Raises:
        ArtifactError: the package `onnx` is missing, the file cannot be read or written, or is no artefact.
    """
    stored = _stored(artefact)
    try:
        import onnx
    except ImportError as error:
        raise ArtifactError("the package onnx is missing; pip install 'fl-peel[onnx]'") from error
    model = _Model(onnx, stored).made()
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    if out is not None:
        try:
            Path(out).write_bytes(data)
        except OSError as error:
            raise ArtifactError(f"{out}: cannot be written ({error.strerror}); give another file") from error
    return data


def _stored(artefact: StoredEmbedding | bytes | str | Path) -> StoredEmbedding:
    if isinstance(artefact, StoredEmbedding):
        return artefact
    if isinstance(artefact, bytes):
        return StoredEmbedding.from_bytes(artefact)
    try:
        return StoredEmbedding.from_bytes(Path(artefact).read_bytes())
    except OSError as error:
        raise ArtifactError(f"{artefact}: cannot be read ({error.strerror}); give a .peel file") from error
    except ArtifactError as error:
        raise ArtifactError(f"{artefact}: {error}") from error


class _Model:
    """A graph under construction: every operation takes names of values and returns the name of its result."""

    def __init__(self, onnx: Any, stored: StoredEmbedding) -> None:
        self._onnx, self._helper, self._stored = onnx, onnx.helper, stored
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def made(self) -> Any:
        stored, helper, kinds = self._stored, self._helper, self._onnx.TensorProto
        whole = np.zeros(stored.embedding_dim, np.float32)  # of the columns that are not stored, no block has any
        whole[: len(stored.user)] = stored.user
        user = self._operation("Cast", self._constant(whole, USER), to=kinds.DOUBLE)
        nothing = self._onnx.numpy_helper.from_array(np.array([-np.inf]))
        total = self._operation("ConstantOfShape", self._constant(np.array([stored.num_items])), value=nothing)
        zero, narrow = self._constant(np.array(0.0)), number_dtype(stored.num_items, 1)
        width = stored.embedding_dim // stored.num_slices
        pieces = np.repeat(np.arange(len(stored.blocks)), stored.counts)
        within = np.arange(len(pieces)) - np.repeat(np.cumsum(stored.counts) - stored.counts, stored.counts)
        rows, slices = stored.starts[pieces] + within, (stored.blocks % stored.num_slices)[pieces]
        for number in np.unique(slices).tolist():
            mine = slices == number
            part = self._partial(mine, user, number * width, width)
            where = self._operation("Cast", self._constant(rows[mine].astype(narrow)), to=kinds.INT64)
            before = self._operation("Gather", total, where)
            before = self._operation("Where", self._operation("IsInf", before), zero, before)
            total = self._operation("ScatterElements", total, where, self._operation("Add", before, part))
        self._nodes.append(helper.make_node("Cast", [total], [SCORES], to=kinds.FLOAT))
        graph = helper.make_graph(
            self._nodes,
            "peel",
            [helper.make_tensor_value_info(USER, kinds.FLOAT, [stored.embedding_dim])],
            [helper.make_tensor_value_info(SCORES, kinds.FLOAT, [stored.num_items])],
            self._constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fl-peel"
        )
        helper.set_model_props(
            model, {"catalogue": stored.catalogue.hex(), "user_group": str(stored.user_group), "rows": "catalogue"}
        )
        return model

    def _partial(self, mine: NDArray[np.bool_], user: str, first: int, width: int) -> str:
        """Scores of some row pieces, all of one slice: column by column, each product and sum rounded on its own."""
        columns = self._columns(mine, width)
        part = ""
        for column, values in enumerate(columns):
            weight = self._operation("Gather", user, self._constant(np.array(first + column)))
            product = self._operation("Mul", values, weight)
            part = self._operation("Add", part, product) if part else product
        return part

    def _columns(self, mine: NDArray[np.bool_], width: int) -> list[str]:
        """The values of some row pieces, a column each, as doubles."""
        stored, kinds = self._stored, self._onnx.TensorProto
        if stored.precision == "int4":
            packed = self._constant(np.ascontiguousarray(stored.codes[mine].T).astype(np.uint8))  # (columns, T)
            low = self._operation("BitwiseAnd", packed, self._constant(np.array(15, np.uint8)))
            high = self._operation("BitShift", packed, self._constant(np.array(4, np.uint8)), direction="RIGHT")
            halves = [self._operation("Cast", half, to=kinds.DOUBLE) for half in (low, high)]
            eight = self._constant(np.array(8.0))
            sources = [self._operation("Sub", half, eight) for half in halves]
            codes = [self._row(sources[column % 2], column // 2) for column in range(width)]
        else:
            table = self._constant(np.ascontiguousarray(stored.codes[mine].T))  # (columns, T)
            doubles = self._operation("Cast", table, to=kinds.DOUBLE)
            codes = [self._row(doubles, column) for column in range(width)]
        if not len(stored.scales):
            return codes
        scales = self._operation("Cast", self._constant(stored.scales[mine]), to=kinds.DOUBLE)
        return [self._operation("Mul", code, scales) for code in codes]

    def _row(self, table: str, number: int) -> str:
        return self._operation("Gather", table, self._constant(np.array(number)))

    def _constant(self, values: NDArray[Any], name: str = "") -> str:
        named = name or f"c{len(self._constants)}"
        native = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("=")).reshape(values.shape)
        self._constants.append(self._onnx.numpy_helper.from_array(native, named))
        return named

    def _operation(self, kind: str, *inputs: str, **attributes: Any) -> str:
        result = f"v{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(kind, list(inputs), [result], **attributes))
        return result
