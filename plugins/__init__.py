"""CUDA plugins for TensorRT: their build, the host that runs them without TensorRT, and plain references."""
