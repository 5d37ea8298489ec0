// Asks about functions of one type on several devices, alone and from many threads, and prints the answers and how often
// each question came through.
#include "common/function_property_cache.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

namespace
{

int gResult; // gives each function code of its own: equal ones may be merged

void first(int value)
{
    gResult = value;
}

void second(int value)
{
    gResult = value + 1;
}

} // namespace

int main()
{
    bert::FunctionPropertyCache answers;
    std::array<int, 4> asked{};
    auto const get = [&](void (*function)(int), int device, bool answer, int& count)
    {
        return answers.get(function, device,
            [&]
            {
                ++count;
                return answer;
            });
    };
    for (int round = 0; round < 3;
        ++round) // first on device 0: yes, second: no; on device 1 the other way round
    {
        std::printf("%d", get(first, 0, true, asked[0]));
        std::printf("%d", get(second, 0, false, asked[1]));
        std::printf("%d", get(first, 1, false, asked[2]));
        std::printf("%d\n", get(second, 1, true, asked[3]));
    }
    std::printf("asked %d %d %d %d\n", asked[0], asked[1], asked[2], asked[3]);

    bert::FunctionPropertyCache fallible;
    try
    {
        fallible.get(first, 0, []() -> bool { throw std::runtime_error{"no"}; });
    }
    catch (std::runtime_error const&)
    {
        std::printf("after a failure %d\n", fallible.get(first, 0, [] { return true; }));
    }

    bert::FunctionPropertyCache shared;
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i)
    {
        threads.emplace_back(
            [&]
            {
                for (int n = 0; n < 20000; ++n)
                {
                    int const device = n % 64;
                    bool const expected = device % 2 == 0;
                    wrong += shared.get(first, device, [&] { return expected; }) != expected;
                    wrong += shared.get(second, device, [&] { return !expected; }) == expected;
                }
            });
    }
    for (auto& thread : threads)
    {
        thread.join();
    }
    std::printf("wrong in threads %d\n", wrong.load());
    return 0;
}
