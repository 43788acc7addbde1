"""Encoded images to classes with scores. Equals transformers' `image-classification` pipeline. Needs Pillow."""

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

from deployments.engines import expected_signature
from deployments.engines.classes import ClassParams, class_names, ranked
from deployments.engines.loading import OFFLINE, free_device, load_shared, module_bytes
from deployments.engines.options import ClassificationOptions
from deployments.engines.params import parse_params
from deployments.errors import InputTooLong, InvalidInput
from deployments.spec import ModelSpec
from deployments.types import Array, InferRequest, Item, Tensors

_FORMATS = ("PNG", "JPEG")
_MAX_PIXELS = 50_000_000  # 150 MB as RGB: a few kilobytes of PNG can claim far more
# What Pillow's decoders raise on broken files.
_UNDECODABLE = (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error)


class ImageClassification:
    """Any image classification model with its image processor."""

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        self.signature = expected_signature(spec)
        self._device = device
        self._model, self._parking = load_shared(AutoModelForImageClassification, path, spec, device)
        self._processor = AutoImageProcessor.from_pretrained(path, **OFFLINE)
        self._options = ClassificationOptions.model_validate(spec.options)
        self.labels = class_names(self._model.config)

    def prepare(self, request: InferRequest) -> list[Item]:
        """Decode `image` BYTES [n] (PNG or JPEG) and scale each to what the model takes."""
        parse_params(ClassParams, request.params)
        images = request.inputs["image"]
        if images.size == 0:
            raise InvalidInput("input 'image' is empty; give at least one element", field="image")
        return [self._item(decode_image(encoded, f"image[{i}]")) for i, encoded in enumerate(images.flat)]

    def run(self, items: Sequence[Item]) -> Sequence[Array]:
        """Run images of one size together; return the logits of each, FP32."""
        pixels = torch.from_numpy(np.stack([item.data for item in items])).to(self._device, self._model.dtype)
        with torch.inference_mode():
            logits: torch.Tensor = self._model(pixel_values=pixels).logits
        return list(logits.float().cpu().numpy())

    def finish(self, request: InferRequest, outputs: Sequence[Array]) -> Tensors:
        """Return `label` BYTES [n,k] and `score` FP32 [n,k], the highest score first."""
        return ranked(outputs, self._model.config, self._options, parse_params(ClassParams, request.params))

    def size_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return module_bytes(self._model)

    def warm_up(self) -> None:
        """Run once on a black image."""
        self.run([self._item(Image.new("RGB", (32, 32)))])

    def park(self) -> None:
        """Take the weights off the device."""
        self._parking.park()
        free_device(self._device)

    def unpark(self) -> None:
        """Bring the weights back."""
        self._parking.unpark()

    def close(self) -> None:
        """Let go of the weights."""
        self._parking.drop()
        del self._parking
        self._model = None
        free_device(self._device)

    def _item(self, image: Image.Image) -> Item:
        pixels = self._processor(images=image, return_tensors="np")["pixel_values"][0]
        return Item(pixels, group=pixels.shape)


def decode_image(encoded: bytes, field: str) -> Image.Image:
    """Decode a PNG or JPEG to RGB, turned as its EXIF says.

    Raises:
        InvalidInput: it is neither, or broken.
        InputTooLong: it has more pixels than `_MAX_PIXELS`; known before any is decoded.
    """
    try:
        with Image.open(BytesIO(encoded), formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise _too_large(field, f"{image.width} x {image.height}")
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:
        raise _too_large(field, "far more") from None
    except _UNDECODABLE as exc:
        raise InvalidInput(f"{field} is not a readable PNG or JPEG image: {exc}"[:300], field=field) from None


def _too_large(field: str, size: str) -> InputTooLong:
    return InputTooLong(f"{field} has {size} pixels; the limit is {_MAX_PIXELS}. Send a smaller image", field=field)
