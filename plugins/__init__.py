"""The Python side of the CUDA plugins.

* build.py builds the plugin library and its host with CMake.
* plugin_host.py runs plugins without TensorRT, through the host.
* reference.py has the plugins' computations in plain PyTorch.
* testLayerNormPlugin.py tests and times the LayerNorm plugin; device_buffers.py and measure.py serve tests and
  benchmarks.
* rtx_parser_shim.py lets the ONNX parser of TensorRT for RTX add plugin layers.

The kernels are in the folders beside this file, one for each plugin.
"""
