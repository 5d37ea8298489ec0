// Prints where every virtual function of the plugin interfaces stands in its table, and the layout of what is passed.
// Compiled with this project's header and with NVIDIA's: test_plugin_build.py compares the answers.
#include "common/tensorrt_api.h"

#include <cstdio>
#include <cstring>

using namespace nvinfer1;

// A pointer to a virtual member function holds 1 + its offset in the table (Itanium C++ ABI).
template <typename Function>
void slot(char const* name, Function function)
{
    std::ptrdiff_t offset = 0;
    std::memcpy(&offset, &function, sizeof(offset));
    std::printf("slot %s %td\n", name, (offset - 1) / static_cast<std::ptrdiff_t>(sizeof(void*)));
}

#define SLOT(type, function) slot(#type "::" #function, &type::function)
#define SIZE(type) std::printf("size " #type " %zu %zu\n", sizeof(type), alignof(type))
#define FIELD(type, member) std::printf("offset " #type "::" #member " %zu\n", offsetof(type, member))
#define VALUE(constant) std::printf("value " #constant " %lld\n", static_cast<long long>(constant))

int main()
{
    SLOT(IPluginV3, getAPILanguage);
    SLOT(IPluginV3, getInterfaceInfo);
    SLOT(IPluginV3, getCapabilityInterface);
    SLOT(IPluginV3, clone);
    SLOT(IPluginV3OneCore, getPluginName);
    SLOT(IPluginV3OneCore, getPluginVersion);
    SLOT(IPluginV3OneCore, getPluginNamespace);
    SLOT(IPluginV3OneBuild, configurePlugin);
    SLOT(IPluginV3OneBuild, getOutputDataTypes);
    SLOT(IPluginV3OneBuild, getOutputShapes);
    SLOT(IPluginV3OneBuild, supportsFormatCombination);
    SLOT(IPluginV3OneBuild, getNbOutputs);
    SLOT(IPluginV3OneBuild, getWorkspaceSize);
    SLOT(IPluginV3OneBuild, getValidTactics);
    SLOT(IPluginV3OneBuild, getNbTactics);
    SLOT(IPluginV3OneBuild, getTimingCacheID);
    SLOT(IPluginV3OneBuild, getFormatCombinationLimit);
    SLOT(IPluginV3OneBuild, getMetadataString);
    SLOT(IPluginV3OneRuntime, setTactic);
    SLOT(IPluginV3OneRuntime, onShapeChange);
    SLOT(IPluginV3OneRuntime, enqueue);
    SLOT(IPluginV3OneRuntime, attachToContext);
    SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
    SLOT(IPluginCreatorV3One, createPlugin);
    SLOT(IPluginCreatorV3One, getFieldNames);
    SLOT(IPluginCreatorV3One, getPluginName);
    SLOT(IPluginCreatorV3One, getPluginVersion);
    SLOT(IPluginCreatorV3One, getPluginNamespace);
    SLOT(apiv::VDimensionExpr, isConstant);
    SLOT(apiv::VDimensionExpr, getConstantValue);
    SLOT(apiv::VDimensionExpr, isSizeTensor);
    SLOT(apiv::VExprBuilder, constant);
    SLOT(apiv::VExprBuilder, operation);
    SLOT(apiv::VExprBuilder, declareSizeTensor);

    SIZE(Dims);
    SIZE(DimsExprs);
    SIZE(PluginField);
    SIZE(PluginFieldCollection);
    SIZE(PluginTensorDesc);
    SIZE(DynamicPluginTensorDesc);
    SIZE(InterfaceInfo);
    SIZE(IDimensionExpr);
    SIZE(IExprBuilder);
    FIELD(PluginField, name);
    FIELD(PluginField, data);
    FIELD(PluginField, type);
    FIELD(PluginField, length);
    FIELD(PluginTensorDesc, dims);
    FIELD(PluginTensorDesc, type);
    FIELD(PluginTensorDesc, format);
    FIELD(PluginTensorDesc, scale);
    FIELD(DynamicPluginTensorDesc, min);
    FIELD(DynamicPluginTensorDesc, max);
    FIELD(DynamicPluginTensorDesc, opt);

    VALUE(DataType::kFLOAT);
    VALUE(DataType::kHALF);
    VALUE(DataType::kINT8);
    VALUE(DataType::kINT32);
    VALUE(DataType::kBOOL);
    VALUE(DataType::kUINT8);
    VALUE(DataType::kFP8);
    VALUE(DataType::kBF16);
    VALUE(DataType::kINT64);
    VALUE(DataType::kINT4);
    VALUE(DataType::kFP4);
    VALUE(PluginFieldType::kFLOAT16);
    VALUE(PluginFieldType::kFLOAT32);
    VALUE(PluginFieldType::kFLOAT64);
    VALUE(PluginFieldType::kINT8);
    VALUE(PluginFieldType::kINT32);
    VALUE(PluginFieldType::kCHAR);
    VALUE(PluginFieldType::kDIMS);
    VALUE(PluginFieldType::kUNKNOWN);
    VALUE(PluginFieldType::kBF16);
    VALUE(PluginFieldType::kINT64);
    VALUE(DimensionOperation::kSUM);
    VALUE(DimensionOperation::kFLOOR_DIV);
    VALUE(DimensionOperation::kCEIL_DIV);
    VALUE(TensorRTPhase::kRUNTIME);
    VALUE(PluginCapabilityType::kRUNTIME);
    VALUE(TensorFormat::kLINEAR);
    return 0;
}
