// A cache of a yes-or-no property of CUDA functions, for launchers, which need it at every launch.
#pragma once

#include <map>
#include <mutex>
#include <shared_mutex>
#include <utility>

namespace bert
{

// The property of each pair of function and device. Any thread may ask.
class FunctionPropertyCache
{
public:
    // The result of ask(), which is called only if the pair is not in the cache yet; threads that arrive at the same
    // time may all call it. If it throws, nothing is cached.
    template <typename Function, typename Ask>
    bool get(Function* function, int device, Ask&& ask)
    {
        Key const key{reinterpret_cast<void const*>(function), device};
        {
            std::shared_lock<std::shared_mutex> const lock{mMutex};
            auto const found = mProperties.find(key);
            if (found != mProperties.end())
            {
                return found->second;
            }
        }
        bool const property = ask();
        std::lock_guard<std::shared_mutex> const lock{mMutex};
        mProperties.emplace(key, property);
        return property;
    }

private:
    // The address identifies a function; its type does not, since all functions of one signature share it.
    using Key = std::pair<void const*, int>;

    std::shared_mutex mMutex;
    std::map<Key, bool> mProperties;
};

} // namespace bert
