// The plugin interfaces of TensorRT: NVIDIA's own headers where CMake found them, else the small header beside
// this one. Both describe the same binary interface; everything else in plugins/ includes this file only.
#pragma once

#if defined(BERT_USE_NVIDIA_HEADERS)
#include <NvInferRuntime.h>
#else
#include "common/plugin_interfaces.h"
#endif
