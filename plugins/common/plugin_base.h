// What all plugins of this library have in common: one class with the three capabilities of a V3 plugin, and its
// creator. A plugin derives from Plugin and writes only what is its own.
#pragma once

#include "common/checks.h"
#include "common/fields.h"
#include "common/logging.h"
#include "common/tensorrt_api.h"

#include <atomic>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace bert
{

// Plugin objects alive in this process: the leak test reads it through bertPluginsAlive().
inline std::atomic<int64_t> gPluginsAlive{0};

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime
{
public:
    Plugin(char const* name, char const* version) noexcept
        : mName(name)
        , mVersion(version)
    {
        ++gPluginsAlive;
    }
    // A copy is in the state of the original: it knows the shapes that the original was told.
    Plugin(Plugin const& other) noexcept
        : Plugin(other.mName, other.mVersion)
    {
        mNbInputs = other.mNbInputs;
    }
    Plugin& operator=(Plugin const&) = delete;
    ~Plugin() noexcept override
    {
        --gPluginsAlive;
    }

    // --- IPluginV3: any thread may ask for clones while an engine is built.
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override
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

    // --- IPluginV3OneCore
    char const* getPluginName() const noexcept override
    {
        return mName;
    }
    char const* getPluginVersion() const noexcept override
    {
        return mVersion;
    }
    char const* getPluginNamespace() const noexcept override
    {
        return "";
    }

    // --- IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override
    {
        return 1;
    }
    // All fields with their values, "activation=gelu constant_weight=1": for engine inspectors, and for scripts that
    // read a network back.
    char const* getMetadataString() noexcept override
    {
        return describeOnce("getMetadataString", mMetadata, [&] { return toText(fieldsToSerialize()); });
    }
    // A timing belongs to the plugin and its fields. TensorRT puts shapes, types and formats before this text; null
    // would mean that timings are never kept.
    char const* getTimingCacheID() noexcept override
    {
        return describeOnce("getTimingCacheID", mTimingCacheId,
            [&] { return std::string{mName} + " " + mVersion + " " + toText(fieldsToSerialize()); });
    }

    // --- IPluginV3OneRuntime: TensorRT calls onShapeChange before the first enqueue and after every change of a shape.
    // Without it nothing is launched: it alone checks the shapes and says how many inputs there are, and a bias that is
    // not known to be there would be left out.
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::PluginTensorDesc const* /*out*/, int32_t /*nbOutputs*/) noexcept final
    {
        return check("onShapeChange",
            [&]
            {
                mNbInputs = kNOT_TOLD; // also after a failure: what an earlier call told is over
                checkInputs(in, nbInputs);
                mNbInputs = nbInputs;
            });
    }
    // Launches kernels and returns; they run later, in the stream. No allocation, no waiting.
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept final
    {
        return check("enqueue",
            [&]
            {
                if (mNbInputs == kNOT_TOLD)
                {
                    fail("shapes and number of inputs are unknown; expected a successful onShapeChange "
                         "before");
                }
                checkCuda(launch(inputDesc, mNbInputs, outputDesc, inputs, outputs, workspace, stream));
            });
    }
    // Every execution context gets a plugin object of its own.
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept override
    {
        return clone();
    }
    // The fields stay valid until the next call on the same object.
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override
    {
        return run<nvinfer1::PluginFieldCollection const*>("getFieldsToSerialize", nullptr,
            [&]
            {
                mFields = fieldsToSerialize();
                mFieldCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
                return &mFieldCollection;
            });
    }

protected:
    // The fields a creator needs to make this object again. Their data must live as long as the object.
    virtual std::vector<nvinfer1::PluginField> fieldsToSerialize() const = 0;

    // Throws a PluginError unless number, types and shapes of the inputs, all known here, are as they must be.
    virtual void checkInputs(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs) const = 0;

    // enqueue, with inputs that checkInputs has seen.
    virtual cudaError_t launch(nvinfer1::PluginTensorDesc const* inputDesc, int32_t nbInputs,
        nvinfer1::PluginTensorDesc const* outputDesc, void const* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream) const = 0;

    // guarded(), in this plugin's name.
    template <typename Result, typename Function>
    Result run(char const* call, Result onError, Function&& function) const noexcept
    {
        return guarded<Result>(mName, call, onError, std::forward<Function>(function));
    }

    // The calls that answer 0 for success.
    template <typename Function>
    int32_t check(char const* call, Function&& function) const noexcept
    {
        return run<int32_t>(call, -1,
            [&]
            {
                function();
                return 0;
            });
    }

private:
    // Any thread may ask at any time and may keep the pointer: the text is made at the first call and stays.
    template <typename Function>
    char const* describeOnce(char const* call, std::string& text, Function&& describe) noexcept
    {
        return run<char const*>(call, nullptr,
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

    static constexpr int32_t kNOT_TOLD = -1;

    char const* mName;            // a string literal of the derived class
    char const* mVersion;         // likewise
    int32_t mNbInputs{kNOT_TOLD}; // of the last onShapeChange, if that succeeded
    std::mutex mTextMutex;
    std::string mMetadata;
    std::string mTimingCacheId;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mFieldCollection{};
};

// Creators are made once, when the library is loaded, and are never destroyed before it.
class PluginCreator : public nvinfer1::IPluginCreatorV3One
{
public:
    PluginCreator(char const* name, char const* version, std::vector<nvinfer1::PluginField> fields)
        : mName(name)
        , mVersion(version)
        , mFields(std::move(fields))
        , mFieldCollection{static_cast<int32_t>(mFields.size()), mFields.data()}
    {
    }

    // Called while a network is built and again when a plan is loaded. Null stands for failure.
    nvinfer1::IPluginV3* createPlugin(char const* layerName, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase /*phase*/) noexcept override
    {
        return guarded<nvinfer1::IPluginV3*>(mName, "createPlugin", nullptr,
            [&]
            {
                try
                {
                    return create(fields);
                }
                catch (
                    PluginError const& error) // the same words, and which layer of the network they are about
                {
                    fail("layer \"", layerName == nullptr ? "" : layerName, "\": ", error.what());
                }
            });
    }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mFieldCollection;
    }
    char const* getPluginName() const noexcept override
    {
        return mName;
    }
    char const* getPluginVersion() const noexcept override
    {
        return mVersion;
    }
    char const* getPluginNamespace() const noexcept override
    {
        return "";
    }

protected:
    virtual nvinfer1::IPluginV3* create(nvinfer1::PluginFieldCollection const* fields) const = 0;

    std::vector<nvinfer1::PluginField> const& knownFields() const noexcept
    {
        return mFields;
    }

private:
    char const* mName;
    char const* mVersion;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mFieldCollection;
};

} // namespace bert
