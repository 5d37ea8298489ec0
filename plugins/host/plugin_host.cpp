#include "host/plugin_host.h"

#include "common/tensorrt_api.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <fcntl.h>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

using namespace nvinfer1;

namespace
{

thread_local std::string gError;

[[noreturn]] void fail(std::string const& message)
{
    throw std::runtime_error(message);
}

// Runs one function of the C interface: an exception becomes pluginHostError() and the return value for failure.
template <typename Result, typename Function>
Result guarded(Result onError, Function&& function) noexcept
{
    try
    {
        gError.clear();
        return function();
    }
    catch (std::exception const& error)
    {
        gError = error.what();
    }
    return onError;
}

// Checks the status that a plugin's call returned; 0 is success.
void check(int32_t status, char const* call)
{
    if (status != 0)
    {
        fail(std::string{call} + " returned " + std::to_string(status));
    }
}

// ---------------------------------------------------------------------------------------------------------------
// The logger: the layout of ILogger and ILoggerFinder in TensorRT 11 and TensorRT for RTX 1.7
// ---------------------------------------------------------------------------------------------------------------

class Logger : public IVersionedInterface
{
public:
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"ILogger", 1, 0};
    }
    virtual void log(int32_t /*severity*/, char const* message) noexcept
    {
        std::lock_guard<std::mutex> const lock{mMutex};
        mMessages += mMessages.empty() ? "" : "\n";
        mMessages += message;
    }
    std::string take()
    {
        std::lock_guard<std::mutex> const lock{mMutex};
        return std::exchange(mMessages, {});
    }

private:
    std::mutex mMutex;
    std::string mMessages;
};

class LoggerFinder : public IVersionedInterface
{
public:
    explicit LoggerFinder(Logger& logger)
        : mLogger(logger)
    {
    }
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"ILoggerFinder", 1, 0};
    }
    virtual void* findLogger()
    {
        return &mLogger;
    }

private:
    Logger& mLogger;
};

// ---------------------------------------------------------------------------------------------------------------
// Dimension expressions: numbers, or unknown
// ---------------------------------------------------------------------------------------------------------------

class ExpressionValue : public apiv::VDimensionExpr
{
public:
    explicit ExpressionValue(int64_t value)
        : mValue(value)
    {
    }
    bool isConstant() const override
    {
        return mValue >= 0;
    }
    int64_t getConstantValue() const override
    {
        return mValue;
    }
    bool isSizeTensor() const override
    {
        return false;
    }

private:
    int64_t mValue; // -1: unknown
};

class Expression : public IDimensionExpr
{
public:
    explicit Expression(int64_t value)
        : mValue(value)
    {
        mImpl = &mValue;
    }
    ~Expression() noexcept override = default;

private:
    ExpressionValue mValue;
};

int64_t evaluate(DimensionOperation operation, int64_t a, int64_t b)
{
    switch (operation)
    {
    case DimensionOperation::kSUM:
        return a + b;
    case DimensionOperation::kPROD:
        return a * b;
    case DimensionOperation::kMAX:
        return std::max(a, b);
    case DimensionOperation::kMIN:
        return std::min(a, b);
    case DimensionOperation::kSUB:
        return a - b;
    case DimensionOperation::kEQUAL:
        return a == b;
    case DimensionOperation::kLESS:
        return a < b;
    case DimensionOperation::kFLOOR_DIV:
        return b == 0 ? -1 : a / b;
    case DimensionOperation::kCEIL_DIV:
        return b == 0 ? -1 : (a + b - 1) / b;
    }
    return -1;
}

class ExpressionFactory : public apiv::VExprBuilder
{
public:
    IDimensionExpr const* constant(int64_t value) override
    {
        return &mExpressions.emplace_back(value);
    }
    IDimensionExpr const* operation(
        DimensionOperation operation, IDimensionExpr const& first, IDimensionExpr const& second) override
    {
        bool const constants = first.isConstant() && second.isConstant();
        return constant(
            constants ? evaluate(operation, first.getConstantValue(), second.getConstantValue()) : -1);
    }
    IDimensionExpr const* declareSizeTensor(
        int32_t /*outputIndex*/, IDimensionExpr const& /*opt*/, IDimensionExpr const& /*upper*/) override
    {
        return nullptr; // for outputs whose size depends on data, which none of these plugins has
    }

private:
    std::deque<Expression> mExpressions; // a deque does not move its elements
};

class ExpressionBuilder : public IExprBuilder
{
public:
    ExpressionBuilder()
    {
        mImpl = &mFactory;
    }
    ~ExpressionBuilder() noexcept override = default;

    DimsExprs expressions(HostTensor const& tensor)
    {
        DimsExprs dims{};
        dims.nbDims = tensor.nbDims;
        for (int32_t i = 0; i < tensor.nbDims; ++i)
        {
            dims.d[i] = mFactory.constant(tensor.dims[i]);
        }
        return dims;
    }

private:
    ExpressionFactory mFactory;
};

// ---------------------------------------------------------------------------------------------------------------
// Tensors
// ---------------------------------------------------------------------------------------------------------------

PluginTensorDesc describe(HostTensor const& tensor)
{
    PluginTensorDesc desc{};
    desc.dims.nbDims = tensor.nbDims;
    std::copy_n(tensor.dims, Dims::MAX_DIMS, desc.dims.d);
    desc.type = static_cast<DataType>(tensor.type);
    desc.format = static_cast<TensorFormat>(tensor.format);
    desc.scale = 1.0F;
    return desc;
}

std::vector<PluginTensorDesc> describeAll(HostTensor const* tensors, int32_t count)
{
    std::vector<PluginTensorDesc> descs;
    std::transform(tensors, tensors + count, std::back_inserter(descs), describe);
    return descs;
}

// As in a profile whose minimum, optimum and maximum are the same.
std::vector<DynamicPluginTensorDesc> describeDynamic(HostTensor const* tensors, int32_t count)
{
    std::vector<DynamicPluginTensorDesc> descs;
    for (int32_t i = 0; i < count; ++i)
    {
        PluginTensorDesc const desc = describe(tensors[i]);
        descs.push_back({desc, desc.dims, desc.dims, desc.dims});
    }
    return descs;
}

std::vector<PluginField> toFields(HostField const* fields, int32_t count)
{
    std::vector<PluginField> converted;
    for (int32_t i = 0; i < count; ++i)
    {
        auto const type = static_cast<PluginFieldType>(fields[i].type);
        converted.emplace_back(fields[i].name, fields[i].data, type, fields[i].length);
    }
    return converted;
}

std::vector<HostField> fromFields(PluginFieldCollection const& collection)
{
    std::vector<HostField> converted;
    for (int32_t i = 0; i < collection.nbFields; ++i)
    {
        PluginField const& field = collection.fields[i];
        converted.push_back({field.name, field.data, static_cast<int32_t>(field.type), field.length});
    }
    return converted;
}

// ---------------------------------------------------------------------------------------------------------------
// The library
// ---------------------------------------------------------------------------------------------------------------

// Closes a file when it goes out of scope, unless it is kept.
class File
{
public:
    explicit File(int descriptor)
        : mDescriptor(descriptor)
    {
        if (descriptor < 0)
        {
            fail(std::strerror(errno));
        }
    }
    File(File const&) = delete;
    File& operator=(File const&) = delete;
    ~File()
    {
        if (!mKept)
        {
            close(mDescriptor);
        }
    }
    int get() const
    {
        return mDescriptor;
    }
    void keep()
    {
        mKept = true;
    }

private:
    int mDescriptor;
    bool mKept{};
};

// Loads a copy of the library that exists in memory only. TensorRT may have loaded the same file in this process:
// they would share one copy of its global variables, and the last caller of setLoggerFinder would replace the other's
// logger.
void* loadPrivateCopy(std::string const& path)
{
    File const original{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    struct stat status{};
    File copy{memfd_create(path.substr(path.rfind('/') + 1).c_str(), MFD_CLOEXEC)};
    if (fstat(original.get(), &status) != 0)
    {
        fail(std::strerror(errno));
    }
    for (off_t done = 0; done < status.st_size;)
    {
        if (sendfile(copy.get(), original.get(), &done, static_cast<size_t>(status.st_size - done)) <= 0)
        {
            fail(std::strerror(errno));
        }
    }
    std::string const name = "/proc/self/fd/" + std::to_string(copy.get());
    void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        fail(dlerror());
    }
    // The descriptor stays open: dlopen identifies libraries by name, and with a reused descriptor number the next
    // library would have this one's name.
    copy.keep();
    return library;
}

} // namespace

struct PluginHost
{
    explicit PluginHost(std::string const& path)
        : library(loadPrivateCopy(path))
    {
        auto const getCreators = find<IPluginCreatorInterface* const* (*)(int32_t&)>("getCreators");
        auto const setLoggerFinder = find<void (*)(void*)>("setLoggerFinder");
        if (getCreators == nullptr)
        {
            dlclose(library);
            fail("it has no function getCreators, so it is not a library of V3 plugins");
        }
        if (setLoggerFinder != nullptr)
        {
            setLoggerFinder(&finder);
        }
        pluginsAlive = find<int64_t (*)()>("bertPluginsAlive");
        int32_t count = 0;
        IPluginCreatorInterface* const* const list = getCreators(count);
        for (int32_t i = 0; i < count; ++i)
        {
            if (std::string{"PLUGIN CREATOR_V3ONE"} == list[i]->getInterfaceInfo().kind)
            {
                creators.push_back(static_cast<IPluginCreatorV3One*>(list[i]));
            }
        }
    }
    PluginHost(PluginHost const&) = delete;
    PluginHost& operator=(PluginHost const&) = delete;
    ~PluginHost()
    {
        dlclose(library);
    }

    template <typename Function>
    Function find(char const* symbol) const
    {
        return reinterpret_cast<Function>(dlsym(library, symbol));
    }

    IPluginCreatorV3One* creator(
        std::string const& name, std::string const& version, std::string const& nameSpace)
    {
        for (auto* candidate : creators)
        {
            if (name == candidate->getPluginName() && version == candidate->getPluginVersion()
                && nameSpace == candidate->getPluginNamespace())
            {
                return candidate;
            }
        }
        fail("the library has no plugin " + name + ", version " + version + ", namespace \"" + nameSpace
             + "\"");
    }

    Logger logger;
    LoggerFinder finder{logger};
    void* library;
    int64_t (*pluginsAlive)(){};
    std::vector<IPluginCreatorV3One*> creators;
    std::vector<HostField> fieldNames;
    std::string messages;
};

struct HostedPlugin
{
    HostedPlugin(IPluginCreatorV3One* itsCreator, IPluginV3* plugin)
        : creator(itsCreator)
        , buildObject(plugin)
    {
        // TensorRT asks for the three capabilities before anything else.
        core = capability<IPluginV3OneCore>(buildObject.get(), PluginCapabilityType::kCORE);
        build = capability<IPluginV3OneBuild>(buildObject.get(), PluginCapabilityType::kBUILD);
        runtimeOfBuild = capability<IPluginV3OneRuntime>(buildObject.get(), PluginCapabilityType::kRUNTIME);
    }

    template <typename Capability>
    static Capability* capability(IPluginV3* plugin, PluginCapabilityType type)
    {
        IPluginCapability* const found = plugin->getCapabilityInterface(type);
        if (found == nullptr)
        {
            fail("getCapabilityInterface returned null for capability "
                 + std::to_string(static_cast<int>(type)));
        }
        return static_cast<Capability*>(found);
    }

    IPluginCreatorV3One* creator;
    std::unique_ptr<IPluginV3> buildObject;
    std::unique_ptr<IPluginV3> contextObject; // its runtime phase, once started
    IPluginV3OneCore* core;
    IPluginV3OneBuild* build;
    IPluginV3OneRuntime* runtimeOfBuild;
    IPluginV3OneRuntime* runtime{};
    std::vector<HostField> stored;
    std::vector<PluginTensorDesc> shapes; // of the last hostedPluginSetShapes: inputs, then outputs
    int32_t nbInputs{};
};

// ---------------------------------------------------------------------------------------------------------------
// The C interface
// ---------------------------------------------------------------------------------------------------------------

char const* pluginHostError()
{
    return gError.c_str();
}

char const* pluginHostTakeMessages(PluginHost* host)
{
    host->messages = host->logger.take();
    return host->messages.c_str();
}

PluginHost* pluginHostOpen(char const* libraryPath)
{
    return guarded<PluginHost*>(nullptr, [&] { return new PluginHost(libraryPath); });
}

void pluginHostClose(PluginHost* host)
{
    delete host;
}

int64_t pluginHostPluginsAlive(PluginHost* host)
{
    return host->pluginsAlive == nullptr ? -1 : host->pluginsAlive();
}

int32_t pluginHostNbCreators(PluginHost* host)
{
    return static_cast<int32_t>(host->creators.size());
}

int32_t pluginHostCreator(PluginHost* host, int32_t index, HostCreator* creator)
{
    return guarded<int32_t>(-1,
        [&]
        {
            auto* const found = host->creators.at(static_cast<size_t>(index));
            host->fieldNames = fromFields(*found->getFieldNames());
            *creator = {found->getPluginName(), found->getPluginVersion(), found->getPluginNamespace(),
                static_cast<int32_t>(host->fieldNames.size()), host->fieldNames.data()};
            return 0;
        });
}

HostedPlugin* pluginHostCreate(PluginHost* host, char const* name, char const* version, char const* nameSpace,
    HostField const* fields, int32_t nbFields)
{
    return guarded<HostedPlugin*>(nullptr,
        [&]
        {
            auto* const creator = host->creator(name, version, nameSpace);
            auto const converted = toFields(fields, nbFields);
            PluginFieldCollection const collection{nbFields, converted.data()};
            std::unique_ptr<IPluginV3> plugin{
                creator->createPlugin(name, &collection, TensorRTPhase::kBUILD)};
            if (plugin == nullptr)
            {
                fail("createPlugin for the build phase returned null");
            }
            return new HostedPlugin(creator, plugin.release());
        });
}

HostedPlugin* hostedPluginClone(HostedPlugin* plugin)
{
    return guarded<HostedPlugin*>(nullptr,
        [&]
        {
            std::unique_ptr<IPluginV3> clone{plugin->buildObject->clone()};
            if (clone == nullptr)
            {
                fail("clone returned null");
            }
            return new HostedPlugin(plugin->creator, clone.release());
        });
}

void hostedPluginDestroy(HostedPlugin* plugin)
{
    delete plugin;
}

int32_t hostedPluginNbOutputs(HostedPlugin* plugin)
{
    return plugin->build->getNbOutputs();
}

int32_t hostedPluginOutputs(
    HostedPlugin* plugin, HostTensor const* inputs, int32_t nbInputs, HostTensor* outputs, int32_t nbOutputs)
{
    return guarded<int32_t>(-1,
        [&]
        {
            std::vector<DataType> inputTypes;
            std::vector<DimsExprs> inputShapes;
            ExpressionBuilder builder;
            for (int32_t i = 0; i < nbInputs; ++i)
            {
                inputTypes.push_back(static_cast<DataType>(inputs[i].type));
                inputShapes.push_back(builder.expressions(inputs[i]));
            }
            std::vector<DataType> types(static_cast<size_t>(nbOutputs));
            std::vector<DimsExprs> shapes(static_cast<size_t>(nbOutputs));
            check(plugin->build->getOutputDataTypes(types.data(), nbOutputs, inputTypes.data(), nbInputs),
                "getOutputDataTypes");
            check(plugin->build->getOutputShapes(
                      inputShapes.data(), nbInputs, nullptr, 0, shapes.data(), nbOutputs, builder),
                "getOutputShapes");
            for (int32_t i = 0; i < nbOutputs; ++i)
            {
                outputs[i] = {};
                outputs[i].type = static_cast<int32_t>(types[i]);
                outputs[i].nbDims = shapes[i].nbDims;
                for (int32_t d = 0; d < shapes[i].nbDims; ++d)
                {
                    auto const* const dimension = shapes[i].d[d];
                    outputs[i].dims[d] = dimension->isConstant() ? dimension->getConstantValue() : -1;
                }
            }
            return 0;
        });
}

int32_t hostedPluginSupports(
    HostedPlugin* plugin, int32_t position, HostTensor const* tensors, int32_t nbInputs, int32_t nbOutputs)
{
    return guarded<int32_t>(-1,
        [&]
        {
            auto const descs = describeDynamic(tensors, nbInputs + nbOutputs);
            return plugin->build->supportsFormatCombination(position, descs.data(), nbInputs, nbOutputs) ? 1
                                                                                                         : 0;
        });
}

int32_t hostedPluginConfigure(HostedPlugin* plugin, HostTensor const* tensors, int32_t nbInputs,
    int32_t nbOutputs, size_t* workspaceSize)
{
    return guarded<int32_t>(-1,
        [&]
        {
            auto const descs = describeDynamic(tensors, nbInputs + nbOutputs);
            auto const* const outputs = descs.data() + nbInputs;
            for (int32_t position = 0; position < nbInputs + nbOutputs; ++position)
            {
                if (!plugin->build->supportsFormatCombination(position, descs.data(), nbInputs, nbOutputs))
                {
                    fail("supportsFormatCombination refused tensor " + std::to_string(position));
                }
            }
            check(plugin->build->configurePlugin(descs.data(), nbInputs, outputs, nbOutputs),
                "configurePlugin");
            *workspaceSize = plugin->build->getWorkspaceSize(descs.data(), nbInputs, outputs, nbOutputs);
            return 0;
        });
}

int32_t hostedPluginFieldsToSerialize(HostedPlugin* plugin, HostField const** fields)
{
    return guarded<int32_t>(-1,
        [&]
        {
            auto const* const collection = plugin->runtimeOfBuild->getFieldsToSerialize();
            if (collection == nullptr)
            {
                fail("getFieldsToSerialize returned null");
            }
            plugin->stored = fromFields(*collection);
            *fields = plugin->stored.data();
            return static_cast<int32_t>(plugin->stored.size());
        });
}

char const* hostedPluginMetadata(HostedPlugin* plugin)
{
    return plugin->build->getMetadataString();
}

char const* hostedPluginTimingCacheId(HostedPlugin* plugin)
{
    return plugin->build->getTimingCacheID();
}

int32_t hostedPluginStart(HostedPlugin* plugin)
{
    return guarded<int32_t>(-1,
        [&]
        {
            auto const* const collection = plugin->runtimeOfBuild->getFieldsToSerialize();
            if (collection == nullptr)
            {
                fail("getFieldsToSerialize returned null");
            }
            std::unique_ptr<IPluginV3> const loaded{plugin->creator->createPlugin(
                plugin->core->getPluginName(), collection, TensorRTPhase::kRUNTIME)};
            if (loaded == nullptr)
            {
                fail("createPlugin for the runtime phase returned null");
            }
            auto* const loadedRuntime
                = HostedPlugin::capability<IPluginV3OneRuntime>(loaded.get(), PluginCapabilityType::kRUNTIME);
            plugin->contextObject.reset(loadedRuntime->attachToContext(nullptr));
            if (plugin->contextObject == nullptr)
            {
                fail("attachToContext returned null");
            }
            plugin->runtime = HostedPlugin::capability<IPluginV3OneRuntime>(
                plugin->contextObject.get(), PluginCapabilityType::kRUNTIME);
            return 0;
        });
}

int32_t hostedPluginSetShapes(
    HostedPlugin* plugin, HostTensor const* tensors, int32_t nbInputs, int32_t nbOutputs)
{
    return guarded<int32_t>(-1,
        [&]
        {
            if (plugin->runtime == nullptr)
            {
                fail("the plugin is not started");
            }
            plugin->shapes.clear();
            auto descs = describeAll(tensors, nbInputs + nbOutputs);
            check(plugin->runtime->onShapeChange(descs.data(), nbInputs, descs.data() + nbInputs, nbOutputs),
                "onShapeChange");
            plugin->shapes = std::move(descs);
            plugin->nbInputs = nbInputs;
            return 0;
        });
}

int32_t hostedPluginEnqueue(
    HostedPlugin* plugin, void const* const* inputs, void* const* outputs, void* workspace, void* stream)
{
    return guarded<int32_t>(-1,
        [&]
        {
            if (plugin->shapes.empty())
            {
                fail("the plugin has no shapes yet");
            }
            check(plugin->runtime->enqueue(plugin->shapes.data(), plugin->shapes.data() + plugin->nbInputs,
                      inputs, outputs, workspace, static_cast<cudaStream_t>(stream)),
                "enqueue");
            return 0;
        });
}
