// What all plugins of this library share: one class with the three capabilities of a V3 plugin, and its creator. The
// class answers TensorRT's calls; a plugin derives from it and overrides the few functions under "protected", which
// may throw. Read layer_norm/layer_norm_plugin.h next: it is the smallest plugin.
#pragma once

#include "common/checks.h"
#include "common/fields.h"
#include "common/logging.h"
#include "common/tensorrt_api.h"

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

namespace bert
{

// Plugin objects alive in this process: the leak test reads it through bertPluginsAlive().
inline std::atomic<int64_t> gPluginsAlive{0};

// The arguments of enqueue, and the number of inputs, which TensorRT does not pass there.
struct EnqueueCall
{
    PluginTensorDesc const* inputDesc;
    int32_t nbInputs;
    PluginTensorDesc const* outputDesc;
    void const* const* inputs;
    void* const* outputs;
    void* workspace;
    cudaStream_t stream;
};

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime
{
public:
    Plugin(char const* name, char const* version) noexcept;
    // A copy is in the state of the original: it keeps the result of the last onShapeChange.
    Plugin(Plugin const& other) noexcept;
    Plugin& operator=(Plugin const&) = delete;
    ~Plugin() noexcept override;

    // --- IPluginV3: any thread may ask for clones while an engine is built.
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept final;
    nvinfer1::IPluginV3* clone() noexcept final;

    // --- IPluginV3OneCore
    char const* getPluginName() const noexcept final;
    char const* getPluginVersion() const noexcept final;
    char const* getPluginNamespace() const noexcept final;

    // --- IPluginV3OneBuild: called while the network is defined (types, shapes) and while the engine is built.
    int32_t getNbOutputs() const noexcept override; // 1
    int32_t getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes,
        int32_t nbInputs) const noexcept final;
    int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept final;
    // TensorRT asks for one tensor after another, inputs first; only the tensors up to `pos` are filled in.
    bool supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept final;
    // Checks the largest shapes of the profile.
    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
        DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept final;
    // For the largest shapes of the profile. TensorRT allocates the workspace and may use it for other layers between two
    // calls of enqueue.
    size_t getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
        DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept final;
    // All fields with their values, "activation=gelu constant_weight=1": for engine inspectors, and for scripts that
    // read a network back.
    char const* getMetadataString() noexcept final;
    // A timing belongs to the plugin and its fields. TensorRT puts shapes, types and formats before this text; null
    // would mean that timings are never kept.
    char const* getTimingCacheID() noexcept final;

    // --- IPluginV3OneRuntime: TensorRT calls onShapeChange before the first enqueue and after every change of a
    // shape. Without it nothing is launched: only onShapeChange checks the shapes and learns the number of inputs,
    // and an optional bias whose presence is unknown would be left out.
    int32_t onShapeChange(PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out,
        int32_t nbOutputs) noexcept final;
    // Launches kernels and returns; they run later, in the stream. It must not allocate and must not wait.
    int32_t enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept final;
    // Every execution context gets a plugin object of its own.
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept final;
    // The fields stay valid until the next call on the same object.
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept final;

protected:
    // What a plugin writes itself. Each function may throw a PluginError; the calls above log it and report failure
    // to TensorRT. The functions on types and shapes see inputs whose number has been checked.

    // --- for IPluginV3: new Derived(*this)
    virtual Plugin* copy() const = 0;

    // --- for IPluginV3OneBuild and onShapeChange: throw unless number, types and shapes of the inputs are right. In
    // shapes -1 is a dimension that is not known yet; TensorRT asks again when it is.
    virtual void checkInputCount(int32_t count) const = 0;
    virtual void checkTypes(std::vector<DataType> const& inputs) const = 0;
    virtual void checkShapes(std::vector<Dims> const& inputs) const = 0;
    // --- for configurePlugin and onShapeChange, after these three: throw if no kernel takes such inputs on the current
    // GPU. Without one TensorRT builds for other machines: then nothing is known, and any GPU must be assumed.
    virtual void checkKernel(TypesAndShapes const& inputs) const;

    // --- for IPluginV3OneBuild
    // One type for each output, for inputs that checkTypes accepts.
    virtual std::vector<DataType> outputTypes(std::vector<DataType> const& inputs) const = 0;
    // The shape of every output; by default that of the first input.
    virtual DimsExprs outputShape(DimsExprs const* inputs, nvinfer1::IExprBuilder& exprBuilder) const;
    // Whether the last of `inputs` may have the type that it has beside the inputs before it.
    virtual bool supportsInput(std::vector<DataType> const& inputs) const = 0;
    // Bytes of workspace for inputs that the checks accept; 0 by default.
    virtual size_t workspaceSize(TypesAndShapes const& inputs) const;

    // --- for IPluginV3OneRuntime
    // enqueue, with inputs that the checks have accepted.
    virtual cudaError_t launch(EnqueueCall const& call) const = 0;
    // The fields a creator needs to create this object again. Their data must live as long as the object.
    virtual std::vector<PluginField> fieldsToSerialize() const = 0;

private:
    template <typename Function>
    int32_t check(char const* call, Function&& function) const noexcept;
    template <typename Function>
    char const* describeOnce(char const* call, std::string& text, Function&& describe) noexcept;

    static constexpr int32_t kUNKNOWN = -1;

    char const* mName;           // a string literal of the derived class
    char const* mVersion;        // likewise
    int32_t mNbInputs{kUNKNOWN}; // from the last onShapeChange, if that succeeded
    std::mutex mTextMutex;
    std::string mMetadata;
    std::string mTimingCacheId;
    std::vector<PluginField> mFields;
    nvinfer1::PluginFieldCollection mFieldCollection{};
};

// Creators are created once, when the library is loaded, and live as long as the library.
class PluginCreator : public nvinfer1::IPluginCreatorV3One
{
public:
    // `fields` names all fields with their types. `create` returns a new plugin, or throws a PluginError.
    PluginCreator(char const* name, char const* version, std::vector<PluginField> fields,
        Plugin* (*create)(FieldReader const&) );

    // Called while a network is built and again when a plan is loaded. Null stands for failure.
    nvinfer1::IPluginV3* createPlugin(char const* layerName, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

private:
    char const* mName;
    char const* mVersion;
    std::vector<PluginField> mFields;
    nvinfer1::PluginFieldCollection mFieldCollection;
    Plugin* (*mCreate)(FieldReader const&);
};

} // namespace bert
