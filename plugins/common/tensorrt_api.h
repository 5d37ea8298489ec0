// The plugin interfaces of TensorRT: NVIDIA's own headers where CMake found them, otherwise the small header beside
// this file. Both describe the same binary interface; everything else in plugins/ includes this file only.
#pragma once

#if defined(BERT_USE_NVIDIA_HEADERS)
#include <NvInferRuntime.h>
#else
#include "common/plugin_interfaces.h"
#endif

namespace bert
{

// The types that every plugin names all the time.
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

} // namespace bert
