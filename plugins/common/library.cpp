// The C functions through which TensorRT, and our plugin host, find what is in this library.
#include "common/logging.h"
#include "common/plugin_base.h"
#include "emb_layer_norm/emb_layer_norm_plugin.h"
#include "layer_norm/layer_norm_plugin.h"
#include "linear/linear_plugin.h"
#include "linear_skip_layer_norm/linear_skip_layer_norm_plugin.h"
#include "qkv_to_context/qkv_to_context_plugin.h"
#include "skip_layer_norm/skip_layer_norm_plugin.h"

#define BERT_EXPORT extern "C" __attribute__((visibility("default")))

// TensorRT calls it once after loading the library, and registers every creator in the list.
BERT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept
{
    static bert::PluginCreator layerNorm = bert::layerNormCreator();
    static bert::PluginCreator skipLayerNorm = bert::skipLayerNormCreator();
    static bert::PluginCreator embLayerNorm = bert::embLayerNormCreator();
    static bert::PluginCreator qkvToContext = bert::qkvToContextCreator();
    static bert::PluginCreator linear = bert::linearCreator();
    static bert::PluginCreator linearSkipLayerNorm = bert::linearSkipLayerNormCreator();
    static nvinfer1::IPluginCreatorInterface* const creators[] = {
        &layerNorm,
        &skipLayerNorm,
        &embLayerNorm,
        &qkvToContext,
        &linear,
        &linearSkipLayerNorm,
    };
    count = static_cast<int32_t>(sizeof(creators) / sizeof(creators[0]));
    return creators;
}

// TensorRT passes an nvinfer1::ILoggerFinder, through which its logger can be found.
BERT_EXPORT void setLoggerFinder(void* finder) noexcept
{
    bert::setLoggerFinder(finder);
}

// For tests: plugin objects that are alive.
BERT_EXPORT int64_t bertPluginsAlive() noexcept
{
    return bert::gPluginsAlive.load();
}
