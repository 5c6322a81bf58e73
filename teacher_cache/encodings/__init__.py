"""The encodings: how logits are stored, one file each, behind one interface."""

from teacher_cache.encodings.encoding import ArraySpec, ClassHead, Encoding
from teacher_cache.encodings.options import EncodingSettings
from teacher_cache.encodings.registry import ENCODINGS, encoding_of

__all__ = ["ENCODINGS", "ArraySpec", "ClassHead", "Encoding", "EncodingSettings", "encoding_of"]
