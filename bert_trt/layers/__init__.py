"""The layer sets: what each step of BERT in builder.py is made of.

Read ``native.py`` first: every step from TensorRT's own elementary layers. The other sets replace single steps:

* ``tensorrt_attention.py``: attention as TensorRT's own attention layer (``--fusion tensorrt``).
* ``fused.py``: embeddings, attention and residual sum with layer norm by our plugins (``--fusion plugins``).

Two things are the same for every set, and are handed to it: ``layouts.py`` says how sequences lie in the tensors
(``--batching``), ``products.py`` and ``quantized.py`` compute the matrix products with a weight (``--fusion all``,
``--precision int8`` and ``fp8``).
"""
