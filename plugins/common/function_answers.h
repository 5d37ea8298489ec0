// Remembers what was found out about a function on a device, for launchers, which want to know it at every launch.
#pragma once

#include <map>
#include <mutex>
#include <shared_mutex>
#include <utility>

namespace bert
{

// Yes or no for each pair of function and device. Any thread may ask.
class FunctionAnswers
{
public:
    // The answer of ask(), which is called for the first question only; threads that come first together may all call
    // it. If it throws, nothing is remembered.
    template <typename Function, typename Ask>
    bool get(Function* function, int device, Ask&& ask)
    {
        Key const key{reinterpret_cast<void const*>(function), device};
        {
            std::shared_lock<std::shared_mutex> const lock{mMutex};
            auto const known = mAnswers.find(key);
            if (known != mAnswers.end())
            {
                return known->second;
            }
        }
        bool const answer = ask();
        std::lock_guard<std::shared_mutex> const lock{mMutex};
        mAnswers.emplace(key, answer);
        return answer;
    }

private:
    // By address: all functions of one signature are of one type.
    using Key = std::pair<void const*, int>;

    std::shared_mutex mMutex;
    std::map<Key, bool> mAnswers;
};

} // namespace bert
