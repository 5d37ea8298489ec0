#include "common/logging.h"
#include "common/tensorrt_api.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <cxxabi.h>
#include <typeinfo>

// TensorRT 11 and TensorRT for RTX 1.7 derive ILogger and ILoggerFinder from IVersionedInterface; TensorRT 10 does
// not. The base class adds two virtual functions in front, so log() and findLogger() are in other slots of the
// virtual table: a library built with the headers of one release and loaded into the other would call a destructor
// instead of log(). The interface has no version to ask for, but every polymorphic C++ object carries the type
// information of its class, including base classes. So the layout is read from the object, and one compiled library
// serves every release.

namespace bert
{

// The two layouts, for calls only; no object of these types is ever created. They have default visibility on purpose:
// for a class that nobody outside can derive from, the compiler could conclude that these calls have no target.
#define BERT_VISIBLE __attribute__((visibility("default")))

class BERT_VISIBLE UnversionedFinder
{
public:
    virtual void* findLogger() = 0;

protected:
    virtual ~UnversionedFinder() = default;
};

class BERT_VISIBLE UnversionedLogger
{
public:
    virtual void log(int32_t severity, char const* message) noexcept = 0;

protected:
    virtual ~UnversionedLogger() = default;
};

class BERT_VISIBLE VersionedFinder : public nvinfer1::IVersionedInterface
{
public:
    virtual void* findLogger() = 0;
};

class BERT_VISIBLE VersionedLogger : public nvinfer1::IVersionedInterface
{
public:
    virtual void log(int32_t severity, char const* message) noexcept = 0;
};

namespace
{

enum class Layout
{
    kUNKNOWN, // the class was compiled without type information
    kUNVERSIONED,
    kVERSIONED,
};

bool derivesFrom(std::type_info const* type, char const* baseName)
{
    if (std::strcmp(type->name(), baseName) == 0)
    {
        return true;
    }
    if (auto const* single = dynamic_cast<abi::__si_class_type_info const*>(type))
    {
        return derivesFrom(single->__base_type, baseName);
    }
    if (auto const* several = dynamic_cast<abi::__vmi_class_type_info const*>(type))
    {
        for (unsigned int i = 0; i < several->__base_count; ++i)
        {
            if (derivesFrom(several->__base_info[i].__base_type, baseName))
            {
                return true;
            }
        }
    }
    return false;
}

Layout layoutOf(void const* object)
{
    // The Itanium C++ ABI, which every Linux compiler follows: the pointer to the type information precedes slot 0.
    auto const* virtualTable = *static_cast<void const* const* const*>(object);
    auto const* type = static_cast<std::type_info const*>(virtualTable[-1]);
    if (type == nullptr)
    {
        return Layout::kUNKNOWN;
    }
    return derivesFrom(type, typeid(nvinfer1::IVersionedInterface).name()) ? Layout::kVERSIONED
                                                                           : Layout::kUNVERSIONED;
}

std::atomic<void*> gFinder{nullptr};

// Whether the message reached a logger.
bool logThroughTensorRT(Severity severity, char const* message)
{
    void* const finder = gFinder.load();
    Layout const finderLayout = finder == nullptr ? Layout::kUNKNOWN : layoutOf(finder);
    if (finderLayout == Layout::kUNKNOWN)
    {
        return false;
    }
    void* const logger = finderLayout == Layout::kVERSIONED
                             ? static_cast<VersionedFinder*>(finder)->findLogger()
                             : static_cast<UnversionedFinder*>(finder)->findLogger();
    if (logger == nullptr)
    {
        return false;
    }
    // An application built without type information implements the interface of the TensorRT it runs with.
    Layout const ownLayout = layoutOf(logger);
    if ((ownLayout == Layout::kUNKNOWN ? finderLayout : ownLayout) == Layout::kVERSIONED)
    {
        static_cast<VersionedLogger*>(logger)->log(static_cast<int32_t>(severity), message);
    }
    else
    {
        static_cast<UnversionedLogger*>(logger)->log(static_cast<int32_t>(severity), message);
    }
    return true;
}

} // namespace

std::string toText(float number)
{
    char text[32];
    std::snprintf(text, sizeof(text), "%g", static_cast<double>(number));
    return text;
}

void setLoggerFinder(void* finder) noexcept
{
    gFinder.store(finder);
}

void log(Severity severity, std::string const& message) noexcept
{
    try
    {
        if (logThroughTensorRT(severity, message.c_str()))
        {
            return;
        }
    }
    catch (...) // an application's logger that throws must not end the process
    {
    }
    std::fprintf(stderr, "%s\n", message.c_str());
}

} // namespace bert
