"""Messages that are wrong: what a broken or hostile node could send instead of what was sent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import strategies as st

Arrays = dict[str, Array]
Config = dict[str, object]


def parts_of(content: RecordDict) -> tuple[Arrays, Config]:
    """Copies of a message's two records."""
    return dict(content.array_records["arrays"]), dict(content.config_records["config"])


def put_together(arrays: Arrays, config: Config) -> RecordDict:
    """A message of these."""
    return RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord(config)})  # type: ignore[arg-type]


def replying(like: Message, content: RecordDict) -> Message:
    """The same reply with another content."""
    message = Message(content, reply_to=like)
    message.metadata.__dict__.update(like.metadata.__dict__)
    return message


def with_array(content: RecordDict, name: str, change: Callable[[np.ndarray], np.ndarray]) -> RecordDict:
    """With one array changed."""
    arrays, config = parts_of(content)
    arrays[name] = Array(change(arrays[name].numpy().copy()))
    return put_together(arrays, config)


def extreme(array: np.ndarray, place: int, end: bool) -> np.ndarray:
    """One number of it at an end of what its type holds; of floating point, infinity or none at all."""
    if not array.size:
        return array
    flat = array.reshape(-1).copy()
    if array.dtype.kind == "f":
        flat[place % array.size] = np.inf if end else np.nan
    elif array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        flat[place % array.size] = info.max if end else info.min
    return flat.reshape(array.shape)


RESHAPED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cut": lambda array: array[:-1] if array.ndim else array[None],
    "longer": lambda array: (
        np.concatenate([array, array[:1]]) if array.ndim and len(array) else np.zeros(3, array.dtype)
    ),
    "deeper": lambda array: array[..., None],
    "empty": lambda array: array[:0] if array.ndim else array[None][:0],
    "flat": lambda array: np.append(array.reshape(-1), array.reshape(-1)[:1]),
}
TYPES = [np.int8, np.int32, np.int64, np.uint32, np.uint64, np.float16, np.float32, np.float64, np.bool_, "S3", ">i8"]


class Wrong:
    """A message, and in a word what was done to it: all that is printed."""

    def __init__(self, content: RecordDict, how: str) -> None:
        self.content = content
        self.how = how

    def __repr__(self) -> str:
        return self.how


@st.composite
def mutated(draw: st.DrawFn, content: RecordDict) -> Wrong:
    """A message that is not what was sent."""
    arrays, config = parts_of(content)
    kinds = ["more", "no record", "drop number", "wrong number"]
    if arrays:
        kinds += ["drop", "rename", "type", "shape", "bytes", "cut bytes", "header", *3 * ["extreme"]]
    kind = draw(st.sampled_from(kinds))
    if kind == "no record":
        return Wrong(RecordDict({"arrays": ArrayRecord(arrays)}), kind)
    name = ""
    if kind == "more":
        arrays[draw(st.sampled_from(["more", "groups/0/more", "groups/x/rows", "groups/9/rows", "/", "a/b/c/d"]))] = (
            Array(np.zeros(2, np.int64))
        )
    elif kind in ("drop number", "wrong number"):
        name = draw(st.sampled_from(sorted(config))) if config else ""
        if kind == "drop number":
            config.pop(name, None)
        elif config:
            config[name] = draw(
                st.sampled_from(
                    [-1, 2**63 - 1, -(2**63), 0.5, float("nan"), float("inf"), "x", True, b"x", [1], [], [2**62]]
                )
            )
    else:
        name = draw(st.sampled_from(sorted(arrays)))
        array = arrays[name]
        if kind == "drop":
            del arrays[name]
        elif kind == "rename":
            arrays[name + "x"] = arrays.pop(name)
        elif kind == "type":
            arrays[name] = Array(np.zeros(array.shape, draw(st.sampled_from(TYPES))))
        elif kind == "shape":
            arrays[name] = Array(RESHAPED[draw(st.sampled_from(sorted(RESHAPED)))](array.numpy()))
        elif kind == "extreme":
            arrays[name] = Array(extreme(array.numpy(), draw(st.integers(0, 2**31)), draw(st.booleans())))
        elif kind == "bytes":
            arrays[name] = Array(array.dtype, array.shape, array.stype, draw(st.binary(max_size=300)))
        elif kind == "cut bytes":
            data = bytes(array.data)
            arrays[name] = Array(array.dtype, array.shape, array.stype, data[: draw(st.integers(0, len(data)))])
        else:  # a header that speaks of more than there is
            huge = (
                np.lib.format.magic(1, 0) + b"\x76\x00" + b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }"
            )
            size = draw(st.sampled_from([-1, 2**40, 2**62, 2**70]))
            arrays[name] = Array(array.dtype, array.shape, array.stype, (huge % size).ljust(127) + b"\n")
    return Wrong(put_together(arrays, config), f"{kind} {name}")
