#include "common/plugin_base.h"

#include <algorithm>
#include <utility>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Plugin: life
// ---------------------------------------------------------------------------------------------------------------

Plugin::Plugin(char const* name, char const* version) noexcept
    : mName(name)
    , mVersion(version)
{
    ++gPluginsAlive;
}

Plugin::Plugin(Plugin const& other) noexcept
    : Plugin(other.mName, other.mVersion)
{
    mNbInputs = other.mNbInputs;
}

Plugin::~Plugin() noexcept
{
    --gPluginsAlive;
}

// ---------------------------------------------------------------------------------------------------------------
// Plugin: helpers
// ---------------------------------------------------------------------------------------------------------------

// For the calls that answer 0 for success.
template <typename Function>
int32_t Plugin::check(char const* call, Function&& function) const noexcept
{
    return guarded<int32_t>(mName, call, -1,
        [&]
        {
            function();
            return 0;
        });
}

// Any thread may ask at any time and may keep the pointer: the text is composed at the first call and never changes.
template <typename Function>
char const* Plugin::describeOnce(char const* call, std::string& text, Function&& describe) noexcept
{
    return guarded<char const*>(mName, call, nullptr,
        [&]
        {
            std::lock_guard<std::mutex> const lock{mTextMutex};
            if (text.empty())
            {
                text = describe();
            }
            return text.c_str();
        });
}

// ---------------------------------------------------------------------------------------------------------------
// Plugin: IPluginV3 and IPluginV3OneCore
// ---------------------------------------------------------------------------------------------------------------

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept
{
    return guarded<nvinfer1::IPluginV3*>(mName, "clone", nullptr, [&] { return copy(); });
}

char const* Plugin::getPluginName() const noexcept
{
    return mName;
}

char const* Plugin::getPluginVersion() const noexcept
{
    return mVersion;
}

char const* Plugin::getPluginNamespace() const noexcept
{
    return "";
}

// ---------------------------------------------------------------------------------------------------------------
// Plugin: IPluginV3OneBuild
// ---------------------------------------------------------------------------------------------------------------

int32_t Plugin::getNbOutputs() const noexcept
{
    return 1;
}

int32_t Plugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return check("getOutputDataTypes",
        [&]
        {
            checkInputCount(nbInputs);
            checkCount("number of outputs", nbOutputs, getNbOutputs());
            std::vector<DataType> const inputs(inputTypes, inputTypes + nbInputs);
            checkTypes(inputs);
            auto const outputs = this->outputTypes(inputs);
            std::copy(outputs.begin(), outputs.end(), outputTypes);
        });
}

int32_t Plugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const* /*shapeInputs*/,
    int32_t /*nbShapeInputs*/, DimsExprs* outputs, int32_t nbOutputs,
    nvinfer1::IExprBuilder& exprBuilder) noexcept
{
    return check("getOutputShapes",
        [&]
        {
            checkInputCount(nbInputs);
            checkCount("number of outputs", nbOutputs, getNbOutputs());
            std::vector<Dims> shapes(static_cast<size_t>(nbInputs));
            std::transform(inputs, inputs + nbInputs, shapes.begin(), constantDims);
            checkShapes(shapes);
            std::fill(outputs, outputs + nbOutputs, outputShape(inputs, exprBuilder));
        });
}

DimsExprs Plugin::outputShape(DimsExprs const* inputs, nvinfer1::IExprBuilder& /*exprBuilder*/) const
{
    return inputs[0];
}

void Plugin::checkKernel(TypesAndShapes const& /*inputs*/) const {}

size_t Plugin::workspaceSize(TypesAndShapes const& /*inputs*/) const
{
    return 0;
}

bool Plugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    return guarded<bool>(mName, "supportsFormatCombination", false,
        [&]
        {
            checkInputCount(nbInputs);
            checkCount("number of outputs", nbOutputs, getNbOutputs());
            if (inOut[pos].desc.format != nvinfer1::TensorFormat::kLINEAR)
            {
                return false;
            }
            std::vector<DataType> inputs;
            for (int32_t i = 0; i <= std::min(pos, nbInputs - 1); ++i)
            {
                inputs.push_back(inOut[i].desc.type);
            }
            return pos < nbInputs
                       ? supportsInput(inputs)
                       : inOut[pos].desc.type == outputTypes(inputs)[static_cast<size_t>(pos - nbInputs)];
        });
}

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
    DynamicPluginTensorDesc const* /*out*/, int32_t /*nbOutputs*/) noexcept
{
    return check("configurePlugin",
        [&]
        {
            checkInputCount(nbInputs);
            TypesAndShapes const inputs{in, nbInputs};
            checkTypes(inputs.types);
            checkShapes(inputs.shapes);
            checkKernel(inputs);
        });
}

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
    DynamicPluginTensorDesc const* /*outputs*/, int32_t /*nbOutputs*/) const noexcept
{
    return guarded<size_t>(mName, "getWorkspaceSize", 0,
        [&]
        {
            checkInputCount(nbInputs);
            return workspaceSize({inputs, nbInputs});
        });
}

char const* Plugin::getMetadataString() noexcept
{
    return describeOnce("getMetadataString", mMetadata, [&] { return toText(fieldsToSerialize()); });
}

char const* Plugin::getTimingCacheID() noexcept
{
    return describeOnce("getTimingCacheID", mTimingCacheId,
        [&] { return std::string{mName} + " " + mVersion + " " + toText(fieldsToSerialize()); });
}

// ---------------------------------------------------------------------------------------------------------------
// Plugin: IPluginV3OneRuntime
// ---------------------------------------------------------------------------------------------------------------

int32_t Plugin::onShapeChange(PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* /*out*/,
    int32_t /*nbOutputs*/) noexcept
{
    return check("onShapeChange",
        [&]
        {
            mNbInputs = kUNKNOWN; // also after a failure: an earlier call no longer counts
            checkInputCount(nbInputs);
            TypesAndShapes const inputs{in, nbInputs};
            checkTypes(inputs.types);
            checkShapes(inputs.shapes);
            checkKernel(inputs);
            mNbInputs = nbInputs;
        });
}

int32_t Plugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return check("enqueue",
        [&]
        {
            if (mNbInputs == kUNKNOWN)
            {
                fail("shapes and number of inputs are unknown; expected a successful onShapeChange before");
            }
            checkCuda(launch({inputDesc, mNbInputs, outputDesc, inputs, outputs, workspace, stream}));
        });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept
{
    return clone();
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept
{
    return guarded<nvinfer1::PluginFieldCollection const*>(mName, "getFieldsToSerialize", nullptr,
        [&]
        {
            mFields = fieldsToSerialize();
            mFieldCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
            return &mFieldCollection;
        });
}

// ---------------------------------------------------------------------------------------------------------------
// Creator
// ---------------------------------------------------------------------------------------------------------------

PluginCreator::PluginCreator(char const* name, char const* version, std::vector<PluginField> fields,
    Plugin* (*create)(FieldReader const&) )
    : mName(name)
    , mVersion(version)
    , mFields(std::move(fields))
    , mFieldCollection{static_cast<int32_t>(mFields.size()), mFields.data()}
    , mCreate(create)
{
}

nvinfer1::IPluginV3* PluginCreator::createPlugin(char const* layerName,
    nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase /*phase*/) noexcept
{
    return guarded<nvinfer1::IPluginV3*>(mName, "createPlugin", nullptr,
        [&]
        {
            try
            {
                return mCreate(FieldReader{fields, mFields});
            }
            catch (
                PluginError const& error) // the same message, with the layer of the network that it is about
            {
                fail("layer \"", layerName == nullptr ? "" : layerName, "\": ", error.what());
            }
        });
}

nvinfer1::PluginFieldCollection const* PluginCreator::getFieldNames() noexcept
{
    return &mFieldCollection;
}

char const* PluginCreator::getPluginName() const noexcept
{
    return mName;
}

char const* PluginCreator::getPluginVersion() const noexcept
{
    return mVersion;
}

char const* PluginCreator::getPluginNamespace() const noexcept
{
    return "";
}

} // namespace bert
