// Sizes and offsets of every type that TensorRT and this library exchange. The file is compiled with NVIDIA's headers
// or with ours: a mismatch stops the build instead of crashing a process later.
#include "common/tensorrt_api.h"

#include <cstddef>
#include <type_traits>

namespace
{
using namespace nvinfer1;

static_assert(sizeof(void*) == 8, "the layouts below are those of 64-bit Linux");

static_assert(sizeof(Dims) == 72 && offsetof(Dims, d) == 8);
static_assert(sizeof(PluginField) == 24 && offsetof(PluginField, data) == 8);
static_assert(offsetof(PluginField, type) == 16 && offsetof(PluginField, length) == 20);
static_assert(sizeof(PluginFieldCollection) == 16 && offsetof(PluginFieldCollection, fields) == 8);
static_assert(sizeof(PluginTensorDesc) == 88 && offsetof(PluginTensorDesc, type) == 72);
static_assert(offsetof(PluginTensorDesc, format) == 76 && offsetof(PluginTensorDesc, scale) == 80);
static_assert(sizeof(DynamicPluginTensorDesc) == 304 && offsetof(DynamicPluginTensorDesc, min) == 88);
static_assert(offsetof(DynamicPluginTensorDesc, max) == 160 && offsetof(DynamicPluginTensorDesc, opt) == 232);
static_assert(sizeof(DimsExprs) == 72 && offsetof(DimsExprs, d) == 8);
static_assert(sizeof(InterfaceInfo) == 16 && offsetof(InterfaceInfo, major) == 8);

// A pointer to the virtual table and nothing else; expressions also have a pointer to their implementation.
static_assert(sizeof(IPluginV3) == 8 && std::is_polymorphic_v<IPluginV3>);
static_assert(sizeof(IPluginV3OneCore) == 8 && sizeof(IPluginV3OneBuild) == 8);
static_assert(sizeof(IPluginV3OneRuntime) == 8 && sizeof(IPluginCreatorV3One) == 8);
static_assert(sizeof(IDimensionExpr) == 16 && sizeof(IExprBuilder) == 16);

static_assert(sizeof(DataType) == 4 && sizeof(TensorFormat) == 4 && sizeof(PluginFieldType) == 4);
static_assert(static_cast<int32_t>(DataType::kFLOAT) == 0 && static_cast<int32_t>(DataType::kHALF) == 1);
static_assert(static_cast<int32_t>(DataType::kINT8) == 2 && static_cast<int32_t>(DataType::kINT32) == 3);
static_assert(static_cast<int32_t>(DataType::kBF16) == 7 && static_cast<int32_t>(DataType::kINT64) == 8);
static_assert(static_cast<int32_t>(PluginFieldType::kFLOAT32) == 1);
static_assert(static_cast<int32_t>(PluginFieldType::kINT32) == 5);
static_assert(static_cast<int32_t>(PluginFieldType::kCHAR) == 6);
static_assert(static_cast<int32_t>(TensorFormat::kLINEAR) == 0);

} // namespace
