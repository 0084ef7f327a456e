"""A checkpoint as llama.cpp's GGUF file: their own converter, run on words that it has not met.

    python benchmarks/peers/to_gguf.py LLAMA_SOURCE CHECKPOINT OUT.gguf [bf16|f32]

Called by hand before the llama.cpp drivers; `llama-quantize` makes Q4_0 and Q8_0 of the result. LLAMA_SOURCE
is a source tree of llama.cpp. Their converter recognises a tokenizer by a hash of one text; ours splits words
as Qwen2's does but has fewer of them, so it is told instead.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit("usage: to_gguf.py LLAMA_SOURCE CHECKPOINT OUT.gguf [bf16|f32]")
    tree, checkpoint, out = (Path(arg).resolve() for arg in sys.argv[1:4])
    kind = sys.argv[4] if len(sys.argv) > 4 else "bf16"
    script = tree / "convert_hf_to_gguf.py"
    if not script.is_file():
        sys.exit(f"{script}: no such file; give the source tree of llama.cpp")
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    sys.argv = [str(script), str(checkpoint), "--outfile", str(out), "--outtype", kind, "--no-mtp"]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
