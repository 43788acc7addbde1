"""Arrays of every datatype, at the edges of its range, and of sizes that hold nothing."""

import numpy as np

ARRAYS = {
    "BOOL": np.array([[True, False]]),
    **{
        f"{'U' if kind == 'u' else ''}INT{8 * size}": np.array(
            [[np.iinfo(f"{kind}{size}").min, np.iinfo(f"{kind}{size}").max]], f"{kind}{size}"
        )
        for kind in "iu"
        for size in (1, 2, 4, 8)
    },
    "FP16": np.array([[np.nan, np.inf, -np.inf, 65504, -0.0]], np.float16),
    "FP32": np.array([[np.nan, np.inf, -np.inf, 3.4e38, 1e-45]], np.float32),
    "FP64": np.array([[np.nan, np.inf, -np.inf, 1.7e308, 5e-324]], np.float64),
    "BYTES": np.array([[b"a\x00b", "Gr\u00fc\u00dfe \U0001f388".encode(), b"", b"\xff\xfe"]], np.object_),
}
NOTHING = [(1, 0), (3, 0)]


def same(found: np.ndarray, sent: np.ndarray) -> bool:
    """Return whether an array came back as it was sent: datatype, shape and every bit of it."""
    if sent.dtype.hasobject:
        return found.shape == sent.shape and list(found.flat) == list(sent.flat)
    return (found.dtype, found.shape, found.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())
