// 2^x in one instruction, with a relative error of 2^-22. Results below 2^-126 become 0.
#pragma once

namespace bert
{

inline __device__ float exponential2(float x)
{
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

} // namespace bert
