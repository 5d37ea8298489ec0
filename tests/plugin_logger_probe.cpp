// Plays TensorRT 10, whose ILogger and ILoggerFinder have no common base class, and asks the plugin library for a
// plugin that it must refuse. Prints what arrives at the logger.
#include <cstdint>
#include <cstdio>
#include <dlfcn.h>

#include "common/plugin_interfaces.h"

class Logger
{
public:
    virtual void log(int32_t severity, char const* message) noexcept
    {
        std::printf("severity %d: %s\n", severity, message);
    }
    virtual ~Logger() = default;
};

class LoggerFinder
{
public:
    virtual Logger* findLogger()
    {
        return &mLogger;
    }
    virtual ~LoggerFinder() = default;

private:
    Logger mLogger;
};

int main(int /*count*/, char** arguments)
{
    void* const library = dlopen(arguments[1], RTLD_NOW);
    auto const setFinder = reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"));
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
    auto const getCreators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    LoggerFinder finder;
    setFinder(&finder);
    int32_t count = 0;
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(getCreators(count)[0]);
    nvinfer1::PluginFieldCollection const none{};
    auto* const plugin = creator->createPlugin("encoder", &none, nvinfer1::TensorRTPhase::kBUILD);
    setFinder(nullptr);
    return plugin == nullptr ? 0 : 1;
}
