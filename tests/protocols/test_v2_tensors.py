import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deployments.errors import InvalidInput
from deployments.types import NUMPY_DTYPES, Array, Datatype
from serve_app.protocols.json_body import dump
from serve_app.protocols.v2_tensors import from_base64, nested_shape, to_array, to_json

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


def arrays(datatype: Datatype) -> st.SearchStrategy[Array]:
    if datatype is Datatype.BYTES:
        texts = st.text(max_size=5).map(str.encode)
        return SHAPES.flatmap(lambda shape: hnp.arrays(np.object_, shape, elements=texts, fill=st.nothing()))
    options = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    return hnp.arrays(NUMPY_DTYPES[datatype], SHAPES, elements=options)


CASES = st.sampled_from([d for d in Datatype if d is not Datatype.FP16]).flatmap(
    lambda datatype: st.tuples(st.just(datatype), arrays(datatype))
)


@given(CASES)
def test_a_tensor_survives_json_flat_and_nested(case: tuple[Datatype, Array]) -> None:
    datatype, array = case
    written, flat, content_type = to_json(array)
    assert (written, content_type) == (datatype, "")
    back = to_array("x", datatype, array.shape, orjson.loads(dump(flat)))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    nested = np.array(orjson.loads(dump(flat)), dtype=np.object_).reshape(array.shape).tolist()
    assert nested_shape(nested) == array.shape
    np.testing.assert_array_equal(to_array("x", datatype, array.shape, nested), array)


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=5))
def test_bytes_survive_whatever_they_are(elements: list[bytes]) -> None:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    _, written, content_type = to_json(array)
    back = to_array("x", Datatype.BYTES, array.shape, written)
    assert list(from_base64("x", back) if content_type else back) == elements


def test_a_data_url_is_base64_as_well() -> None:
    array = to_array("image", Datatype.BYTES, (1,), ["data:image/png;base64,iVBO"])
    assert from_base64("image", array)[0] == b"\x89PN"


def test_what_is_not_base64_names_the_element() -> None:
    array = to_array("image", Datatype.BYTES, (2,), ["iVBO", "a photo!"])
    with pytest.raises(InvalidInput, match="element 1 is not base64"):
        from_base64("image", array)
