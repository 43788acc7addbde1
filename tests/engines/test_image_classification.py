"""Image classifiers against transformers' own pipeline, and images made to hurt."""

import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import transformers
from engine_calls import alone, assert_equal, assert_matches_signature, load, request, together
from PIL import Image

from deployments.errors import InputTooLong, InvalidInput
from deployments.types import text_array

TASK = "image-classification"


def picture(width: int, height: int, seed: int, kind: str = "PNG", mode: str = "RGB", turned: int = 1) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turned
    out = BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, exif=exif)
    return out.getvalue()


PICTURES = [
    picture(48, 20, 1),
    picture(32, 32, 2, "JPEG"),
    picture(10, 70, 3, mode="L"),
    picture(40, 30, 4, mode="P"),
    picture(40, 20, 5, "JPEG", turned=6),
]


def test_batched_and_alone_equal_the_pipeline(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("vit"), TASK)
    pipe = transformers.pipeline(TASK, model=str(tiny("vit")), device="cpu")
    rows = [pipe(Image.open(BytesIO(encoded))) for encoded in PICTURES]
    want = {
        "label": np.stack([text_array([one["label"] for one in row]) for row in rows]),
        "score": np.array([[one["score"] for one in row] for row in rows], dtype=np.float32),
    }
    asked = request(image=PICTURES)
    assert_equal(alone(engine, asked), want)
    got = together(engine, [request(image=PICTURES[:1]), asked])[1]
    assert_equal(got, want)
    assert_matches_signature(engine, asked, got)
    assert engine.labels == ("cat", "dog", "bird")


def test_top_k_gives_the_best(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("vit"), TASK)
    every, best = alone(engine, request(image=PICTURES)), alone(engine, request({"top_k": 1}, image=PICTURES))
    assert best["label"].tolist() == every["label"][:, :1].tolist()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(8_000, 8_000), (200_000, 200_000)])
def test_decompression_bomb_is_refused_unopened(tiny: Callable[[str], Path], width: int, height: int) -> None:
    with pytest.raises(InputTooLong, match="the limit is 50000000") as caught:
        load(tiny("vit"), TASK).prepare(request(image=[PICTURES[0], png_claiming(width, height)]))
    assert caught.value.details["field"] == "image[1]"


@pytest.mark.parametrize("broken", [b"", b"GIF89a" + b"\0" * 50, b"no picture", PICTURES[0][:60], PICTURES[1][:300]])
def test_undecodable_image_is_refused_by_name(tiny: Callable[[str], Path], broken: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"image\[1\] is not a readable PNG or JPEG") as caught:
        load(tiny("vit"), TASK).prepare(request(image=[PICTURES[0], broken]))
    assert caught.value.details["field"] == "image[1]"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about what it skips
def test_damaged_images_are_refused_or_read_and_nothing_else(tiny: Callable[[str], Path]) -> None:
    engine, dice = load(tiny("vit"), TASK), random.Random(0)
    refused = 0
    for encoded in PICTURES * 60:
        damaged = bytearray(encoded)
        for _ in range(dice.randint(1, 8)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            engine.prepare(request(image=[bytes(damaged)]))
        except InvalidInput:
            refused += 1
    assert refused > 50


def test_no_images_are_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(tiny("vit"), TASK).prepare(request(image=np.empty(0, dtype=object)))
    assert caught.value.details["field"] == "image"


def test_text_parameters_are_unknown_here(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput, match="unknown parameter 'truncate'; this model knows: top_k, function_to_apply"):
        load(tiny("vit"), TASK).prepare(request({"truncate": True}, image=PICTURES))
