"""Tokenizers: volumes to latents and back, behind one interface.

`load_tokenizer` reads any of them; nothing outside this package knows which kind it is.
"""

from fmrisynth.models.tokenizers.base import Tokenizer, TokenizerInfo, copy_tokenizer
from fmrisynth.models.tokenizers.build import build_tokenizer, load_tokenizer

__all__ = ["Tokenizer", "TokenizerInfo", "build_tokenizer", "copy_tokenizer", "load_tokenizer"]
