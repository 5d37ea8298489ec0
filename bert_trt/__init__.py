"""What the scripts share: the layers of BERT, plans and their execution, calibration, comparison, batching and text.

Read first, in this order:

1. ``Bert`` in builder.py: the model from top to bottom. Each step is one call of a layer set.
2. layers/native.py: the layer set that makes each step of TensorRT's elementary layers.
3. trt_helper.py: adds single layers to a network; plan.py: builds a network into a plan.
4. pipeline.py: builds, runs and compares, for builder.py and onnx2trt.py.

Then calibration.py for int8 and fp8, and network_runner.py, which runs a network with PyTorch.

Import rule: scripts import this package, and the package imports plugins/, never the other way round; no library
imports a script. trt_helper.py at the top level counts as a library. A test checks this and that no imports are
circular.
"""
