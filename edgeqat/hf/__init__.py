"""`import edgeqat.hf` teaches transformers our attention and our packed folders.

The one module of the package that works at import: registration is its purpose.
"""

from edgeqat.hf import attention as _attention
from edgeqat.hf import quantizer as _quantizer

_attention.register()
_quantizer.register()
