// Messages of the plugins, which go through TensorRT's logger, and error handling at the library boundary.
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

// Sets the finder that TensorRT passes to setLoggerFinder(); null removes it.
void setLoggerFinder(void* finder) noexcept;

// Sends a message to TensorRT's logger, or to stderr while there is none.
void log(Severity severity, std::string const& message) noexcept;

// A mistake of a plugin's user. The message names the values found and those expected.
class PluginError : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

// Parts of messages. std::ostringstream is avoided: libcufile, which PyTorch for CUDA loads, exports a constructor of
// it that is incompatible with this library's C++ runtime.
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

// Throws a PluginError with the concatenated parts: fail("gamma has ", 7, " elements").
template <typename... Parts>
[[noreturn]] void fail(Parts const&... parts)
{
    throw PluginError((std::string{} + ... + toText(parts)));
}

// Runs the body of one of TensorRT's calls. No exception crosses the library boundary: it is logged and turned into
// `onError`, the value by which that call reports failure.
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
