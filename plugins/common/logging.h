// Messages of the plugins, through TensorRT's logger, and the one way in which errors leave a plugin.
#pragma once

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

namespace bert
{

// Numbers as in nvinfer1::ILogger::Severity.
enum class Severity : int32_t
{
    kERROR = 1,
    kWARNING = 2,
    kINFO = 3,
};

// Takes the finder that TensorRT hands to setLoggerFinder(); null takes it away again.
void setLoggerFinder(void* finder) noexcept;

// Sends a message to TensorRT's logger, or to stderr while there is none.
void log(Severity severity, std::string const& message) noexcept;

// Something the user of a plugin got wrong. The message names the plugin, the values found and those expected.
class PluginError : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

// Parts of messages. Not std::ostringstream: libraries that some processes load (libcufile, with PyTorch for CUDA)
// export a constructor of it that does not go with the rest of this library's.
inline std::string toText(char const* text)
{
    return text;
}
inline std::string toText(std::string const& text)
{
    return text;
}
inline std::string toText(int64_t number)
{
    return std::to_string(number);
}
inline std::string toText(int32_t number)
{
    return std::to_string(number);
}
std::string toText(float number); // "1e-12"

// Puts a message together and throws it: fail("gamma has ", 7, " elements").
template <typename... Parts>
[[noreturn]] void fail(Parts const&... parts)
{
    throw PluginError((std::string{} + ... + toText(parts)));
}

// Runs what a plugin does in one of TensorRT's calls. No exception crosses the library boundary: it is logged and
// turned into `onError`, the value by which that call tells TensorRT of a failure.
template <typename Result, typename Function>
Result guarded(char const* plugin, char const* call, Result onError, Function&& function) noexcept
{
    try
    {
        return function();
    }
    catch (std::exception const& error)
    {
        log(Severity::kERROR, std::string{plugin} + " plugin, " + call + ": " + error.what());
    }
    catch (...)
    {
        log(Severity::kERROR, std::string{plugin} + " plugin, " + call + ": unknown error");
    }
    return onError;
}

} // namespace bert
