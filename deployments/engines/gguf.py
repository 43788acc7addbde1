"""A GGUF file to a transformers folder, once: weights in bfloat16, tokenizer and chat template from the file.

Called by `deployments.sources` in a thread, through `deployments.engines`; takes half a minute for 135 M parameters and
says in the log how far it is. The folder is kept by the file's digest and appears only when it is complete.
"""

import logging
import os
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.engines.loading import BUILDING, OFFLINE

logger = logging.getLogger(__name__)


def convert(file: Path, folder: Path) -> None:
    """Write the model in `file` as a transformers folder at `folder`, unless it is there by now."""
    started = time.monotonic()
    size = f"{file.stat().st_size / 2**20:.0f} MiB"
    logger.info("converting %s (%s) to %s, once", file.name, size, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="part-", ignore_cleanup_errors=True) as part:
        target = Path(part, folder.name)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **OFFLINE).save_pretrained(target)
        logger.info("converting %s: tokenizer written after %.0f s", file.name, time.monotonic() - started)
        with BUILDING:
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, **OFFLINE
            )
        logger.info("converting %s: weights unpacked after %.0f s", file.name, time.monotonic() - started)
        # What was read from GGUF refuses to be saved, so its weights move into a model that was not.
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with BUILDING:
            plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        plain.to(torch.bfloat16).save_pretrained(target)
        target.chmod(0o755)
        try:
            os.rename(target, folder)
        except OSError:
            if not folder.is_dir():  # else another replica of this machine was faster
                raise
    logger.info("converting %s: done after %.0f s", file.name, time.monotonic() - started)
