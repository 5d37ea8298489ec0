// Runs TensorRT plugins without TensorRT: loads a plugin library and makes TensorRT's calls in TensorRT's order. The
// interface is C, so that Python can use it through ctypes (plugin_host.py is the wrapper to use).
//
//   build phase     creator, fields -> plugin -> output types and shapes -> formats -> configure, workspace
//   in between      the fields to serialise, as they would be stored in a plan
//   runtime phase   creator, stored fields -> plugin -> attached to a context -> shapes -> enqueue
//
// Functions that can fail return null or -1; then pluginHostError() names the failed call of the plugin, and
// pluginHostTakeMessages() returns the messages that the plugin logged. Only the kernels that a plugin's enqueue
// launches need a GPU. Only one thread may use a plugin at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#define PLUGIN_HOST_API __attribute__((visibility("default")))

extern "C"
{

    struct PluginHost;   // a loaded library
    struct HostedPlugin; // a plugin in its build phase and, once started, in its runtime phase

    struct HostField
    {
        char const* name;
        void const* data;
        int32_t type; // nvinfer1::PluginFieldType
        int32_t length;
    };

    struct HostTensor
    {
        int32_t nbDims;
        int64_t dims[8]; // -1: not known yet
        int32_t type;    // nvinfer1::DataType
        int32_t format;  // nvinfer1::TensorFormat
    };

    struct HostCreator
    {
        char const* name;
        char const* version;
        char const* nameSpace;
        int32_t nbFields;
        HostField const* fields; // names and types only; valid until the next call for the same library
    };

    PLUGIN_HOST_API char const* pluginHostError();
    PLUGIN_HOST_API char const* pluginHostTakeMessages(
        PluginHost* host); // one a line; valid until the next call

    PLUGIN_HOST_API PluginHost* pluginHostOpen(char const* libraryPath);
    PLUGIN_HOST_API void pluginHostClose(PluginHost* host); // after the last of its plugins is destroyed
    PLUGIN_HOST_API int64_t pluginHostPluginsAlive(
        PluginHost* host); // -1 if the library does not count its objects
    PLUGIN_HOST_API int32_t pluginHostNbCreators(PluginHost* host);
    PLUGIN_HOST_API int32_t pluginHostCreator(PluginHost* host, int32_t index, HostCreator* creator);

    PLUGIN_HOST_API HostedPlugin* pluginHostCreate(PluginHost* host, char const* name, char const* version,
        char const* nameSpace, HostField const* fields, int32_t nbFields);
    PLUGIN_HOST_API HostedPlugin* hostedPluginClone(HostedPlugin* plugin);
    PLUGIN_HOST_API void hostedPluginDestroy(HostedPlugin* plugin);

    // Build phase. `tensors` are the inputs, followed by the outputs where those are known.
    PLUGIN_HOST_API int32_t hostedPluginNbOutputs(HostedPlugin* plugin);
    PLUGIN_HOST_API int32_t hostedPluginOutputs(HostedPlugin* plugin, HostTensor const* inputs,
        int32_t nbInputs, HostTensor* outputs, int32_t nbOutputs);
    PLUGIN_HOST_API int32_t hostedPluginSupports(HostedPlugin* plugin, int32_t position,
        HostTensor const* tensors, int32_t nbInputs, int32_t nbOutputs);
    PLUGIN_HOST_API int32_t hostedPluginConfigure(HostedPlugin* plugin, HostTensor const* tensors,
        int32_t nbInputs, int32_t nbOutputs, size_t* workspaceSize);
    PLUGIN_HOST_API int32_t hostedPluginFieldsToSerialize(HostedPlugin* plugin, HostField const** fields);
    // Null where the plugin has none; valid as long as the plugin.
    PLUGIN_HOST_API char const* hostedPluginMetadata(HostedPlugin* plugin);
    PLUGIN_HOST_API char const* hostedPluginTimingCacheId(HostedPlugin* plugin);

    // Runtime phase.
    PLUGIN_HOST_API int32_t hostedPluginStart(HostedPlugin* plugin);
    PLUGIN_HOST_API int32_t hostedPluginSetShapes(
        HostedPlugin* plugin, HostTensor const* tensors, int32_t nbInputs, int32_t nbOutputs);
    PLUGIN_HOST_API int32_t hostedPluginEnqueue(
        HostedPlugin* plugin, void const* const* inputs, void* const* outputs, void* workspace, void* stream);
}
